#include "emulator/virtual_memory.h"

#include <unistd.h>

#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"

namespace emu {

namespace {

int booked_memory(Device& device, size_t size) {
  device.book(size);
  try {
    return AddressSpace::new_memory(size);
  } catch (...) {
    device.unbook(size);
    throw;
  }
}

}  // namespace

Physical::Physical(Device& device, size_t size)
    : device(device), size(size), fd(booked_memory(device, size)) {}

Physical::Physical(Device& device, size_t size, int fd, std::shared_ptr<Import> import)
    : device(device), size(size), fd(fd), import(std::move(import)) {}

Physical::~Physical() {
  if (import == nullptr) {
    Runtime::get().exports->revoke(reinterpret_cast<uintptr_t>(this));
    device.unbook(size);
  }
  close(fd);
}

uintptr_t VirtualMemory::reserve(size_t size) {
  const uintptr_t base = Runtime::get().memory.reserve_range(size);
  std::lock_guard lock(mutex_);
  reservations_[base].size = size;
  return base;
}

void VirtualMemory::release(uintptr_t base) {
  std::lock_guard lock(mutex_);
  auto it = reservations_.find(base);
  if (it == reservations_.end())
    fail(ACL_ERROR_RT_PARAM_INVALID, "0x%zx is not the start of a reserved range", base);
  if (!it->second.mapped.empty()) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%zu physical blocks are still mapped into the range",
         it->second.mapped.size());
  }
  Runtime::get().memory.release_range(base, it->second.size);
  reservations_.erase(it);
}

VirtualMemory::Reservation& VirtualMemory::around(uintptr_t address, size_t size) {
  auto it = reservations_.upper_bound(address);
  if (it != reservations_.begin()) {
    --it;
    const uintptr_t offset = address - it->first;
    if (offset < it->second.size && size <= it->second.size - offset) return it->second;
  }
  fail(ACL_ERROR_RT_PARAM_INVALID, "[0x%zx, +%zu) is not inside a range of aclrtReserveMemAddress", address,
       size);
}

void VirtualMemory::map(uintptr_t address, size_t size, const std::shared_ptr<Physical>& physical) {
  if (size != physical->size) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "size %zu; the physical memory has %zu, and is mapped whole", size,
         physical->size);
  }
  if (address % AddressSpace::kChunk != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "0x%zx is not aligned to %zu", address, AddressSpace::kChunk);
  }
  std::lock_guard lock(mutex_);
  Reservation& range = around(address, size);
  auto after = range.mapped.lower_bound(address);
  const bool overlaps =
      (after != range.mapped.end() && after->first < address + size) ||
      (after != range.mapped.begin() && std::prev(after)->first + std::prev(after)->second->size > address);
  if (overlaps)
    fail(ACL_ERROR_RT_PARAM_INVALID, "[0x%zx, +%zu) overlaps what is mapped already", address, size);
  if (!range.mapped.empty()) {
    const Physical& other = *range.mapped.begin()->second->physical;
    if (&other.device != &physical->device || (other.import == nullptr) != (physical->import == nullptr)) {
      fail(ACL_ERROR_RT_PARAM_INVALID,
           "one reserved range must not mix devices, nor own and imported memory");
    }
  }
  range.mapped[address] = Runtime::get().memory.map_physical(address, physical);
}

void VirtualMemory::unmap(uintptr_t address) {
  std::lock_guard lock(mutex_);
  Reservation& range = around(address, 1);
  if (range.mapped.erase(address) == 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "0x%zx is not the start of a mapping", address);
  }
  Runtime::get().memory.release(Place::Device, address);
}

}  // namespace emu
