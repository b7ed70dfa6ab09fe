#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>

#include "emulator/read_write_lock.h"

namespace emu {

// Host ranges that the program registered (aclrtHostRegister): pinned, though not allocated here.
class HostMemory {
 public:
  void add(uintptr_t base, size_t size, uint32_t flags);  // throws 507910 when the range overlaps another
  // Waits for copies that are under way in it. Throws 507911.
  void remove(uintptr_t base);
  bool contains(uintptr_t address, size_t length) const { return flags_of(address, length).has_value(); }
  // ACL_HOST_REG_… of the range that holds all these bytes; none: they are not registered.
  std::optional<uint32_t> flags_of(uintptr_t address, size_t length) const;
  // Keeps the range that holds all these bytes registered for as long as the answer lives; null: they are not
  // registered.
  std::shared_ptr<const void> hold(uintptr_t address, size_t length);

 private:
  struct Range {
    size_t size;
    uint32_t flags;
    int holders = 0;
    bool leaves = false;  // no longer registered for anybody but its holders
  };
  const Range* find(uintptr_t address, size_t length) const;

  mutable ReadWriteLock mutex_;
  std::condition_variable_any let_go_;
  std::map<uintptr_t, Range> ranges_;
};

}  // namespace emu
