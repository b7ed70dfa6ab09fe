// Memory that an engine registered, and the bytes behind it.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "hixl_abi/hixl.h"

namespace emu_hixl {

// As it goes to a peer that connects.
struct Region {
  uint64_t address;
  uint64_t bytes;

  bool holds(uint64_t at, uint64_t length) const {
    return at >= address && length <= bytes && at - address <= bytes - length;
  }
};

class Memory {
 public:
  explicit Memory(bool is_fabric) : is_fabric_(is_fabric) {}

  hixl::Status add(const hixl::MemDesc& memory, hixl::MemType type, hixl::MemHandle* handle);
  bool remove(hixl::MemHandle handle);
  std::vector<Region> regions() const;
  bool holds(uint64_t address, uint64_t bytes) const;
  // Where this process moves the bytes of [address, +bytes) from and to by system calls: they return EFAULT
  // where memory went away meanwhile. nullptr: it is not, or no longer, within one registered region.
  char* bytes_at(uint64_t address, uint64_t bytes) const;

 private:
  struct Entry {
    Region region;
    hixl::MemType type;
  };
  const Entry* around(uint64_t address, uint64_t bytes) const;  // with the lock

  const bool is_fabric_;
  mutable std::mutex mutex_;
  uintptr_t next_ = 1;
  uint64_t device_bytes_ = 0;
  std::map<uintptr_t, Entry> entries_;  // by handle
};

}  // namespace emu_hixl
