// Sends an op to another of its kernels: where torch_npu overrides what PyTorch composes out of simpler ops.
#pragma once

#include <ATen/core/boxing/OperatorKernel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace emu_aten {

class Reroute : public c10::OperatorKernel {
 public:
  explicit Reroute(c10::DispatchKey to) : to_(to) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    op.callBoxedForDispatchKey(to_, *stack);
  }

 private:
  c10::DispatchKey to_;
};

class Refuse : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, op.operator_name(),
        " is not available on an emulated NPU: it has no CPU kernel to emulate it with");
  }
};

}  // namespace emu_aten
