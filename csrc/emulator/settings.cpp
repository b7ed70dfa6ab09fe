// Values that are set and read back, and change nothing on a CPU.

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

Context& current() { return *Thread::self().context; }

std::atomic<int64_t>& system_parameter(aclSysParamOpt opt) {
  if (opt < ACL_OPT_DETERMINISTIC || opt > ACL_OPT_STRONG_CONSISTENCY) {
    fail(ACL_ERROR_INVALID_PARAM, "system parameter %d does not exist", opt);
  }
  return Runtime::get().system_parameters[opt];
}

std::atomic<uint32_t>& core_limit(std::atomic<uint32_t>* limits, aclrtDevResLimitType type) {
  if (type != ACL_RT_DEV_RES_CUBE_CORE && type != ACL_RT_DEV_RES_VECTOR_CORE) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "resource type %d is neither 0 (cube) nor 1 (vector)", type);
  }
  return limits[type];
}

void reset_limits(std::atomic<uint32_t>* limits) {
  limits[ACL_RT_DEV_RES_CUBE_CORE].store(Device::kCubeCores);
  limits[ACL_RT_DEV_RES_VECTOR_CORE].store(Device::kVectorCores);
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) {
  return ENTER(aclrtSetDeviceSatMode, {
    current().device.saturation_mode.store(mode);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetDeviceSatMode(aclrtFloatOverflowMode* mode) {
  return ENTER(aclrtGetDeviceSatMode, {
    *not_null(mode, "mode") = static_cast<aclrtFloatOverflowMode>(current().device.saturation_mode.load());
    return ACL_SUCCESS;
  });
}

aclError aclrtSetOpExecuteTimeOut(uint32_t timeout) {
  return ENTER(aclrtSetOpExecuteTimeOut, {
    Runtime::get().execute_timeout_us.store(uint64_t{timeout} * 1'000'000);
    return ACL_SUCCESS;
  });
}

aclError aclrtSetOpExecuteTimeOutWithMs(uint32_t timeout) {
  return ENTER(aclrtSetOpExecuteTimeOutWithMs, {
    Runtime::get().execute_timeout_us.store(uint64_t{timeout} * 1'000);
    return ACL_SUCCESS;
  });
}

aclError aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t* actualTimeout) {
  return ENTER(aclrtSetOpExecuteTimeOutV2, {
    Runtime::get().execute_timeout_us.store(timeout);
    if (actualTimeout != nullptr) *actualTimeout = timeout;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetOpExecuteTimeout(uint32_t* const timeoutMs) {
  return ENTER(aclrtGetOpExecuteTimeout, {
    *not_null(timeoutMs, "timeoutMs") =
        static_cast<uint32_t>(Runtime::get().execute_timeout_us.load() / 1'000);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetOpTimeOutInterval(uint64_t* interval) {
  return ENTER(aclrtGetOpTimeOutInterval, {
    *not_null(interval, "interval") = 1;
    return ACL_SUCCESS;
  });
}

aclError aclrtSetOpWaitTimeout(uint32_t timeout) {
  return ENTER(aclrtSetOpWaitTimeout, {
    Runtime::get().wait_timeout_s.store(timeout);
    return ACL_SUCCESS;
  });
}

aclError aclrtSetSysParamOpt(aclSysParamOpt opt, int64_t value) {
  return ENTER(aclrtSetSysParamOpt, {
    system_parameter(opt).store(value);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetSysParamOpt(aclSysParamOpt opt, int64_t* value) {
  return ENTER(aclrtGetSysParamOpt, {
    *not_null(value, "value") = system_parameter(opt).load();
    return ACL_SUCCESS;
  });
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt opt, int64_t value) {
  return ENTER(aclrtCtxSetSysParamOpt, {
    system_parameter(opt).store(value);
    return ACL_SUCCESS;
  });
}

aclError aclrtCtxGetSysParamOpt(aclSysParamOpt opt, int64_t* value) {
  return ENTER(aclrtCtxGetSysParamOpt, {
    *not_null(value, "value") = system_parameter(opt).load();
    return ACL_SUCCESS;
  });
}

aclError aclrtGetDeviceResLimit(int32_t deviceId, aclrtDevResLimitType type, uint32_t* value) {
  return ENTER(aclrtGetDeviceResLimit, {
    *not_null(value, "value") = core_limit(Runtime::get().device(deviceId).core_limits, type).load();
    return ACL_SUCCESS;
  });
}

aclError aclrtSetDeviceResLimit(int32_t deviceId, aclrtDevResLimitType type, uint32_t value) {
  return ENTER(aclrtSetDeviceResLimit, {
    core_limit(Runtime::get().device(deviceId).core_limits, type).store(value);
    return ACL_SUCCESS;
  });
}

aclError aclrtResetDeviceResLimit(int32_t deviceId) {
  return ENTER(aclrtResetDeviceResLimit, {
    reset_limits(Runtime::get().device(deviceId).core_limits);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetStreamResLimit(aclrtStream stream, aclrtDevResLimitType type, uint32_t* value) {
  return ENTER(aclrtGetStreamResLimit, {
    *not_null(value, "value") = core_limit(current().stream(stream)->core_limits, type).load();
    return ACL_SUCCESS;
  });
}

aclError aclrtSetStreamResLimit(aclrtStream stream, aclrtDevResLimitType type, uint32_t value) {
  return ENTER(aclrtSetStreamResLimit, {
    core_limit(current().stream(stream)->core_limits, type).store(value);
    return ACL_SUCCESS;
  });
}

aclError aclrtResetStreamResLimit(aclrtStream stream) {
  return ENTER(aclrtResetStreamResLimit, {
    reset_limits(current().stream(stream)->core_limits);
    return ACL_SUCCESS;
  });
}

aclError aclrtUseStreamResInCurrentThread(aclrtStream stream) {
  return ENTER(aclrtUseStreamResInCurrentThread, {
    Thread::self().limits_of = current().stream(stream);
    return ACL_SUCCESS;
  });
}

aclError aclrtUnuseStreamResInCurrentThread(aclrtStream stream) {
  return ENTER(aclrtUnuseStreamResInCurrentThread, {
    const auto ended = current().stream(stream);
    if (auto& limits = Thread::self().limits_of; limits.lock() == ended) limits.reset();
    return ACL_SUCCESS;
  });
}

aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t* value) {
  return ENTER(aclrtGetResInCurrentThread, {
    const auto stream = Thread::self().limits_of.lock();
    auto* limits = stream != nullptr ? stream->core_limits : current().device.core_limits;
    *not_null(value, "value") = core_limit(limits, type).load();
    return ACL_SUCCESS;
  });
}
