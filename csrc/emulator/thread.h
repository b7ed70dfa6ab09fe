#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "emulator/acl_headers.h"

namespace emu {

class Context;

// What the runtime knows about the calling thread. Threads do not inherit anything from each other.
struct Thread {
  std::shared_ptr<Context> context;
  bool in_host_function = false;
  aclError host_function_result = ACL_SUCCESS;  // what the running host function's task ends with
  aclError last_error = ACL_SUCCESS;
  std::string message;       // waits for aclGetRecentErrMsg
  std::string message_held;  // what aclGetRecentErrMsg handed out: valid until its next call
  std::string wanted;        // the operator that a refused call asked for
  int32_t capture_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  uint64_t id = 0;  // as a caller of aclrtSubscribeReport knows it: pthread_self

  static Thread& self();
};

}  // namespace emu
