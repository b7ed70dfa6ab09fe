#include "emulator/device_error.h"

#include <algorithm>
#include <cstring>

#include "emulator/block.h"
#include "emulator/error.h"
#include "emulator/runtime.h"
#include "emulator/task.h"

namespace emu {
namespace {

bool is_broken_memory(aclError code) {
  return code == ACL_ERROR_RT_DEVICE_MEM_ERROR || code == ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR;
}

aclrtErrorType type_of(aclError code) {
  switch (code) {
    case ACL_SUCCESS:
      return ACL_RT_NO_ERROR;
    case ACL_ERROR_RT_DEVICE_MEM_ERROR:
    case ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR:
    case ACL_ERROR_RT_SUSPECT_DEVICE_MEM_ERROR:
      return ACL_RT_ERROR_MEMORY;
    case ACL_ERROR_RT_LINK_ERROR:
    case ACL_ERROR_RT_SUSPECT_REMOTE_ERROR:
      return ACL_RT_ERROR_LINK;
    case ACL_ERROR_RT_AICORE_TIMEOUT:
    case ACL_ERROR_RT_AICORE_EXCEPTION:
      return ACL_RT_ERROR_AICORE;
    default:
      return ACL_RT_ERROR_OTHERS;
  }
}

bool overlap(const DeviceError::BrokenMemory& known, uintptr_t address, size_t length) {
  return address < known.address + known.length && known.address < address + length;
}

bool is_same(const DeviceError::BrokenMemory& known, const aclrtMemUceInfo& given) {
  return known.address == reinterpret_cast<uintptr_t>(given.addr) && known.length == given.len;
}

}  // namespace

void DeviceError::note(aclError code, const Task& task) {
  std::lock_guard lock(mutex_);
  latest_ = code;
  if (!is_broken_memory(code) || broken_.size() == ACL_RT_MEM_UCE_INFO_MAX_NUM) return;
  TaskFacts facts;
  task.describe(facts);
  std::vector<Range> touched = facts.reads;
  touched.insert(touched.end(), facts.writes.begin(), facts.writes.end());
  if (facts.word != 0) touched.push_back({facts.word, sizeof(uint64_t)});
  std::erase_if(touched, [](const Range& range) {
    return !Runtime::get().memory.in_range(Place::Device, range.address);
  });
  if (touched.empty()) return;
  for (const BrokenMemory& known : broken_) {
    for (const Range& range : touched) {
      if (overlap(known, range.address, range.width)) return;  // it failed because of that one
    }
  }
  broken_.push_back({touched.front().address, touched.front().width, code});
  has_broken_.store(true);
}

aclError DeviceError::find(uintptr_t address, size_t length, std::string& why) const {
  std::lock_guard lock(mutex_);
  for (const BrokenMemory& known : broken_) {
    if (!overlap(known, address, length)) continue;
    why = text("device memory [0x%zx, +%zu) is broken (a fault says so); aclrtMemUceRepair repairs it",
               known.address, known.length);
    return known.code;
  }
  return ACL_SUCCESS;
}

void DeviceError::forget(uintptr_t base, size_t length) {
  if (!has_broken_.load(std::memory_order_relaxed)) return;
  std::lock_guard lock(mutex_);
  std::erase_if(broken_, [&](const BrokenMemory& known) { return overlap(known, base, length); });
  has_broken_.store(!broken_.empty());
}

aclrtErrorInfo DeviceError::verbose() const {
  std::lock_guard lock(mutex_);
  aclrtErrorInfo info{};
  info.errorType = type_of(latest_);
  if (info.errorType == ACL_RT_ERROR_AICORE) info.detail.aicoreErrType = ACL_RT_AICORE_ERROR_UNKNOWN;
  info.hasDetail = info.errorType == ACL_RT_ERROR_AICORE || !broken_.empty() ? 1 : 0;
  if (info.errorType != ACL_RT_ERROR_MEMORY) return info;
  info.tryRepair = broken_.empty() ? 0 : 1;
  info.detail.uceInfo.arraySize = broken_.size();
  for (size_t i = 0; i < broken_.size(); ++i) {
    auto& place = info.detail.uceInfo.memUceInfoArray[i];
    place.addr = reinterpret_cast<void*>(broken_[i].address);
    place.len = broken_[i].length;
  }
  return info;
}

std::vector<DeviceError::BrokenMemory> DeviceError::broken() const {
  std::lock_guard lock(mutex_);
  return broken_;
}

void DeviceError::repair(const aclrtMemUceInfo* places, size_t count) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < count; ++i) {
    if (std::any_of(broken_.begin(), broken_.end(),
                    [&](const auto& known) { return is_same(known, places[i]); }))
      continue;
    fail(ACL_ERROR_RT_PARAM_INVALID, "place %zu: [%p, +%zu) is not known to be broken", i, places[i].addr,
         places[i].len);
  }
  for (size_t i = 0; i < count; ++i) {
    std::erase_if(broken_, [&](const auto& known) { return is_same(known, places[i]); });
    const auto address = reinterpret_cast<uintptr_t>(places[i].addr);
    const auto block = Runtime::get().memory.find(address);
    if (block != nullptr && block->contains(address, places[i].len))
      std::memset(block->host(address), 0, places[i].len);
  }
  has_broken_.store(!broken_.empty());
  if (broken_.empty()) latest_ = ACL_SUCCESS;
}

}  // namespace emu
