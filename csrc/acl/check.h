// torch_npu's NPU_CHECK_ERROR cannot be linked from a plugin, so this is ours: it names the call, the code
// and what the runtime says about it.
#pragma once

#include <cstdint>
#include <string>

#include "acl/acl_base.h"
#include "error.h"

namespace datadist::acl {

// "aclrtMalloc returned 207001: <the runtime's own words>". Clears the calling thread's message.
std::string describe(const char* call, aclError code);

// LLM_TIMEOUT, LLM_OUT_OF_MEMORY … for the codes that have a meaning of their own there, else LLM_FAILED.
int64_t status_code(aclError code);

// What no later call mends: the device's heartbeat is lost, its driver or the way to it.
class DeviceLost : public Error {
  using Error::Error;
};
bool is_device_loss(aclError code);

[[noreturn]] void raise(const char* call, aclError code);

}  // namespace datadist::acl

#define DATADIST_ACL(call)                                                        \
  do {                                                                            \
    const aclError datadist_acl_code = (call);                                    \
    if (datadist_acl_code != 0) ::datadist::acl::raise(#call, datadist_acl_code); \
  } while (0)
