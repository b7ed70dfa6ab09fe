#include "emulator/host_memory.h"

#include <unistd.h>

#include <mutex>

#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"

namespace emu {

void HostMemory::add(uintptr_t base, size_t size) {
  std::unique_lock lock(mutex_);
  auto after = ranges_.lower_bound(base + size);
  if (after != ranges_.begin()) {
    const auto& [begin, length] = *std::prev(after);
    if (begin + length > base) {
      fail(ACL_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
           "[0x%zx, +%zu) overlaps the registered range [0x%zx, +%zu)", base, size, begin, length);
    }
  }
  ranges_.emplace(base, size);
}

void HostMemory::remove(uintptr_t base) {
  std::unique_lock lock(mutex_);
  const auto it = ranges_.find(base);
  if (it == ranges_.end()) {
    fail(ACL_ERROR_HOST_MEMORY_NOT_REGISTERED, "0x%zx is not the start of a registered range", base);
  }
  const size_t size = it->second;
  ranges_.erase(it);
  lock.unlock();
  if (auto* watching = observer()) watching->host_memory_forgotten(base, size);
}

bool HostMemory::contains(uintptr_t address, size_t length) const {
  std::shared_lock lock(mutex_);
  auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin()) return false;
  const auto& [begin, size] = *std::prev(after);
  return address - begin < size && length <= size - (address - begin);
}

namespace {

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
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p was not allocated by aclrtMallocHost, or is freed already", pointer);
  }
  return ACL_SUCCESS;
}

void register_range(void* pointer, uint64_t size) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(not_null(pointer, "ptr"));
  if (size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "size is 0");
  if (base % page != 0)
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not aligned to the %zu-byte page", pointer, page);
  Runtime::get().host_memory->add(base, size);
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

aclError aclrtMallocHostWithCfg(void** ptr, uint64_t size, aclrtMallocConfig*) {
  return ENTER(aclrtMallocHostWithCfg, { return allocate(ptr, size); });
}

aclError aclrtFreeHost(void* hostPtr) {
  return ENTER(aclrtFreeHost, { return release(hostPtr); });
}

aclError aclrtFreeHostWithDevSync(void* hostPtr) {
  return ENTER(aclrtFreeHostWithDevSync, { return release(hostPtr); });
}

aclError aclrtHostRegister(void* ptr, uint64_t size, aclrtHostRegisterType, void** devPtr) {
  return ENTER(aclrtHostRegister, {
    not_null(devPtr, "devPtr");
    register_range(ptr, size);
    *devPtr = ptr;
    return ACL_SUCCESS;
  });
}

aclError aclrtHostRegisterV2(void* ptr, uint64_t size, uint32_t flag) {
  return ENTER(aclrtHostRegisterV2, {
    if ((flag & ~kRegisterFlags) != 0 || flag == 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x is not a combination of 0x%x", flag, kRegisterFlags);
    }
    register_range(ptr, size);
    return ACL_SUCCESS;
  });
}

aclError aclrtHostUnregister(void* ptr) {
  return ENTER(aclrtHostUnregister, {
    Runtime::get().host_memory->remove(reinterpret_cast<uintptr_t>(not_null(ptr, "ptr")));
    return ACL_SUCCESS;
  });
}

aclError aclrtHostGetDevicePointer(void* pHost, void** pDevice, uint32_t) {
  return ENTER(aclrtHostGetDevicePointer, {
    not_null(pDevice, "pDevice");
    if (!Runtime::get().host_memory->contains(reinterpret_cast<uintptr_t>(pHost), 1)) {
      fail(ACL_ERROR_HOST_MEMORY_NOT_REGISTERED, "%p is not registered host memory", pHost);
    }
    *pDevice = pHost;
    return ACL_SUCCESS;
  });
}
