#include "emulator_aten/boxed.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "emulator_aten/alias.h"
#include "emulator_aten/footprint.h"
#include "emulator_aten/queue.h"
#include "emulator_aten/random.h"
#include "emulator_aten/runtime.h"
#include "emulator_aten/same_device.h"
#include "torch_npu/csrc/core/npu/NPUCachingAllocator.h"
#include "torch_npu/csrc/core/npu/NPUFunctions.h"

namespace emu_aten {
namespace {

std::optional<c10::Device> device_of(const c10::IValue& value) {
  if (value.isTensor()) {
    return on_npu(value.toTensor()) ? std::optional(value.toTensor().device()) : std::nullopt;
  }
  if (value.isDevice() && value.toDevice().is_privateuseone()) return value.toDevice();
  if (value.isTensorList() || value.isOptionalTensorList()) {
    for (const c10::IValue& element : value.toListRef()) {
      if (const auto found = device_of(element)) return found;
    }
  }
  return std::nullopt;
}

c10::Device device_of(Arguments arguments) {
  std::optional<c10::Device> found;
  for (const c10::IValue& argument : arguments) {
    if ((found = device_of(argument))) break;
  }
  if (found && found->has_index()) return *found;
  return {c10::DeviceType::PrivateUse1, c10_npu::current_device()};
}

at::Tensor allocate(const TensorShape& shape, c10::Device device) {
  return at::empty_strided(shape.sizes, shape.strides, at::TensorOptions().dtype(shape.dtype).device(device));
}

bool is_written_on_cpu(Arguments arguments, const Signature& signature) {
  return std::ranges::any_of(signature.written, [&](size_t i) {
    return arguments[i].isTensor() && arguments[i].toTensor().defined() && arguments[i].toTensor().is_cpu();
  });
}

// Such arguments are left to the CPU kernel's own checks and message, which would come too late in a queue.
bool overlaps_itself(Arguments arguments, const Signature& signature) {
  return std::ranges::any_of(signature.written, [&](size_t i) {
    return arguments[i].isTensor() && arguments[i].toTensor().defined() &&
           at::has_internal_overlap(arguments[i].toTensor()) == at::MemOverlap::Yes;
  });
}

// Memory of the caching allocator is reused in stream order, so queued work needs no hold on it. Other memory
// goes when its last tensor does.
bool needs_holding(const at::Tensor& tensor) {
  static const auto of_allocator = c10_npu::NPUCachingAllocator::get()->raw_deleter();
  return tensor.storage().data_ptr().get_deleter() != of_allocator;
}

bool selects_by_mask(const c10::IValue& indices) {
  return std::ranges::any_of(indices.toListRef(), [](const c10::IValue& index) {
    return index.isTensor() && index.toTensor().defined() &&
           (index.toTensor().scalar_type() == at::kBool || index.toTensor().scalar_type() == at::kByte);
  });
}

void write_out(const at::Tensor& device_out, const at::Tensor& computed) {
  if (!on_npu(device_out)) return;
  if (device_out.sizes() != computed.sizes()) device_out.resize_(computed.sizes());
  Aliases().of(device_out).copy_(computed);
}

// One tensor, or a list of them.
void write_outs(const c10::IValue& device_outs, const c10::IValue& computed) {
  if (device_outs.isTensor()) return write_out(device_outs.toTensor(), computed.toTensor());
  if (!device_outs.isTensorList()) return;
  const auto outs = device_outs.toTensorVector();
  const auto results = computed.toTensorVector();
  for (size_t i = 0; i < outs.size(); ++i) write_out(outs[i], results[i]);
}

// A host argument for a task: the caller's own tensors must not be seen by another thread.
at::Tensor for_task(const at::Tensor& tensor, Aliases& aliases, Task& task) {
  if (!on_npu(tensor)) return copy_of_host_tensor(tensor);
  if (needs_holding(tensor)) task.held.push_back(tensor.storage());
  return aliases.of(tensor);
}

}  // namespace

BoxedKernel::BoxedKernel(const c10::OperatorHandle& op, ShapeRule rule)
    : op_(op),
      name_(c10::toString(op.operator_name())),
      signature_(op),
      out_variant_(signature_.resizes_outs ? std::nullopt : find_out_variant(op)),
      rule_(rule) {
  // `index` is marked as data-dependent for the sake of masks; see must_compute_now.
  if (name_ == "aten::index.Tensor") signature_.needs_data = false;
}

bool BoxedKernel::must_compute_now(Arguments arguments) const {
  if (signature_.needs_data || is_written_on_cpu(arguments, signature_)) return true;
  if (signature_.resizes_outs && !signature_.outs.empty()) return true;
  // Shapes are foreseen for single tensors only.
  if (std::ranges::any_of(signature_.outs, [&](size_t out) { return arguments[out].isTensorList(); }))
    return true;
  if (overlaps_itself(arguments, signature_)) return true;
  return name_ == "aten::index.Tensor" && selects_by_mask(arguments[1]);
}

void BoxedKernel::operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, signature_.arguments);
  const c10::Device device = device_of(arguments);
  const c10::DeviceGuard guard(device);
  if (check_devices(op_, arguments, device) == Devices::kSeveral) {
    return op_.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
  }
  if (!must_compute_now(arguments)) {
    if (const auto shapes = shapes_.get(op_, signature_, arguments, rule_))
      return defer(*shapes, device, stack);
  }
  compute_now(device, stack);
}

void BoxedKernel::defer(const Shapes& shapes, c10::Device device, torch::jit::Stack* stack) {
  auto arguments = torch::jit::last(*stack, signature_.arguments);
  for (const auto& [argument, shape] : shapes.resized) arguments[argument].toTensor().resize_(shape.sizes);

  auto task = std::make_unique<Task>(op_, torch::jit::Stack());
  Aliases aliases;
  task->arguments.reserve(arguments.size() + 2);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (signature_.generator == i) {
      task->random.emplace(i, Draw(arguments[i].toOptional<at::Generator>(), device.index()));
      task->arguments.emplace_back();
    } else if (arguments[i].isDevice()) {
      task->arguments.emplace_back(c10::Device(c10::kCPU));
    } else {
      task->arguments.push_back(map_tensors(
          arguments[i], [&](const at::Tensor& tensor) { return for_task(tensor, aliases, *task); }));
    }
  }

  torch::jit::Stack returned;
  size_t fresh = 0;
  auto make = [&](const TensorShape& shape) {
    if (!shape.defined) return at::Tensor();
    at::Tensor result = allocate(shape, device);
    task->results.push_back(aliases.of(result));
    return result;
  };
  const auto& returns = op_.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    if (const auto written = signature_.returns_written[i]) {
      returned.push_back(arguments[*written]);
    } else if (returns[i].type()->kind() == c10::TypeKind::ListType) {
      c10::List<at::Tensor> list;
      for (const TensorShape& shape : shapes.returns[fresh]) list.push_back(make(shape));
      returned.emplace_back(std::move(list));
      ++fresh;
    } else {
      returned.emplace_back(make(shapes.returns[fresh++].front()));
    }
  }
  if (out_variant_ && task->results.size() == returns.size()) {
    // Computes straight into the results instead of copying them there.
    task->op = *out_variant_;
    for (at::Tensor& result : task->results) task->arguments.emplace_back(std::move(result));
    task->results.clear();
  }

  enqueue(name_, std::move(task));
  torch::jit::drop(*stack, signature_.arguments);
  for (c10::IValue& value : returned) stack->push_back(std::move(value));
}

void BoxedKernel::compute_now(c10::Device device, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, signature_.arguments);
  synchronize_current_stream();

  Aliases aliases;
  torch::jit::Stack on_host;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool is_out = std::ranges::find(signature_.outs, i) != signature_.outs.end();
    if (signature_.generator == i) {
      on_host.emplace_back(Draw(arguments[i].toOptional<at::Generator>(), device.index()).generator());
    } else if (arguments[i].isDevice()) {
      on_host.emplace_back(c10::Device(c10::kCPU));
    } else if (is_out) {
      // The op may resize it, which an alias cannot follow.
      on_host.push_back(map_tensors(arguments[i], [](const at::Tensor& tensor) {
        if (!on_npu(tensor)) return tensor;
        return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(c10::kCPU));
      }));
    } else {
      on_host.push_back(map_tensors(arguments[i], [&](const at::Tensor& tensor) {
        return on_npu(tensor) ? aliases.of(tensor) : tensor;
      }));
    }
  }
  torch::jit::Stack given = on_host;
  struct Touched {
    const c10::OperatorHandle& op;
    const torch::jit::Stack& arguments;
  } touched{op_, given};
  auto describe = [](void* args, EmuFacts* facts) {
    const auto* what = static_cast<const Touched*>(args);
    describe_op(what->op, what->arguments, facts);
  };
  const HostCompute watched(name_.c_str(), describe, &touched);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  op_.callBoxed(on_host);

  for (const size_t out : signature_.outs) write_outs(arguments[out], given[out]);
  auto to_device = [&](const at::Tensor& result) {
    at::Tensor copy = at::empty_strided(result.sizes(), result.strides(), result.options().device(device));
    Aliases().of(copy).copy_(result);
    return copy;
  };
  torch::jit::Stack returned;
  for (size_t i = 0; i < on_host.size(); ++i) {
    const auto written = signature_.returns_written[i];
    returned.push_back(written ? arguments[*written] : map_tensors(on_host[i], to_device));
  }
  torch::jit::drop(*stack, signature_.arguments);
  for (c10::IValue& value : returned) stack->push_back(std::move(value));
}

}  // namespace emu_aten
