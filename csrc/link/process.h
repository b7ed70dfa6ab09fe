// Other processes of this host, as the kernel tells of them.
#pragma once

#include <cstdint>

namespace datadist {

// In clock ticks since boot; with the pid it names a process for good. 0 when there is no such process (any
// more).
int64_t start_time_of(int pid);

}  // namespace datadist
