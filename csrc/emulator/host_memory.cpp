#include "emulator/host_memory.h"

#include <unistd.h>

#include <mutex>

#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"

namespace emu {

void HostMemory::add(uintptr_t base, size_t size, uint32_t flags) {
  std::unique_lock lock(mutex_);
  auto after = ranges_.lower_bound(base + size);
  if (after != ranges_.begin()) {
    const auto& [begin, range] = *std::prev(after);
    if (begin + range.size > base) {
      fail(ACL_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
           "[0x%zx, +%zu) overlaps the registered range [0x%zx, +%zu)", base, size, begin, range.size);
    }
  }
  ranges_.emplace(base, Range{size, flags});
}

void HostMemory::remove(uintptr_t base) {
  std::unique_lock lock(mutex_);
  const auto it = ranges_.find(base);
  if (it == ranges_.end() || it->second.leaves) {
    fail(ACL_ERROR_HOST_MEMORY_NOT_REGISTERED, "0x%zx is not the start of a registered range", base);
  }
  const size_t size = it->second.size;
  it->second.leaves = true;
  let_go_.wait(lock, [&] { return it->second.holders == 0; });
  ranges_.erase(it);
  lock.unlock();
  if (auto* watching = observer()) watching->host_memory_forgotten(base, size);
}

const HostMemory::Range* HostMemory::find(uintptr_t address, size_t length) const {
  auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin()) return nullptr;
  const auto& [begin, range] = *std::prev(after);
  if (range.leaves || address - begin >= range.size || length > range.size - (address - begin))
    return nullptr;
  return &range;
}

std::optional<uint32_t> HostMemory::flags_of(uintptr_t address, size_t length) const {
  std::shared_lock lock(mutex_);
  const Range* range = find(address, length);
  return range == nullptr ? std::nullopt : std::optional(range->flags);
}

std::shared_ptr<const void> HostMemory::hold(uintptr_t address, size_t length) {
  std::unique_lock lock(mutex_);
  auto* range = const_cast<Range*>(find(address, length));
  if (range == nullptr) return nullptr;
  ++range->holders;
  return {range, [this, range](const void*) {
            std::unique_lock lock(mutex_);
            if (--range->holders == 0 && range->leaves) let_go_.notify_all();
          }};
}

namespace {

void check_config(const aclrtMallocConfig* config) {
  if (config == nullptr || config->numAttrs == 0) return;
  not_null(config->attrs, "cfg->attrs");
  for (size_t i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].attr <= ACL_RT_MEM_ATTR_VA_FLAG) continue;
    fail(ACL_ERROR_RT_PARAM_INVALID, "cfg->attrs[%zu]: attribute %d does not exist", i,
         config->attrs[i].attr);
  }
}

constexpr uint32_t kRegisterFlags =
    ACL_HOST_REG_MAPPED | ACL_HOST_REG_IOMEMORY | ACL_HOST_REG_READONLY | ACL_HOST_REG_PINNED;

aclError allocate(void** out, size_t size) {
  not_null(out, "the output pointer");
  if (size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "size is 0");
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto block = Runtime::get().memory.create(Place::Pinned, size, page, -1);
  *out = reinterpret_cast<void*>(block->base);
  return ACL_SUCCESS;
}

aclError release(void* pointer) {
  not_null(pointer, "hostPtr");
  if (Runtime::get().memory.release(Place::Pinned, reinterpret_cast<uintptr_t>(pointer)) == nullptr) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not the start of live memory of aclrtMallocHost: %s", pointer,
         Runtime::get().memory.story_of(reinterpret_cast<uintptr_t>(pointer)).c_str());
  }
  return ACL_SUCCESS;
}

void register_range(void* pointer, uint64_t size, uint32_t flags) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(not_null(pointer, "ptr"));
  if (size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "size is 0");
  if (base % page != 0)
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not aligned to the %zu-byte page", pointer, page);
  Runtime::get().host_memory->add(base, size, flags);
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtMallocHost(void** hostPtr, size_t size) {
  return ENTER(aclrtMallocHost, {
    on_memory(Entry::aclrtMallocHost, nullptr, nullptr, size);
    return allocate(hostPtr, size);
  });
}

aclError aclrtMallocHostWithCfg(void** ptr, uint64_t size, aclrtMallocConfig* cfg) {
  return ENTER(aclrtMallocHostWithCfg, {
    check_config(cfg);
    return allocate(ptr, size);
  });
}

aclError aclrtFreeHost(void* hostPtr) {
  return ENTER(aclrtFreeHost, { return release(hostPtr); });
}

aclError aclrtFreeHostWithDevSync(void* hostPtr) {
  return ENTER(aclrtFreeHostWithDevSync, { return release(hostPtr); });
}

aclError aclrtHostRegister(void* ptr, uint64_t size, aclrtHostRegisterType type, void** devPtr) {
  return ENTER(aclrtHostRegister, {
    not_null(devPtr, "devPtr");
    if (type != ACL_HOST_REGISTER_MAPPED && type != ACL_HOST_REGISTER_IOMEMORY &&
        type != ACL_HOST_REGISTER_READONLY) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "type %d; defined are 0, 4 and 8", type);
    }
    register_range(ptr, size, ACL_HOST_REG_MAPPED | static_cast<uint32_t>(type));
    *devPtr = ptr;
    return ACL_SUCCESS;
  });
}

aclError aclrtHostRegisterV2(void* ptr, uint64_t size, uint32_t flag) {
  return ENTER(aclrtHostRegisterV2, {
    if ((flag & ~kRegisterFlags) != 0 || flag == 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x is not a combination of 0x%x", flag, kRegisterFlags);
    }
    register_range(ptr, size, flag);
    return ACL_SUCCESS;
  });
}

aclError aclrtHostUnregister(void* ptr) {
  return ENTER(aclrtHostUnregister, {
    Runtime::get().host_memory->remove(reinterpret_cast<uintptr_t>(not_null(ptr, "ptr")));
    return ACL_SUCCESS;
  });
}

aclError aclrtHostGetDevicePointer(void* pHost, void** pDevice, uint32_t flag) {
  return ENTER(aclrtHostGetDevicePointer, {
    not_null(pDevice, "pDevice");
    if (flag != 0) fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x must be 0", flag);
    const auto flags = Runtime::get().host_memory->flags_of(reinterpret_cast<uintptr_t>(pHost), 1);
    if (!flags) fail(ACL_ERROR_HOST_MEMORY_NOT_REGISTERED, "%p is not registered host memory", pHost);
    if ((*flags & ACL_HOST_REG_MAPPED) == 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p was registered with flags 0x%x, without ACL_HOST_REG_MAPPED",
           pHost, *flags);
    }
    *pDevice = pHost;
    return ACL_SUCCESS;
  });
}
