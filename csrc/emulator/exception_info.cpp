#include "emulator/exception_info.h"

#include <atomic>

#include "emulator/entry.h"

namespace emu {
namespace {

std::atomic<aclrtExceptionInfoCallback> callback{nullptr};

constexpr uint32_t kNone = 0xFFFFFFFF;  // what the getters answer without an info

}  // namespace

void tell_of_failed_task(const rtExceptionInfo& info) {
  const auto told = callback.load();
  if (told == nullptr) return;
  rtExceptionInfo copy = info;
  told(&copy);
}

}  // namespace emu

using namespace emu;

aclError aclrtSetExceptionInfoCallback(aclrtExceptionInfoCallback function) {
  return ENTER(aclrtSetExceptionInfoCallback, {
    callback.store(function);  // null: nobody is told any more
    return ACL_SUCCESS;
  });
}

uint32_t aclrtGetTaskIdFromExceptionInfo(const aclrtExceptionInfo* info) {
  return info == nullptr ? kNone : info->task_id;
}

uint32_t aclrtGetStreamIdFromExceptionInfo(const aclrtExceptionInfo* info) {
  return info == nullptr ? kNone : info->stream_id;
}

uint32_t aclrtGetThreadIdFromExceptionInfo(const aclrtExceptionInfo* info) {
  return info == nullptr ? kNone : info->thread_id;
}

uint32_t aclrtGetDeviceIdFromExceptionInfo(const aclrtExceptionInfo* info) {
  return info == nullptr ? kNone : info->device_id;
}

uint32_t aclrtGetErrorCodeFromExceptionInfo(const aclrtExceptionInfo* info) {
  return info == nullptr ? kNone : info->error_code;
}
