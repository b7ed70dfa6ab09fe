// The kernel behind nearly every aten op on an emulated NPU: the CPU's, over the same bytes.
#pragma once

#include <ATen/core/boxing/OperatorKernel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <string>

#include "emulator_aten/shapes.h"
#include "emulator_aten/signature.h"

namespace emu_aten {

class BoxedKernel : public c10::OperatorKernel {
 public:
  explicit BoxedKernel(const c10::OperatorHandle& op, ShapeRule rule = nullptr);

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack);

 private:
  // Queues the op on the current stream and returns at once.
  void defer(const Shapes& shapes, c10::Device device, torch::jit::Stack* stack);
  // Waits for the stream, computes here and now: for ops whose results' shapes only computing tells.
  void compute_now(c10::Device device, torch::jit::Stack* stack);
  bool must_compute_now(Arguments arguments) const;

  c10::OperatorHandle op_;
  std::string name_;
  Signature signature_;
  std::optional<c10::OperatorHandle> out_variant_;
  ShapeRule rule_;
  ShapeCache shapes_;
};

}  // namespace emu_aten
