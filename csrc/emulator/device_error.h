#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
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
  };

  void note(aclError code, const Task& task);
  aclrtErrorInfo verbose() const;
  std::vector<BrokenMemory> broken() const;
  // Gives these places other pages, without the bytes that were there. Throws 107000, and repairs nothing,
  // when one of them is not known to be broken.
  void repair(const aclrtMemUceInfo* places, size_t count);

 private:
  mutable std::mutex mutex_;
  aclError latest_ = ACL_SUCCESS;
  std::vector<BrokenMemory> broken_;
};

}  // namespace emu
