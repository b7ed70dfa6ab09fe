#pragma once

#include <cstdint>
#include <string>

#include "emulator/acl_headers.h"

// What aclrtSetExceptionInfoCallback's function is told of a failed task.
struct rtExceptionInfo {
  uint32_t task_id;
  uint32_t stream_id;
  uint32_t thread_id;
  uint32_t device_id;
  uint32_t error_code;
};

namespace emu {

// On the worker of the stream whose task failed, before anybody who waits hears of it.
void tell_of_failed_task(const rtExceptionInfo& info);

}  // namespace emu
