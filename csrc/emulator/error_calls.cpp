// What a thread can ask about its last failures.

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
    Runtime::get().device(deviceId);
    *not_null(errorInfo, "errorInfo") = {};
    errorInfo->errorType = ACL_RT_NO_ERROR;
    return ACL_SUCCESS;
  });
}

aclError aclrtRepairError(int32_t deviceId, const aclrtErrorInfo* errorInfo) {
  return ENTER(aclrtRepairError, {
    Runtime::get().device(deviceId);
    not_null(errorInfo, "errorInfo");
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "an emulated device has nothing that can be repaired");
  });
}

aclError aclrtGetMemUceInfo(int32_t deviceId, aclrtMemUceInfo*, size_t, size_t* retSize) {
  return ENTER(aclrtGetMemUceInfo, {
    Runtime::get().device(deviceId);
    *not_null(retSize, "retSize") = 0;
    return ACL_SUCCESS;
  });
}

aclError aclrtMemUceRepair(int32_t deviceId, aclrtMemUceInfo*, size_t) {
  return ENTER(aclrtMemUceRepair, {
    Runtime::get().device(deviceId);
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "an emulated device has nothing that can be repaired");
  });
}
