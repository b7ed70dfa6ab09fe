// How bytes reach a peer. One transport object belongs to one link; it is used by that link's feeding thread,
// with the link's context current, and never holds the GIL.
//
// Contract: `map` turns what the peer exported into an address for `copy` and `write_word`, and keeps it
// valid as long as the returned handle lives. Calls that take a stream only queue; they return the runtime's
// code, and once one returned non-zero nothing more of that plan is queued. On one stream, a word that is
// written after a copy is seen by the peer after the copy's bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "acl/acl_rt.h"

namespace datadist {

// One piece of device memory as a peer gets to know it: an export handle of the segment around it (binary),
// its offset in that segment, and the bare address, which only an instance of the same process uses.
struct Exported {
  std::string handle;
  int64_t offset = 0;
  uint64_t address = 0;
};

struct Mapped {
  std::shared_ptr<void> handle;  // unmaps when the last one goes
  char* address = nullptr;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual Mapped map(const Exported& memory) = 0;
  virtual aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) = 0;
  virtual aclError write_word(void* remote_word, uint64_t value, aclrtStream stream) = 0;
};

struct DeviceMemory {
  char* address = nullptr;
  std::shared_ptr<void> owner;
};

}  // namespace datadist
