#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <shared_mutex>

namespace emu {

// Host ranges that the program registered (aclrtHostRegister): pinned, though not allocated here.
class HostMemory {
 public:
  void add(uintptr_t base, size_t size);  // throws 507910 when the range overlaps another
  void remove(uintptr_t base);            // throws 507911
  bool contains(uintptr_t address, size_t length) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<uintptr_t, size_t> ranges_;
};

}  // namespace emu
