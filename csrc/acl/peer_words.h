// How 8-byte words get into a peer's memory: by a value write, or, where the runtime refuses one there, by a
// copy from a word of ours. Which of the two is found out once per link, by its first word.
#pragma once

#include <atomic>
#include <cstdint>

#include "acl/acl_rt.h"

namespace datadist::acl {

class PeerWords {
 public:
  // `local`: 8 bytes of this device that nobody but this stream writes. Returns the runtime's code.
  aclError write(void* remote, uint64_t value, void* local, aclrtStream stream);

 private:
  std::atomic<bool> are_copied_{false};
};

}  // namespace datadist::acl
