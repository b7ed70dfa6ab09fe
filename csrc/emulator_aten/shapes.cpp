#include "emulator_aten/shapes.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "emulator_aten/alias.h"
#include "emulator_aten/shape_key.h"

namespace emu_aten {
namespace {

// Shapes that change with every call (a cache that grows by a token) must not fill the memory.
constexpr size_t kMostPerOp = 4096;

at::Tensor to_meta(const at::Tensor& tensor) {
  // Zero-dimensional CPU tensors mix with any device, and numbers must stay numbers.
  if (tensor.device().is_cpu() && tensor.dim() == 0) return copy_of_host_tensor(tensor);
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(c10::kMeta));
}

TensorShape shape_of(const at::Tensor& tensor) {
  TensorShape shape;
  shape.defined = tensor.defined();
  if (!shape.defined) return shape;
  shape.dtype = tensor.scalar_type();
  shape.sizes = tensor.sizes();
  shape.strides = tensor.strides();
  return shape;
}

std::vector<TensorShape> shapes_of(const c10::IValue& value) {
  if (value.isTensor()) return {shape_of(value.toTensor())};
  std::vector<TensorShape> shapes;
  for (const at::Tensor& tensor : value.toTensorVector()) shapes.push_back(shape_of(tensor));
  return shapes;
}

torch::jit::Stack on_meta(Arguments arguments) {
  torch::jit::Stack stack;
  stack.reserve(arguments.size());
  for (const c10::IValue& argument : arguments) {
    if (argument.isDevice()) {
      stack.emplace_back(c10::Device(c10::kMeta));
    } else if (argument.isGenerator()) {
      stack.emplace_back();
    } else {
      stack.push_back(map_tensors(argument, to_meta));
    }
  }
  return stack;
}

std::shared_ptr<const Shapes> run_on_meta(const c10::OperatorHandle& op, const Signature& signature,
                                          Arguments arguments) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  // A mode of the caller's is not to see this call.
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  auto stack = on_meta(arguments);
  std::vector<c10::IValue> outs;
  for (const size_t out : signature.outs) outs.push_back(stack[out]);
  op.callBoxed(stack);

  auto shapes = std::make_shared<Shapes>();
  for (size_t i = 0; i < signature.returns_written.size(); ++i) {
    if (!signature.returns_written[i]) shapes->returns.push_back(shapes_of(stack[i]));
  }
  for (size_t i = 0; i < outs.size(); ++i) {
    const size_t argument = signature.outs[i];
    if (!arguments[argument].isTensor() || !arguments[argument].toTensor().defined()) continue;
    const at::Tensor& out = outs[i].toTensor();
    if (out.sizes() != arguments[argument].toTensor().sizes())
      shapes->resized.push_back({argument, shape_of(out)});
  }
  return shapes;
}

}  // namespace

std::shared_ptr<const Shapes> ShapeCache::get(const c10::OperatorHandle& op, const Signature& signature,
                                              Arguments arguments, ShapeRule rule) {
  static thread_local std::string key;
  const bool comparable = shape_key(arguments, key);
  if (comparable) {
    std::lock_guard lock(mutex_);
    if (const auto found = known_.find(key); found != known_.end()) return found->second;
  }
  // The meta kernel may come back to this thread's key.
  const std::string own_key = key;
  std::shared_ptr<const Shapes> shapes;
  try {
    shapes = rule ? rule(arguments) : run_on_meta(op, signature, arguments);
  } catch (const std::exception&) {
    // No meta kernel, or one that is stricter than the CPU's. Running the op gives the result, or its own
    // message.
  }
  if (comparable) {
    std::lock_guard lock(mutex_);
    if (known_.size() >= kMostPerOp) known_.clear();
    known_[own_key] = shapes;
  }
  return shapes;
}

}  // namespace emu_aten
