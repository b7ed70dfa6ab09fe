#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/block.h"

namespace emu {

class Device;

// Device memory without an address (aclrtMallocPhysical), own or imported. It lives as long as a handle or a
// mapping of it, in whatever process.
class Physical {
 public:
  Physical(Device& device, size_t size);                                          // own
  Physical(Device& device, size_t size, int fd, std::shared_ptr<Import> import);  // imported; takes the fd
  ~Physical();
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;

  Device& device;
  const size_t size;
  const int fd;
  const std::shared_ptr<Import> import;
  std::atomic<bool> exported{false};
};

// Reserved address ranges and what is mapped into them.
class VirtualMemory {
 public:
  uintptr_t reserve(size_t size);
  void release(uintptr_t base);
  void map(uintptr_t address, size_t size, const std::shared_ptr<Physical>& physical);
  void unmap(uintptr_t address);
  // What a device may do with [address, +size), which must be whole mappings.
  void set_access(uintptr_t address, size_t size, const Device& device, uint64_t flags);
  uint64_t access(uintptr_t address, const Device& device);

 private:
  struct Reservation {
    size_t size = 0;
    std::map<uintptr_t, std::shared_ptr<Block>> mapped;
  };

  // Those that [address, +size) is made of; throws 107000 when it is not made of whole ones.
  std::vector<std::shared_ptr<Block>> whole_mappings(uintptr_t address, size_t size);
  // The reservation around [address, +size); throws 107000 when there is none.
  Reservation& around(uintptr_t address, size_t size);

  std::mutex mutex_;
  std::map<uintptr_t, Reservation> reservations_;
};

}  // namespace emu
