#include "emulator_aten/queue.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <dlfcn.h>

#include <cstdio>

#include "acl/acl_rt.h"
#include "emulator_aten/alias.h"
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

void run_once(void* argument) {
  std::unique_ptr<Task> task(static_cast<Task*>(argument));
  auto stack = std::move(task->arguments);
  run(*task, std::move(stack));
}

void run_again(void* argument) {
  const Task* task = static_cast<const Task*>(argument);
  run(*task, task->arguments);
}

bool is_capturing(aclrtStream stream) {
  using GetInfo = decltype(aclmdlRICaptureGetInfo);
  static auto* const get_info = reinterpret_cast<GetInfo*>(dlsym(RTLD_DEFAULT, "aclmdlRICaptureGetInfo"));
  if (!get_info) return false;
  aclmdlRICaptureStatus status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  aclmdlRI graph = nullptr;
  return get_info(stream, &status, &graph) == ACL_SUCCESS && status == ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
}

void submit(aclrtStream stream, std::unique_ptr<Task> task) {
  // A graph replays the task for as long as the graph lives, and nothing tells when it dies: never freed.
  auto* function = is_capturing(stream) ? &run_again : &run_once;
  Task* raw = task.release();
  const aclError code = aclrtLaunchHostFunc(stream, function, raw);
  if (code == ACL_SUCCESS) return;
  std::fprintf(stderr, "torch_llm_datadist.emulator: %s was refused by its stream: error %d\n",
               c10::toString(raw->op.operator_name()).c_str(), code);
  delete raw;
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
  at_npu::native::OpCommand::RunOpApiV2(name, [stream, submission]() -> int {
    submit(stream, std::move(submission->task));
    return 0;  // anything else makes torch_npu drop all later ops without a word
  });
}

void synchronize_current_stream() { c10_npu::getCurrentNPUStream().synchronize(); }

}  // namespace emu_aten
