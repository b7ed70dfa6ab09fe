#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

using namespace emu;

aclError aclrtCreateContext(aclrtContext* context, int32_t deviceId) {
  return ENTER(aclrtCreateContext, {
    not_null(context, "context");
    Runtime::get().forbid_after_fork();
    auto made = Context::create(Runtime::get().device(deviceId), false);
    Thread::self().context = made;
    *context = made->handle;
    return ACL_SUCCESS;
  });
}

aclError aclrtDestroyContext(aclrtContext context) {
  return ENTER(aclrtDestroyContext, {
    auto ended = Runtime::get().contexts.get(context);
    if (ended->primary) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "the primary context of device %d ends with aclrtResetDevice",
           ended->device.id);
    }
    if (Thread::self().in_host_function) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "called from inside a host function");
    }
    ended->destroy();
    if (Thread::self().context == ended) Thread::self().context = nullptr;
    return ACL_SUCCESS;
  });
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  return ENTER(aclrtSetCurrentContext, {
    Thread::self().context = Runtime::get().contexts.get(not_null(context, "context"));
    return ACL_SUCCESS;
  });
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  return ENTER(aclrtGetCurrentContext, {
    not_null(context, "context");
    const auto& current = Thread::self().context;
    if (current == nullptr || current->destroyed()) {
      fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no current context");
    }
    *context = current->handle;
    return ACL_SUCCESS;
  });
}

aclError aclrtCtxGetCurrentDefaultStream(aclrtStream* stream) {
  return ENTER(aclrtCtxGetCurrentDefaultStream, {
    *not_null(stream, "stream") = Thread::self().context->stream(nullptr)->handle;
    return ACL_SUCCESS;
  });
}
