// What aten compute needs of the emulated libascendcl beyond ACL: the doors that only an emulator has.
#pragma once

#include <cstdint>

#include "acl/acl_rt.h"
#include "emulator/emu.h"

namespace emu_aten {

// The host-accessible twin of live device memory; the device address itself is PROT_NONE. Throws for anything
// else.
void* host_twin(const void* device_address);

// Makes the task that runs on this thread fail, as a kernel with an exception does on hardware: what comes
// later on the stream does not run, and the next synchronising call raises. Ends the process if the runtime
// cannot do that.
void fail_running_task();

using Describe = void (*)(void* args, EmuFacts* facts);

// Queues compute; `describe` tells those who watch what it touches, and `release` gets the arguments back
// once it is over for good. `name` must never go away.
aclError launch_compute(aclrtStream stream, const char* name, void (*function)(void*), Describe describe,
                        void* args, void (*release)(void*));

// Around compute that this thread does itself, on device memory, between ACL calls.
class HostCompute {
 public:
  HostCompute(const char* name, Describe describe, void* args);
  ~HostCompute();
  HostCompute(const HostCompute&) = delete;
  HostCompute& operator=(const HostCompute&) = delete;

 private:
  void* const begun_;
};

using NameRange = void (*)(EmuFacts* facts, const void* address, size_t width, size_t rows, size_t pitch);
NameRange name_read();
NameRange name_write();

aclError delay_stream(aclrtStream stream, uint64_t microseconds);

}  // namespace emu_aten
