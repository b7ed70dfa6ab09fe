// Named ranges on streams, for profilers: the markers of libms_tools_ext, which need not be there.
#pragma once

#include <cstdint>

#include "acl/acl_rt.h"

namespace datadist::acl {

// Begins where the stream stands. 0: nobody takes note. Never fails what it tells of.
uint64_t start_range(const char* message, aclrtStream stream);
void end_range(uint64_t range);

}  // namespace datadist::acl
