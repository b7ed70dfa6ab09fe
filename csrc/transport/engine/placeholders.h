// Addresses for memory that has none here: a range of this process's address space that nobody can touch, as
// large as the peer's memory. The core counts with such addresses as with any others, and a transport finds
// out which piece of the peer's memory is meant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "transport/transport.h"

namespace datadist::engine {

class Placeholders : public std::enable_shared_from_this<Placeholders> {
 public:
  struct Remote {
    uint64_t address = 0;  // at the peer
    MemoryKind kind = MemoryKind::kDevice;
  };

  // Throws LLM_OUT_OF_MEMORY. Gone with the last handle.
  Mapped make(const Exported& memory, size_t bytes);
  // nullopt: that is none of ours, or leaves the piece of memory that it begins in.
  std::optional<Remote> find(const void* address, size_t bytes) const;

 private:
  struct Range {
    const char* end;
    Remote remote;
  };
  mutable std::mutex mutex_;
  std::map<const char*, Range> ranges_;
};

}  // namespace datadist::engine
