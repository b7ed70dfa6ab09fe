// One device per op, as the kernels of an NPU need it: they cannot read what lies on the host or on another
// device, while a CPU could read it all.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace emu_aten {

enum class Devices {
  kOne,
  kSeveral,  // and the op is one over lists, which PyTorch takes apart
};

// Raises PyTorch's own error for an argument that is on another device than the rest. Numbers in tensors'
// clothes may lie on the host, and so may what an op documents to take from there (indices, lengths).
Devices check_devices(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
                      c10::Device device);

}  // namespace emu_aten
