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
  if (import != nullptr) {
    close(fd);
    return;
  }
  Runtime::get().exports->revoke(reinterpret_cast<uintptr_t>(this));
  device.unbook_once_unheld(fd, size);
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

std::vector<std::shared_ptr<Block>> VirtualMemory::whole_mappings(uintptr_t address, size_t size) {
  std::lock_guard lock(mutex_);
  Reservation& range = around(address, size);
  std::vector<std::shared_ptr<Block>> found;
  for (uintptr_t next = address; next < address + size;) {
    const auto it = range.mapped.find(next);
    if (it == range.mapped.end() || it->second->size > address + size - next) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "[0x%zx, +%zu) is not made of whole mappings (see 0x%zx)", address,
           size, next);
    }
    found.push_back(it->second);
    next += it->second->size;
  }
  return found;
}

void VirtualMemory::set_access(uintptr_t address, size_t size, const Device& device, uint64_t flags) {
  const uint64_t bit = uint64_t{1} << device.id;
  const auto put = [bit](std::atomic<uint64_t>& bits, bool on) {
    on ? bits.fetch_or(bit) : bits.fetch_and(~bit);
  };
  for (const auto& block : whole_mappings(address, size)) {
    put(block->granted, flags != ACL_RT_MEM_ACCESS_FLAGS_NONE);
    put(block->not_read, flags == ACL_RT_MEM_ACCESS_FLAGS_NONE);
    put(block->not_written, flags != ACL_RT_MEM_ACCESS_FLAGS_READWRITE);
  }
}

uint64_t VirtualMemory::access(uintptr_t address, const Device& device) {
  const auto block = Runtime::get().memory.find(address);
  if (block == nullptr || block->physical == nullptr) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "0x%zx is not in memory of aclrtMapMem", address);
  }
  const uint64_t bit = uint64_t{1} << device.id;
  if ((block->not_read.load() & bit) != 0) return ACL_RT_MEM_ACCESS_FLAGS_NONE;
  if ((block->not_written.load() & bit) != 0) return ACL_RT_MEM_ACCESS_FLAGS_READ;
  const bool reaches =
      (block->granted.load() & bit) != 0 || block->import != nullptr || device.may_access(block->device);
  return reaches ? ACL_RT_MEM_ACCESS_FLAGS_READWRITE : ACL_RT_MEM_ACCESS_FLAGS_NONE;
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
