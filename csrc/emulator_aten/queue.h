// Work for an emulated device: CPU kernels that run in stream order, long after the op that queued them
// returned.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "emulator_aten/random.h"

namespace emu_aten {

struct Task {
  Task(const c10::OperatorHandle& op, torch::jit::Stack arguments)
      : op(op), arguments(std::move(arguments)) {}

  c10::OperatorHandle op;
  torch::jit::Stack arguments;                    // all on the CPU
  std::optional<std::pair<size_t, Draw>> random;  // the argument that gets a generator at each run
  std::vector<at::Tensor>
      results;  // where the op's fresh results go, in order; empty if it writes its arguments
  std::vector<c10::Storage> held;  // device storages, until the task is on the stream
};

// Queues the task on the current stream of the current device. The name must never go away.
void enqueue(const std::string& name, std::unique_ptr<Task> task);

// Waits until everything queued on the current stream has run.
void synchronize_current_stream();

}  // namespace emu_aten
