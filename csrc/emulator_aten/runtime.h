// What aten compute needs of the emulated libascendcl beyond ACL: the doors that only an emulator has.
#pragma once

#include <cstdint>

#include "acl/acl_rt.h"

namespace emu_aten {

// The host-accessible twin of live device memory; the device address itself is PROT_NONE. Throws for anything
// else.
void* host_twin(const void* device_address);

// Makes the task that runs on this thread fail, as a kernel with an exception does on hardware: what comes
// later on the stream does not run, and the next synchronising call raises. Ends the process if the runtime
// cannot do that.
void fail_running_task();

aclError delay_stream(aclrtStream stream, uint64_t microseconds);

}  // namespace emu_aten
