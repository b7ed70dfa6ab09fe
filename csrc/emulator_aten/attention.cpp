// scaled_dot_product_attention as one op. PyTorch would compose it differently for a device that is not the
// CPU; run whole by the CPU's own choice of kernel, its results equal the CPU's to the bit, and it is one
// task, not ten.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "emulator_aten/boxed.h"
#include "emulator_aten/special.h"

namespace emu_aten {
namespace {

enum Argument : size_t { kQuery, kKey, kValue, kMask, kDropout, kCausal, kScale, kGqa, kCount };

// Like the CPU's fused kernel: heads lie inside tokens, so that the model's transpose back is free.
template <typename Size>
c10::SmallVector<Size, 5> strides_of(c10::ArrayRef<Size> sizes) {
  const auto rank = static_cast<int>(sizes.size());
  c10::SmallVector<int, 5> inner_to_outer{rank - 1};
  if (rank == 4) inner_to_outer.append({1, 2, 0});
  for (int i = rank - 2; rank != 4 && i >= 0; --i) inner_to_outer.push_back(i);
  c10::SmallVector<Size, 5> strides(sizes.size());
  Size stride = 1;
  for (const int dimension : inner_to_outer) {
    strides[dimension] = stride;
    stride = stride * std::max<Size>(sizes[dimension], 1);
  }
  return strides;
}

std::shared_ptr<const Shapes> attention_shapes(Arguments arguments) {
  const at::Tensor& query = arguments[kQuery].toTensor();
  TensorShape out;
  out.dtype = query.scalar_type();
  out.sizes = query.sizes();
  out.sizes.back() = arguments[kValue].toTensor().size(-1);
  out.strides = strides_of<int64_t>(out.sizes);
  auto shapes = std::make_shared<Shapes>();
  shapes->returns.push_back({out});
  return shapes;
}

at::Tensor attention_without_data(const at::Tensor& query, const at::Tensor&, const at::Tensor& value,
                                  const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                                  bool) {
  c10::SmallVector<c10::SymInt, 5> sizes(query.sym_sizes());
  sizes.back() = value.sym_size(-1);
  return at::empty_strided_symint(sizes, strides_of<c10::SymInt>(sizes), query.options());
}

bool needs_composition(Arguments arguments) {
  if (arguments[kDropout].toDouble() > 0) return true;  // the fused form has no generator argument
  return c10::GradMode::is_enabled() &&
         std::ranges::any_of(arguments.slice(0, kMask + 1), [](const c10::IValue& value) {
           return value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad();
         });
}

void run_attention(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::scaled_dot_product_attention", "");
  op.callBoxedForDispatchKey(c10::DispatchKey::PrivateUse1, *stack);
}

class Attention : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const auto arguments = torch::jit::last(*stack, kCount);
    if (needs_composition(arguments)) return compose(stack);
    // A compiler looks on, through tensors without data. It would take this op apart, as one that is made of
    // others, so it is shown one that is not.
    if (keys.has(c10::DispatchKey::Python) || keys.has(c10::DispatchKey::PythonTLSSnapshot)) {
      static const auto whole =
          c10::Dispatcher::singleton().findSchemaOrThrow("torch_llm_datadist_emulator::attention", "");
      return whole.callBoxed(*stack);
    }
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

TORCH_LIBRARY_FRAGMENT(torch_llm_datadist_emulator, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float dropout_p, bool is_causal, "
      "float? scale, bool enable_gqa) -> Tensor");
  library.impl("attention", c10::DispatchKey::Meta, &emu_aten::attention_without_data);
}

TORCH_LIBRARY_IMPL(torch_llm_datadist_emulator, PrivateUse1, library) {
  library.impl("attention", torch::CppFunction::makeFromBoxedFunction<&emu_aten::run_attention>());
}
