#include "emulator_aten/quiet.h"

#include <cstdlib>

namespace emu_aten {
namespace {

constexpr char kTorchNpuSwitch[] = "TORCH_NPU_WARNING_DISABLE";
bool is_ours = false;

}  // namespace

// At a process's first allocation torch_npu says what is true of every machine without HCCL and of every SoC
// below 950. It prints past PyTorch's warning handlers, so its own switch is on until then; unless the user
// set it.
void quiet_until_first_task() {
  is_ours = std::getenv(kTorchNpuSwitch) == nullptr;
  if (is_ours) setenv(kTorchNpuSwitch, "1", 1);
}

void first_task_is_queued() {
  static const bool once = [] {
    if (is_ours) unsetenv(kTorchNpuSwitch);
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace emu_aten
