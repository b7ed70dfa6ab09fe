// scaled_dot_product_attention as one op. PyTorch would compose it differently for a device that is not the
// CPU; run whole by the CPU's own choice of kernel, its results equal the CPU's to the bit, and it is one
// task, not ten.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "emulator_aten/boxed.h"
#include "emulator_aten/special.h"

namespace emu_aten {
namespace {

enum Argument : size_t { kQuery, kKey, kValue, kMask, kDropout, kCausal, kScale, kGqa, kCount };

std::shared_ptr<const Shapes> attention_shapes(Arguments arguments) {
  const at::Tensor& query = arguments[kQuery].toTensor();
  TensorShape out;
  out.dtype = query.scalar_type();
  out.sizes = query.sizes();
  out.sizes.back() = arguments[kValue].toTensor().size(-1);
  out.strides.resize(out.sizes.size());
  // Like the CPU's fused kernel: heads lie inside tokens, so that the model's transpose back is free.
  const auto rank = static_cast<int>(out.sizes.size());
  c10::SmallVector<int, 5> inner_to_outer{rank - 1};
  if (rank == 4) inner_to_outer.append({1, 2, 0});
  for (int i = rank - 2; rank != 4 && i >= 0; --i) inner_to_outer.push_back(i);
  int64_t stride = 1;
  for (const int dimension : inner_to_outer) {
    out.strides[dimension] = stride;
    stride *= std::max<int64_t>(out.sizes[dimension], 1);
  }
  auto shapes = std::make_shared<Shapes>();
  shapes->returns.push_back({out});
  return shapes;
}

bool needs_composition(Arguments arguments) {
  if (arguments[kDropout].toDouble() > 0) return true;  // the fused form has no generator argument
  return c10::GradMode::is_enabled() &&
         std::ranges::any_of(arguments.slice(0, kMask + 1), [](const c10::IValue& value) {
           return value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad();
         });
}

class Attention : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const auto arguments = torch::jit::last(*stack, kCount);
    if (needs_composition(arguments)) return compose(stack);
    op.callBoxedForDispatchKey(c10::DispatchKey::PrivateUse1, *stack);
  }

 private:
  // A mask of what may be seen, as the composition wants it: added to the scores.
  static at::Tensor additive(const at::Tensor& mask, const at::Tensor& query) {
    return at::zeros_like(mask, query.options()).masked_fill(mask.logical_not(), -INFINITY);
  }

  static void compose(torch::jit::Stack* stack) {
    static const auto math =
        c10::Dispatcher::singleton().findSchemaOrThrow("aten::_scaled_dot_product_attention_math", "");
    c10::IValue& mask = torch::jit::peek(*stack, kMask, kCount);
    if (mask.isTensor() && mask.toTensor().scalar_type() == at::kBool) {
      mask = additive(mask.toTensor(), torch::jit::peek(*stack, kQuery, kCount).toTensor());
    }
    stack->insert(stack->end() - 2, c10::IValue());  // no dropout mask; scale and gqa follow
    math.callBoxed(*stack);
    stack->pop_back();  // the attention weights
  }
};

}  // namespace

void install_attention(torch::Library& npu, torch::Library& autograd_npu) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::scaled_dot_product_attention", "");
  npu.impl("scaled_dot_product_attention",
           torch::CppFunction::makeFromBoxedFunctor(std::make_unique<BoxedKernel>(op, &attention_shapes)));
  autograd_npu.impl("scaled_dot_product_attention",
                    torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Attention>()));
}

}  // namespace emu_aten
