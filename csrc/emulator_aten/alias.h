// CPU tensors that share the bytes of device tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <functional>
#include <utility>

namespace emu_aten {

inline bool on_npu(const at::Tensor& tensor) { return tensor.defined() && tensor.is_privateuseone(); }

// Views of one storage become views of one CPU storage, so that CPU kernels still see which arguments
// overlap. An alias does not own the bytes: that is the business of whoever holds the device tensor.
class Aliases {
 public:
  at::Tensor of(const at::Tensor& device);

 private:
  c10::SmallVector<std::pair<c10::StorageImpl*, c10::Storage>, 4> storages_;
};

// A tensor of our own with the same value. Never hand the caller's on: its Python object would have to be
// released with the GIL held, which the thread that releases a task must not wait for (nor may a meta kernel
// written in Python give it one). And the caller may change it as soon as the op returned.
at::Tensor copy_of_host_tensor(const at::Tensor& tensor);

// Calls `map` on every tensor in the value, also inside lists and optionals, and returns the mapped value.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map);

}  // namespace emu_aten
