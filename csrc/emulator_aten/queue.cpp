#include "emulator_aten/queue.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <cstdio>

#include "acl/acl_rt.h"
#include "emulator_aten/alias.h"
#include "emulator_aten/footprint.h"
#include "emulator_aten/quiet.h"
#include "emulator_aten/runtime.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

namespace emu_aten {
namespace {

void store(const at::Tensor& result, const at::Tensor& destination, const Task& task) {
  TORCH_CHECK(result.sizes() == destination.sizes() && result.scalar_type() == destination.scalar_type(),
              "the emulator expected ", destination.sizes(), " ", destination.scalar_type(), " from ",
              task.op.operator_name(), ", its CPU kernel gave ", result.sizes(), " ", result.scalar_type());
  destination.copy_(result);
}

// Stack by value: a captured task runs again, and the op eats its arguments.
void compute(const Task& task, torch::jit::Stack stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  task.op.callBoxed(stack);
  if (task.results.empty()) return;

  size_t next = 0;
  auto take = [&](const at::Tensor& result) {
    TORCH_CHECK(next < task.results.size(), task.op.operator_name(),
                " gave more tensors than the emulator expected");
    store(result, task.results[next++], task);
    return result;
  };
  for (const c10::IValue& value : stack) map_tensors(value, take);
}

void run(const Task& task, torch::jit::Stack stack) noexcept {
  try {
    compute(task, std::move(stack));
  } catch (const std::exception& error) {
    // Nobody waits for this thread: without a word here and a failed stream the error would be lost.
    std::fprintf(stderr, "torch_llm_datadist.emulator: %s failed on the device: %s\n",
                 c10::toString(task.op.operator_name()).c_str(), error.what());
    fail_running_task();
  }
}

// A task of a graph runs again, so its arguments stay.
void run(void* argument) {
  const Task* task = static_cast<const Task*>(argument);
  torch::jit::Stack stack = task->arguments;
  if (task->random) stack[task->random->first] = task->random->second.generator();
  run(*task, std::move(stack));
}

void release(void* argument) { delete static_cast<Task*>(argument); }

void describe(void* argument, EmuFacts* facts) {
  const Task* task = static_cast<const Task*>(argument);
  describe_op(task->op, task->arguments, facts);
  for (const at::Tensor& result : task->results) describe_written(result, facts);
}

void submit(aclrtStream stream, const char* name, std::unique_ptr<Task> task) {
  const aclError code = launch_compute(stream, name, &run, &describe, task.release(), &release);
  if (code == ACL_SUCCESS) return;
  std::fprintf(stderr, "torch_llm_datadist.emulator: %s was refused by its stream: error %d\n", name, code);
}

}  // namespace

void enqueue(const std::string& name, std::unique_ptr<Task> task) {
  first_task_is_queued();
  // stream(false): stream() would wait until the task queue is empty.
  const aclrtStream stream = c10_npu::getCurrentNPUStream().stream(false);
  // What the task holds stays in this closure: a stream's thread must not free device memory.
  struct Submission {
    std::vector<c10::Storage> held;
    std::unique_ptr<Task> task;
  };
  auto submission = std::make_shared<Submission>(std::move(task->held), std::move(task));
  at_npu::native::OpCommand::RunOpApiV2(name, [stream, submission, name = name.c_str()]() -> int {
    submit(stream, name, std::move(submission->task));
    return 0;  // anything else makes torch_npu drop all later ops without a word
  });
}

void synchronize_current_stream() { c10_npu::getCurrentNPUStream().synchronize(); }

}  // namespace emu_aten
