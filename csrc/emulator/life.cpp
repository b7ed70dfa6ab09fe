// aclInit, aclFinalize and the calls around them that a CPU has nothing to do for.

#include "emulator/entry.h"
#include "emulator/runtime.h"

using namespace emu;

aclError aclInit(const char*) {
  return ENTER(aclInit, {
    if (Runtime::get().initialise() > 1) fail(ACL_ERROR_REPEAT_INITIALIZE, "the process called it before");
    return ACL_SUCCESS;
  });
}

aclError aclFinalize() {
  return ENTER(aclFinalize, {
    if (!Runtime::get().initialised())
      fail(ACL_ERROR_REPEAT_FINALIZE, "aclInit was not called, or this was before");
    Runtime::get().finalise_all();
    return ACL_SUCCESS;
  });
}

aclError aclFinalizeReference(uint64_t* refCount) {
  return ENTER(aclFinalizeReference, {
    if (!Runtime::get().initialised())
      fail(ACL_ERROR_REPEAT_FINALIZE, "aclInit was not called, or this was before");
    const uint64_t left = Runtime::get().finalise();
    if (refCount != nullptr) *refCount = left;
    return ACL_SUCCESS;
  });
}

void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

aclError aclmdlInitDump() {
  return ENTER(aclmdlInitDump, { return ACL_SUCCESS; });
}

aclError aclmdlSetDump(const char*) {
  return ENTER(aclmdlSetDump, { return ACL_SUCCESS; });
}

aclError aclmdlFinalizeDump() {
  return ENTER(aclmdlFinalizeDump, { return ACL_SUCCESS; });
}
