#include "emulator_hixl/memory.h"

#include "emulator/emu.h"
#include "emulator_hixl/faults.h"

namespace emu_hixl {
namespace {

constexpr size_t kMostRegions = 4096;
constexpr uint64_t kMostDeviceBytes = uint64_t{50} << 30;

const void* pointer(uint64_t address) { return reinterpret_cast<const void*>(address); }

}  // namespace

hixl::Status Memory::add(const hixl::MemDesc& memory, hixl::MemType type, hixl::MemHandle* handle) {
  const uint64_t last = memory.addr + memory.len - 1;
  if (memory.addr == 0 || memory.len == 0 || last < memory.addr)
    return refuse(hixl::kParamInvalid, "RegisterMem: %zu bytes at 0x%zx", memory.len, memory.addr);
  if (type != hixl::MEM_DEVICE && type != hixl::MEM_HOST)
    return refuse(hixl::kParamInvalid, "RegisterMem: memory type %d; 0 is device, 1 host", type);
  const bool begins_on_device = emuHostAlias(pointer(memory.addr)) != nullptr;
  const bool ends_on_device = emuHostAlias(pointer(last)) != nullptr;
  const bool is_device = type == hixl::MEM_DEVICE;
  if (begins_on_device != is_device || ends_on_device != is_device) {
    return refuse(hixl::kParamInvalid, "RegisterMem: [0x%zx, +%zu) is not %s memory from end to end",
                  memory.addr, memory.len, is_device ? "device" : "host");
  }
  std::lock_guard lock(mutex_);
  if (entries_.size() == kMostRegions)
    return refuse(hixl::kResourceExhausted, "RegisterMem: %zu regions are registered, the most",
                  kMostRegions);
  if (is_device && is_fabric_ && memory.len > kMostDeviceBytes - device_bytes_)
    return refuse(hixl::kResourceExhausted, "RegisterMem: more than %zu bytes of device memory",
                  size_t{kMostDeviceBytes});
  if (is_device) device_bytes_ += memory.len;
  entries_[next_] = {{memory.addr, memory.len}, type};
  *handle = reinterpret_cast<hixl::MemHandle>(next_++);
  return hixl::kOk;
}

bool Memory::remove(hixl::MemHandle handle) {
  std::lock_guard lock(mutex_);
  const auto found = entries_.find(reinterpret_cast<uintptr_t>(handle));
  if (found == entries_.end()) return false;
  if (found->second.type == hixl::MEM_DEVICE) device_bytes_ -= found->second.region.bytes;
  entries_.erase(found);
  return true;
}

std::vector<Region> Memory::regions() const {
  std::lock_guard lock(mutex_);
  std::vector<Region> all;
  for (const auto& [_, entry] : entries_) all.push_back(entry.region);
  return all;
}

const Memory::Entry* Memory::around(uint64_t address, uint64_t bytes) const {
  for (const auto& [_, entry] : entries_) {
    if (entry.region.holds(address, bytes)) return &entry;
  }
  return nullptr;
}

bool Memory::holds(uint64_t address, uint64_t bytes) const {
  std::lock_guard lock(mutex_);
  return around(address, bytes) != nullptr;
}

char* Memory::bytes_at(uint64_t address, uint64_t bytes) const {
  std::lock_guard lock(mutex_);
  const Entry* const entry = around(address, bytes);
  if (entry == nullptr) return nullptr;
  if (entry->type == hixl::MEM_HOST) return reinterpret_cast<char*>(address);
  return static_cast<char*>(emuHostAlias(pointer(address)));
}

}  // namespace emu_hixl
