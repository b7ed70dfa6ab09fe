// Which bytes of device memory an op reads and writes, for those who watch the emulated runtime.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include "emulator/emu.h"

namespace emu_aten {

// `arguments` are aliases of device tensors (and host tensors, which are left out). Never says more than is
// true: of ops that pick elements by an index, the rows that they pick, or else nothing.
void describe_op(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, EmuFacts* facts);

void describe_written(const at::Tensor& tensor, EmuFacts* facts);

}  // namespace emu_aten
