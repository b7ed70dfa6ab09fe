#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <shared_mutex>

namespace emu {

// Host ranges that the program registered (aclrtHostRegister): pinned, though not allocated here.
class HostMemory {
 public:
  void add(uintptr_t base, size_t size, uint32_t flags);  // throws 507910 when the range overlaps another
  void remove(uintptr_t base);                            // throws 507911
  bool contains(uintptr_t address, size_t length) const { return flags_of(address, length).has_value(); }
  // ACL_HOST_REG_… of the range that holds all these bytes; none: they are not registered.
  std::optional<uint32_t> flags_of(uintptr_t address, size_t length) const;

 private:
  mutable std::shared_mutex mutex_;
  struct Range {
    size_t size;
    uint32_t flags;
  };
  std::map<uintptr_t, Range> ranges_;
};

}  // namespace emu
