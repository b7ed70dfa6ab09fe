#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/fault_block.h"

namespace emu {

class Context;
class Stream;

// What the runtime knows about the calling thread. Threads do not inherit anything from each other.
struct Thread {
  std::shared_ptr<Context> context;
  bool is_device = false;  // a thread of the device's, and none of the program's
  bool in_host_function = false;
  aclError host_function_result = ACL_SUCCESS;  // what the running host function's task ends with
  aclError last_error = ACL_SUCCESS;
  std::string message;              // waits for aclGetRecentErrMsg
  std::string message_held;         // what aclGetRecentErrMsg handed out: valid until its next call
  std::vector<FiredRule> late;      // faults make the running call return late
  std::string wanted;               // the operator that a refused call asked for
  std::weak_ptr<Stream> limits_of;  // aclrtUseStreamResInCurrentThread
  int32_t capture_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  uint64_t id = 0;  // as a caller of aclrtSubscribeReport knows it: pthread_self

  static Thread& self();
};

// Starts a thread that nobody joins. A name that begins with "npu-" makes it, and what it starts, part of the
// device, which goes on while the host threads of the process are frozen. Throws std::system_error.
void start_thread(const std::string& name, std::function<void()> body);

}  // namespace emu
