// What a thread can ask about its last failures.

#include <algorithm>

#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"

using namespace emu;

const char* aclGetRecentErrMsg() {
  Thread& self = Thread::self();
  if (self.message.empty()) return nullptr;
  self.message_held = std::move(self.message);
  self.message.clear();
  return self.message_held.c_str();
}

aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return Thread::self().last_error; }

aclError aclrtGetLastError(aclrtLastErrLevel) {
  Thread& self = Thread::self();
  const aclError last = self.last_error;
  self.last_error = ACL_SUCCESS;
  return last;
}

aclError aclrtGetErrorVerbose(int32_t deviceId, aclrtErrorInfo* errorInfo) {
  return ENTER(aclrtGetErrorVerbose, {
    *not_null(errorInfo, "errorInfo") = Runtime::get().device(deviceId).error.verbose();
    return ACL_SUCCESS;
  });
}

aclError aclrtRepairError(int32_t deviceId, const aclrtErrorInfo* errorInfo) {
  return ENTER(aclrtRepairError, {
    Device& device = Runtime::get().device(deviceId);
    not_null(errorInfo, "errorInfo");
    if (errorInfo->tryRepair == 0 || errorInfo->errorType != ACL_RT_ERROR_MEMORY) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
           "error type %d with tryRepair %d: broken memory is what can be repaired", errorInfo->errorType,
           errorInfo->tryRepair);
    }
    const auto& places = errorInfo->detail.uceInfo;
    if (places.arraySize > ACL_RT_MEM_UCE_INFO_MAX_NUM) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "arraySize %zu; the most is %d", places.arraySize,
           ACL_RT_MEM_UCE_INFO_MAX_NUM);
    }
    device.error.repair(places.memUceInfoArray, places.arraySize);
    return ACL_SUCCESS;
  });
}

aclError aclrtGetMemUceInfo(int32_t deviceId, aclrtMemUceInfo* memUceInfoArray, size_t arraySize,
                            size_t* retSize) {
  return ENTER(aclrtGetMemUceInfo, {
    const auto broken = Runtime::get().device(deviceId).error.broken();
    *not_null(retSize, "retSize") = std::min(broken.size(), arraySize);
    if (*retSize != 0) not_null(memUceInfoArray, "memUceInfoArray");
    for (size_t i = 0; i < *retSize; ++i) {
      memUceInfoArray[i] = {};
      memUceInfoArray[i].addr = reinterpret_cast<void*>(broken[i].address);
      memUceInfoArray[i].len = broken[i].length;
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtMemUceRepair(int32_t deviceId, aclrtMemUceInfo* memUceInfoArray, size_t arraySize) {
  return ENTER(aclrtMemUceRepair, {
    Device& device = Runtime::get().device(deviceId);
    if (arraySize == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "arraySize is 0");
    device.error.repair(not_null(memUceInfoArray, "memUceInfoArray"), arraySize);
    return ACL_SUCCESS;
  });
}
