#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr uint32_t kStreamFlags = ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC | ACL_STREAM_PERSISTENT |
                                  ACL_STREAM_HUGE | ACL_STREAM_CPU_SCHEDULE | ACL_STREAM_DEVICE_USE_ONLY;

Context& current() { return *Thread::self().context; }

std::shared_ptr<Stream> own_stream(aclrtStream handle) {
  if (handle == nullptr)
    fail(ACL_ERROR_RT_PARAM_INVALID, "the default stream cannot be destroyed or stopped");
  auto stream = current().stream(handle);
  stream->refuse_while_capturing();
  return stream;
}

// For calls that wait for a stream or ask about it.
std::shared_ptr<Stream> live_stream(aclrtStream handle) {
  auto stream = current().stream(handle);
  stream->refuse_while_capturing();
  if ((stream->flags & ACL_STREAM_PERSISTENT) != 0) {
    fail(ACL_ERROR_RT_STREAM_NOT_SUPPORT_OPERA,
         "stream %d is ACL_STREAM_PERSISTENT: not to be waited for or asked", stream->id);
  }
  return stream;
}

aclError set_failure_mode(Stream& stream, uint64_t mode) {
  if (mode > ACL_STOP_ON_FAILURE)
    fail(ACL_ERROR_RT_PARAM_INVALID, "failure mode %lu is neither 0 nor 1", mode);
  if (stream.failure_mode_set.exchange(true)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "the failure mode of stream %d was set before", stream.id);
  }
  stream.failure_mode.store(mode);
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtCreateStream(aclrtStream* stream) {
  return ENTER(aclrtCreateStream, {
    *not_null(stream, "stream") = current().add_stream(0, 0)->handle;
    return ACL_SUCCESS;
  });
}

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t priority, uint32_t flag) {
  return ENTER(aclrtCreateStreamWithConfig, {
    not_null(stream, "stream");
    if ((flag & ~kStreamFlags) != 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x has bits outside 0x%x", flag, kStreamFlags);
    }
    *stream = current().add_stream(priority, flag)->handle;
    return ACL_SUCCESS;
  });
}

aclError aclrtDestroyStream(aclrtStream stream) {
  return ENTER(aclrtDestroyStream, {
    auto ended = own_stream(stream);
    try {
      ended->synchronize(std::nullopt);
    } catch (const Error&) {
      // A stopped stream has nothing to wait for, and must be possible to destroy.
    }
    ended->close();
    current().remove_stream(ended);
    return ACL_SUCCESS;
  });
}

aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return ENTER(aclrtDestroyStreamForce, {
    auto ended = own_stream(stream);
    ended->close();
    current().remove_stream(ended);
    return ACL_SUCCESS;
  });
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  return ENTER(aclrtSynchronizeStream, {
    live_stream(stream)->synchronize(std::nullopt);
    return ACL_SUCCESS;
  });
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
  return ENTER(aclrtSynchronizeStreamWithTimeout, {
    if (timeout < -1) fail(ACL_ERROR_RT_PARAM_INVALID, "timeout %d ms; -1 waits for ever", timeout);
    live_stream(stream)->synchronize(deadline_in_ms(timeout));
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return ENTER(aclrtStreamQuery, {
    not_null(status, "status");
    *status = live_stream(stream)->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamAbort(aclrtStream stream) {
  return ENTER(aclrtStreamAbort, {
    live_stream(stream)->abort();
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamStop(aclrtStream stream) {
  return ENTER(aclrtStreamStop, {
    own_stream(stream)->halt();
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceTaskAbort(int32_t deviceId, uint32_t) {
  return ENTER(aclrtDeviceTaskAbort, {
    Runtime::get().device(deviceId);
    for (const auto& stream : Runtime::get().streams.all()) {
      if (stream->context().device.id == deviceId) stream->abort(ACL_ERROR_RT_DEVICE_TASK_ABORT);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t* streamId) {
  return ENTER(aclrtStreamGetId, {
    *not_null(streamId, "streamId") = current().stream(stream)->id;
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamGetPriority(aclrtStream stream, uint32_t* priority) {
  return ENTER(aclrtStreamGetPriority, {
    *not_null(priority, "priority") = current().stream(stream)->priority;
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamGetFlags(aclrtStream stream, uint32_t* flags) {
  return ENTER(aclrtStreamGetFlags, {
    *not_null(flags, "flags") = current().stream(stream)->flags;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetStreamAvailableNum(uint32_t* streamCount) {
  return ENTER(aclrtGetStreamAvailableNum, {
    const int32_t used = current().device.streams.load();
    *not_null(streamCount, "streamCount") = static_cast<uint32_t>(Device::kMaxStreams - used);
    return ACL_SUCCESS;
  });
}

aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) {
  return ENTER(aclrtSetStreamFailureMode, { return set_failure_mode(*current().stream(stream), mode); });
}

aclError aclrtSetStreamAttribute(aclrtStream stream, aclrtStreamAttr stmAttrType,
                                 aclrtStreamAttrValue* value) {
  return ENTER(aclrtSetStreamAttribute, {
    not_null(value, "value");
    auto on = current().stream(stream);
    switch (stmAttrType) {
      case ACL_STREAM_ATTR_FAILURE_MODE:
        return set_failure_mode(*on, value->failureMode);
      case ACL_STREAM_ATTR_FLOAT_OVERFLOW_CHECK:
        on->overflow_check.store(value->overflowSwitch);
        break;
      case ACL_STREAM_ATTR_USER_CUSTOM_TAG:
        on->custom_tag.store(value->userCustomTag);
        break;
      case ACL_STREAM_ATTR_CACHE_OP_INFO:
        on->cache_op_info.store(value->cacheOpInfoSwitch);
        break;
      default:
        fail(ACL_ERROR_RT_PARAM_INVALID, "attribute %d cannot be set", stmAttrType);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtGetStreamAttribute(aclrtStream stream, aclrtStreamAttr stmAttrType,
                                 aclrtStreamAttrValue* value) {
  return ENTER(aclrtGetStreamAttribute, {
    not_null(value, "value");
    auto on = current().stream(stream);
    switch (stmAttrType) {
      case ACL_STREAM_ATTR_FAILURE_MODE:
        value->failureMode = on->failure_mode.load();
        break;
      case ACL_STREAM_ATTR_FLOAT_OVERFLOW_CHECK:
        value->overflowSwitch = on->overflow_check.load();
        break;
      case ACL_STREAM_ATTR_USER_CUSTOM_TAG:
        value->userCustomTag = on->custom_tag.load();
        break;
      case ACL_STREAM_ATTR_CACHE_OP_INFO:
        value->cacheOpInfoSwitch = on->cache_op_info.load();
        break;
      case ACL_STREAM_ATTR_PRIORITY:
        value->streamPriority = on->priority;
        break;
      default:
        fail(ACL_ERROR_RT_PARAM_INVALID, "attribute %d does not exist", stmAttrType);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag) {
  return ENTER(aclrtSetStreamOverflowSwitch, {
    current().stream(stream)->overflow_check.store(flag);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t* flag) {
  return ENTER(aclrtGetStreamOverflowSwitch, {
    *not_null(flag, "flag") = current().stream(stream)->overflow_check.load();
    return ACL_SUCCESS;
  });
}
