#include <sys/types.h>
#include <unistd.h>

#include <cstring>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

constexpr int64_t kL2Bytes = int64_t{192} << 20;

Device& device_of_thread() {
  const auto& context = Thread::self().context;
  if (context == nullptr || context->destroyed()) {
    fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no current context; call aclrtSetDevice first");
  }
  return context->device;
}

int64_t attribute(const Device& device, aclrtDevAttr attr) {
  switch (attr) {
    case ACL_DEV_ATTR_AICPU_CORE_NUM:
      return 7;
    case ACL_DEV_ATTR_AICORE_CORE_NUM:
    case ACL_DEV_ATTR_CUBE_CORE_NUM:
      return Device::kCubeCores;
    case ACL_DEV_ATTR_VECTOR_CORE_NUM:
      return Device::kVectorCores;
    case ACL_DEV_ATTR_UBUF_PER_VECTOR_CORE:
      return 192 << 10;
    case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE:
      return static_cast<int64_t>(device.memory);
    case ACL_DEV_ATTR_L2_CACHE_SIZE:
      return kL2Bytes;
    case ACL_DEV_ATTR_SMP_ID:
      return 0;
    case ACL_DEV_ATTR_PHY_CHIP_ID:
      return device.physical_id;
    case ACL_DEV_ATTR_HD_CONNECT_TYPE:
      return ACL_HOST_DEVICE_CONNECT_TYPE_PCIE;
    case ACL_DEV_ATTR_IS_VIRTUAL:
      return 0;
    case ACL_DEV_ATTR_SUPER_POD_ID:
      if (!Runtime::get().config.profile.has_fabric())
        fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "this machine is part of no SuperPod; Atlas A3 is");
      return static_cast<int64_t>(Runtime::get().config.super_pod);
    default:
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "device attribute %d is not emulated", attr);
  }
}

aclError same_number(int32_t from, int32_t* to) {
  *not_null(to, "the output") = Runtime::get().device(from).id;
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtGetDeviceCount(uint32_t* count) {
  return ENTER(aclrtGetDeviceCount, {
    *not_null(count, "count") = static_cast<uint32_t>(Runtime::get().devices.size());
    return ACL_SUCCESS;
  });
}

aclError aclrtSetDevice(int32_t deviceId) {
  return ENTER(aclrtSetDevice, {
    Device& device = Runtime::get().device(deviceId);
    Runtime::get().forbid_after_fork();
    Thread::self().context = device.set();
    return ACL_SUCCESS;
  });
}

aclError aclrtResetDevice(int32_t deviceId) {
  return ENTER(aclrtResetDevice, {
    Runtime::get().device(deviceId).reset(false);
    return ACL_SUCCESS;
  });
}

aclError aclrtResetDeviceForce(int32_t deviceId) {
  return ENTER(aclrtResetDeviceForce, {
    Runtime::get().device(deviceId).reset(true);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetDevice(int32_t* deviceId) {
  return ENTER(aclrtGetDevice, {
    *not_null(deviceId, "deviceId") = device_of_thread().id;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetRunMode(aclrtRunMode* runMode) {
  return ENTER(aclrtGetRunMode, {
    *not_null(runMode, "runMode") = ACL_HOST;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetPrimaryCtxState(int32_t deviceId, uint32_t* flags, int32_t* active) {
  return ENTER(aclrtGetPrimaryCtxState, {
    if (flags != nullptr) *flags = 0;
    *not_null(active, "active") = Runtime::get().device(deviceId).primary() != nullptr ? 1 : 0;
    return ACL_SUCCESS;
  });
}

aclError aclrtSynchronizeDevice() {
  return ENTER(aclrtSynchronizeDevice, {
    Thread::self().context->synchronize(-1);
    return ACL_SUCCESS;
  });
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
  return ENTER(aclrtSynchronizeDeviceWithTimeout, {
    if (timeout < -1) fail(ACL_ERROR_RT_PARAM_INVALID, "timeout %d ms; -1 waits for ever", timeout);
    Thread::self().context->synchronize(timeout);
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceCanAccessPeer(int32_t* canAccessPeer, int32_t deviceId, int32_t peerDeviceId) {
  return ENTER(aclrtDeviceCanAccessPeer, {
    not_null(canAccessPeer, "canAccessPeer");
    *canAccessPeer = &Runtime::get().device(deviceId) != &Runtime::get().device(peerDeviceId) ? 1 : 0;
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceEnablePeerAccess(int32_t peerDeviceId, uint32_t flags) {
  return ENTER(aclrtDeviceEnablePeerAccess, {
    if (flags != 0) fail(ACL_ERROR_RT_PARAM_INVALID, "flags %u; only 0 is defined", flags);
    Device& self = device_of_thread();
    const Device& peer = Runtime::get().device(peerDeviceId);
    if (&self == &peer) fail(ACL_ERROR_RT_PARAM_INVALID, "device %d is the current device", peerDeviceId);
    self.peers.fetch_or(uint64_t{1} << peer.id);
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceDisablePeerAccess(int32_t peerDeviceId) {
  return ENTER(aclrtDeviceDisablePeerAccess, {
    const Device& peer = Runtime::get().device(peerDeviceId);
    device_of_thread().peers.fetch_and(~(uint64_t{1} << peer.id));
    return ACL_SUCCESS;
  });
}

aclError aclrtDevicePeerAccessStatus(int32_t deviceId, int32_t peerDeviceId, int32_t* status) {
  return ENTER(aclrtDevicePeerAccessStatus, {
    const Device& peer = Runtime::get().device(peerDeviceId);
    *not_null(status, "status") = Runtime::get().device(deviceId).may_access(peer.id) ? 1 : 0;
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  return ENTER(aclrtDeviceGetBareTgid, {
    *not_null(pid, "pid") = getpid();
    return ACL_SUCCESS;
  });
}

aclError aclrtGetDeviceInfo(uint32_t deviceId, aclrtDevAttr attr, int64_t* value) {
  return ENTER(aclrtGetDeviceInfo, {
    *not_null(value, "value") = attribute(Runtime::get().device(static_cast<int32_t>(deviceId)), attr);
    return ACL_SUCCESS;
  });
}

aclError aclGetDeviceCapability(uint32_t deviceId, aclDeviceInfo deviceInfo, int64_t* value) {
  return ENTER(aclGetDeviceCapability, {
    not_null(value, "value");
    Runtime::get().device(static_cast<int32_t>(deviceId));
    // Never zero: callers divide by these.
    switch (deviceInfo) {
      case ACL_DEVICE_INFO_AI_CORE_NUM:
        *value = Device::kCubeCores;
        break;
      case ACL_DEVICE_INFO_VECTOR_CORE_NUM:
        *value = Device::kVectorCores;
        break;
      case ACL_DEVICE_INFO_L2_SIZE:
        *value = kL2Bytes;
        break;
      default:
        fail(ACL_ERROR_INVALID_PARAM, "device info %d does not exist", deviceInfo);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceGetStreamPriorityRange(int32_t* leastPriority, int32_t* greatestPriority) {
  return ENTER(aclrtDeviceGetStreamPriorityRange, {
    *not_null(leastPriority, "leastPriority") = 7;
    *not_null(greatestPriority, "greatestPriority") = 0;
    return ACL_SUCCESS;
  });
}

aclError aclrtDeviceGetUuid(int32_t deviceId, aclrtUuid* uuid) {
  return ENTER(aclrtDeviceGetUuid, {
    std::memcpy(not_null(uuid, "uuid")->bytes, "emulated NPU\0\0\0", 16);
    uuid->bytes[15] = static_cast<char>(Runtime::get().device(deviceId).physical_id);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetLogicDevIdByUserDevId(const int32_t userDevid, int32_t* const logicDevId) {
  return ENTER(aclrtGetLogicDevIdByUserDevId, { return same_number(userDevid, logicDevId); });
}

aclError aclrtGetUserDevIdByLogicDevId(const int32_t logicDevId, int32_t* const userDevid) {
  return ENTER(aclrtGetUserDevIdByLogicDevId, { return same_number(logicDevId, userDevid); });
}

aclError aclrtGetPhyDevIdByLogicDevId(const int32_t logicDevId, int32_t* const phyDevId) {
  return ENTER(aclrtGetPhyDevIdByLogicDevId, {
    *not_null(phyDevId, "phyDevId") = Runtime::get().device(logicDevId).physical_id;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetLogicDevIdByPhyDevId(const int32_t phyDevId, int32_t* const logicDevId) {
  return ENTER(aclrtGetLogicDevIdByPhyDevId, {
    not_null(logicDevId, "logicDevId");
    for (const auto& device : Runtime::get().devices) {
      if (device->physical_id != phyDevId) continue;
      *logicDevId = device->id;
      return ACL_SUCCESS;
    }
    fail(ACL_ERROR_RT_INVALID_DEVICEID, "this process does not see physical device %d", phyDevId);
  });
}

aclError aclrtQueryDeviceStatus(int32_t deviceId, aclrtDeviceStatus* deviceStatus) {
  return ENTER(aclrtQueryDeviceStatus, {
    Runtime::get().device(deviceId);
    *not_null(deviceStatus, "deviceStatus") = ACL_RT_DEVICE_STATUS_NORMAL;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetDeviceUtilizationRate(int32_t deviceId, aclrtUtilizationInfo* utilizationInfo) {
  return ENTER(aclrtGetDeviceUtilizationRate, {
    not_null(utilizationInfo, "utilizationInfo");
    Device& device = Runtime::get().device(deviceId);
    utilizationInfo->cubeUtilization = 0;
    utilizationInfo->vectorUtilization = 0;
    utilizationInfo->aicpuUtilization = 0;
    utilizationInfo->memoryUtilization = static_cast<int32_t>(device.in_use() * 100 / device.memory);
    return ACL_SUCCESS;
  });
}
