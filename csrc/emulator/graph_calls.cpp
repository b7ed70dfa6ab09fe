// Graph capture is not emulated yet: beginning one is refused (unsupported.cpp), and no stream is ever in
// one.

#include "emulator/context.h"
#include "emulator/entry.h"

using namespace emu;

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus* status, aclmdlRI* modelRI) {
  return ENTER(aclmdlRICaptureGetInfo, {
    Thread::self().context->stream(stream);
    *not_null(status, "status") = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    if (modelRI != nullptr) *modelRI = nullptr;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  return ENTER(aclmdlRICaptureThreadExchangeMode, {
    const aclmdlRICaptureMode given = *not_null(mode, "mode");
    *mode = static_cast<aclmdlRICaptureMode>(Thread::self().capture_mode);
    Thread::self().capture_mode = given;
    return ACL_SUCCESS;
  });
}
