#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/acl_headers.h"

namespace emu {

class Task;

// What a device can say of its latest failed task, and the memory that it found broken: there are no such
// defects on a CPU, so these are tasks that a fault made fail with the codes for them.
class DeviceError {
 public:
  struct BrokenMemory {
    uintptr_t address;
    size_t length;
    aclError code;  // of each task that touches it, until it is repaired or freed
  };

  void note(aclError code, const Task& task);
  aclrtErrorInfo verbose() const;
  std::vector<BrokenMemory> broken() const;
  // Gives these places other pages, without the bytes that were there. Throws 107000, and repairs nothing,
  // when one of them is not known to be broken.
  void repair(const aclrtMemUceInfo* places, size_t count);
  // The code of a task that touches these bytes, and why.
  aclError check(uintptr_t address, size_t length, std::string& why) const {
    return has_broken_.load(std::memory_order_relaxed) ? find(address, length, why) : ACL_SUCCESS;
  }
  // The range was freed: who gets its addresses next gets other pages.
  void forget(uintptr_t base, size_t length);

 private:
  aclError find(uintptr_t address, size_t length, std::string& why) const;

  mutable std::mutex mutex_;
  aclError latest_ = ACL_SUCCESS;
  std::vector<BrokenMemory> broken_;
  std::atomic<bool> has_broken_{false};
};

}  // namespace emu
