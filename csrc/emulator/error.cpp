#include "emulator/error.h"

#include <cstdarg>
#include <cstdio>

namespace emu {
namespace {

std::string format_list(const char* format, va_list args) {
  va_list again;
  va_copy(again, args);
  const int length = vsnprintf(nullptr, 0, format, again);
  va_end(again);
  std::string out(static_cast<size_t>(length > 0 ? length : 0), '\0');
  vsnprintf(out.data(), out.size() + 1, format, args);
  return out;
}

}  // namespace

std::string text(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::string out = format_list(format, args);
  va_end(args);
  return out;
}

void fail(aclError code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::string message = format_list(format, args);
  va_end(args);
  throw Error{code, std::move(message)};
}

const char* meaning(aclError code) {
  switch (code) {
    case ACL_ERROR_INVALID_PARAM:
    case ACL_ERROR_RT_PARAM_INVALID:
      return "invalid parameter";
    case ACL_ERROR_UNINITIALIZE:
      return "aclInit was not called";
    case ACL_ERROR_REPEAT_INITIALIZE:
      return "aclInit was called twice";
    case ACL_ERROR_INTERNAL_ERROR:
      return "internal error";
    case ACL_ERROR_RT_INVALID_DEVICEID:
      return "invalid device id";
    case ACL_ERROR_RT_CONTEXT_NULL:
      return "the thread has no current context";
    case ACL_ERROR_RT_STREAM_CONTEXT:
      return "the stream is not in the current context";
    case ACL_ERROR_RT_ADDR_UNALIGNED:
      return "unaligned address";
    case ACL_ERROR_RT_INVALID_HANDLE:
      return "invalid handle";
    case ACL_ERROR_RT_STREAM_ABORT:
      return "the stream was aborted";
    case ACL_ERROR_RT_DEVICE_TASK_ABORT:
      return "the device's tasks were aborted";
    case ACL_ERROR_RT_FEATURE_NOT_SUPPORT:
      return "feature not supported";
    case ACL_ERROR_RT_MEMORY_ALLOCATION:
      return "out of memory";
    case ACL_ERROR_RT_DEVICE_OOM:
      return "out of device memory";
    case ACL_ERROR_RT_NO_PERMISSION:
      return "no permission";
    case ACL_ERROR_RT_STREAM_SYNC_TIMEOUT:
      return "the wait for a stream timed out";
    case ACL_ERROR_RT_EVENT_SYNC_TIMEOUT:
      return "the wait for an event timed out";
    case ACL_ERROR_RT_IPC_ERROR:
      return "IPC error";
    case ACL_ERROR_RT_SYS_DMA:
      return "copy engine error: the address is not live device memory";
    case ACL_ERROR_RT_LINK_ERROR:
      return "link error: the peer's memory cannot be reached";
    case ACL_ERROR_RT_SUSPECT_REMOTE_ERROR:
      return "suspected remote error: the peer released the memory";
    case ACL_ERROR_BAD_ALLOC:
      return "the host is out of memory";
    case ACL_ERROR_RT_STREAM_SUBSCRIBE:
      return "the stream's subscription";
    case ACL_ERROR_RT_THREAD_SUBSCRIBE:
      return "the thread's subscription";
    case ACL_ERROR_RT_STREAM_NO_CB_REG:
      return "nobody serves the stream's callbacks";
    case ACL_ERROR_RT_STREAM_NOT_SUPPORT_OPERA:
      return "the stream is not for that";
    case ACL_ERROR_RT_WAIT_TIMEOUT:
      return "a wait on the device timed out";
    case ACL_ERROR_RT_TASK_TIMEOUT:
      return "a task timed out";
    case ACL_ERROR_RT_RESOURCE_ALLOC_FAIL:
      return "no more of this resource";
    case ACL_ERROR_RT_NO_EVENT_RESOURCE:
      return "no more events";
    case ACL_ERROR_RT_NO_STREAM_RESOURCE:
      return "no more streams";
    case ACL_ERROR_RT_NO_NOTIFY_RESOURCE:
      return "no more notifies";
    case ACL_ERROR_RT_LOST_HEARTBEAT:
      return "device lost: no heartbeat";
    case ACL_ERROR_RT_DRV_INTERNAL_ERROR:
      return "driver error";
    case ACL_ERROR_RT_MODEL_CONTEXT:
      return "the graph is of another context";
    case ACL_ERROR_RT_CAPTURE_DEPENDENCY:
      return "the capture would depend on work outside of it";
    case ACL_ERROR_RT_STREAM_UNJOINED:
      return "a stream was not joined back";
    case ACL_ERROR_RT_MODEL_CAPTURED:
      return "the graph is being captured";
    case ACL_ERROR_RT_STREAM_CAPTURED:
      return "the stream is being captured";
    case ACL_ERROR_RT_EVENT_CAPTURED:
      return "the event is part of a capture";
    case ACL_ERROR_RT_STREAM_NOT_CAPTURED:
      return "the stream is not being captured";
    case ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT:
      return "not permitted by the mode of a capture";
    case ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT:
      return "the default stream takes part in no capture";
    case ACL_ERROR_STREAM_CAPTURE_CONFLICT:
      return "two captures meet";
    case ACL_ERROR_STREAM_TASK_GROUP_STATUS:
      return "wrong state or task of a task group";
    case ACL_ERROR_STREAM_TASK_GROUP_INTR:
      return "a task group was not completed";
    case ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED:
      return "the capture began on another stream";
    case ACL_ERROR_RT_MODEL_RUNNING:
      return "the graph is running";
    case ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD:
      return "another thread began the capture";
    case ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC:
      return "an asynchronous call would wait during a capture";
    case ACL_ERROR_RT_SUB_ACLGRAPH_IS_CAPTURING:
      return "a branch is being captured";
    case ACL_ERROR_RT_MODEL_EXECUTE:
      return "a graph failed";
    case ACL_ERROR_RT_MODEL_ABORT_NORMAL:
      return "the graph was aborted";
    case ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED:
      return "the capture is spoiled";
    default:
      return "error";
  }
}

}  // namespace emu
