#include <cstdio>
#include <cstring>

#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/host_memory.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr size_t kNormalPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHuge1GPage = size_t{1} << 30;
constexpr size_t kNormalUpTo = size_t{1} << 20;  // HUGE_FIRST gives normal pages up to here

size_t page_for(size_t size, aclrtMemMallocPolicy policy) {
  switch (policy & 0xFF) {
    case ACL_MEM_MALLOC_HUGE_FIRST:
    case ACL_MEM_MALLOC_HUGE_FIRST_P2P:
      return size <= kNormalUpTo ? kNormalPage : kHugePage;
    case ACL_MEM_MALLOC_HUGE_ONLY:
    case ACL_MEM_MALLOC_HUGE_ONLY_P2P:
      return kHugePage;
    case ACL_MEM_MALLOC_NORMAL_ONLY:
    case ACL_MEM_MALLOC_NORMAL_ONLY_P2P:
      return kNormalPage;
    case ACL_MEM_MALLOC_HUGE1G_ONLY:
    case ACL_MEM_MALLOC_HUGE1G_ONLY_P2P:
      return kHuge1GPage;
    default:
      fail(ACL_ERROR_RT_PARAM_INVALID, "malloc policy %d does not exist", policy);
  }
}

aclError allocate(void** out, size_t size, size_t extra, aclrtMemMallocPolicy policy) {
  not_null(out, "devPtr");
  if (size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "size is 0");
  Device& device = Thread::self().context->device;
  if (size > device.memory) {
    fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "%zu bytes do not fit device %d, which has %zu", size, device.id,
         device.memory);
  }
  const size_t usable = (size + 31) / 32 * 32 + extra;
  const size_t page = page_for(usable, policy);
  const size_t booked = (usable + page - 1) / page * page;
  device.book(booked);
  try {
    auto block = Runtime::get().memory.create(Place::Device, usable, page, device.id);
    *out = reinterpret_cast<void*>(block->base);
  } catch (...) {
    device.unbook(booked);
    throw;
  }
  return ACL_SUCCESS;
}

aclError release(void* pointer) {
  not_null(pointer, "devPtr");
  const auto base = reinterpret_cast<uintptr_t>(pointer);
  Runtime& runtime = Runtime::get();
  if (const auto freed = runtime.memory.find(base); freed != nullptr && freed->base == base) {
    if (freed->physical != nullptr) fail(ACL_ERROR_RT_PARAM_INVALID, "%p is memory of aclrtMapMem", pointer);
    // Keys end before the descriptor is closed: whoever holds a live key must never open another file.
    runtime.exports->revoke(base);
  }
  auto block = runtime.memory.release(Place::Device, base);
  if (block == nullptr) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not the start of live memory of aclrtMalloc: %s", pointer,
         runtime.memory.story_of(base).c_str());
  }
  Runtime::get().device(block->device).unbook(block->mapped);
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

extern "C" void* emuHostAlias(const void* device_address) {
  const auto address = reinterpret_cast<uintptr_t>(device_address);
  if (Runtime::get().forked()) return nullptr;
  const auto block = Runtime::get().memory.find(address);
  return block == nullptr || block->place == Place::Pinned ? nullptr : block->host(address);
}

aclError aclrtMalloc(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return ENTER(aclrtMalloc, {
    on_memory(Entry::aclrtMalloc, nullptr, nullptr, size);
    return allocate(devPtr, size, 32, policy);
  });
}

aclError aclrtMallocAlign32(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return ENTER(aclrtMallocAlign32, {
    on_memory(Entry::aclrtMallocAlign32, nullptr, nullptr, size);
    return allocate(devPtr, size, 0, policy);
  });
}

aclError aclrtMallocCached(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return ENTER(aclrtMallocCached, { return allocate(devPtr, size, 32, policy); });
}

aclError aclrtMallocWithCfg(void** devPtr, size_t size, aclrtMemMallocPolicy policy, aclrtMallocConfig*) {
  return ENTER(aclrtMallocWithCfg, { return allocate(devPtr, size, 32, policy); });
}

aclError aclrtFree(void* devPtr) {
  return ENTER(aclrtFree, {
    on_memory(Entry::aclrtFree, devPtr, nullptr, 0);
    return release(devPtr);
  });
}

aclError aclrtFreeWithDevSync(void* devPtr) {
  return ENTER(aclrtFreeWithDevSync, {
    Thread::self().context->synchronize(-1);
    return release(devPtr);
  });
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  return ENTER(aclrtGetMemInfo, {
    Device& device = Thread::self().context->device;
    *not_null(free, "free") = device.memory - device.in_use();
    *not_null(total, "total") = device.memory;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetMemUsageInfo(int32_t deviceId, aclrtMemUsageInfo* memUsageInfo, size_t inputNum,
                              size_t* outputNum) {
  return ENTER(aclrtGetMemUsageInfo, {
    Device& device = Runtime::get().device(deviceId);
    *not_null(outputNum, "outputNum") = 1;
    if (inputNum == 0) return ACL_SUCCESS;
    std::memset(not_null(memUsageInfo, "memUsageInfo"), 0, sizeof *memUsageInfo);
    std::snprintf(memUsageInfo->name, sizeof memUsageInfo->name, "emulated");
    memUsageInfo->curMemSize = device.in_use();
    memUsageInfo->memPeakSize = device.peak.load();
    return ACL_SUCCESS;
  });
}

aclError aclrtPointerGetAttributes(const void* ptr, aclrtPtrAttributes* attributes) {
  return ENTER(aclrtPointerGetAttributes, {
    not_null(ptr, "ptr");
    *not_null(attributes, "attributes") = {};
    const auto address = reinterpret_cast<uintptr_t>(ptr);
    const auto block = Runtime::get().memory.find(address);
    attributes->pageSize = kNormalPage;
    if (block != nullptr && block->place != Place::Pinned) {
      attributes->location = {static_cast<uint32_t>(block->device), ACL_MEM_LOCATION_TYPE_DEVICE};
      attributes->pageSize = static_cast<uint32_t>(block->page);
    } else if (block != nullptr || Runtime::get().host_memory->contains(address, 1)) {
      attributes->location.type = ACL_MEM_LOCATION_TYPE_HOST;
    } else {
      attributes->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtMemGetAddressRange(void* ptr, void** pbase, size_t* psize) {
  return ENTER(aclrtMemGetAddressRange, {
    const auto block = Runtime::get().memory.find(reinterpret_cast<uintptr_t>(not_null(ptr, "ptr")));
    if (block == nullptr || block->place == Place::Pinned) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not live device memory", ptr);
    }
    if (pbase != nullptr) *pbase = reinterpret_cast<void*>(block->base);
    if (psize != nullptr) *psize = block->size;
    return ACL_SUCCESS;
  });
}

aclError aclrtMemFlush(void* devPtr, size_t) {
  return ENTER(aclrtMemFlush, {
    not_null(devPtr, "devPtr");
    return ACL_SUCCESS;
  });
}

aclError aclrtMemInvalidate(void* devPtr, size_t) {
  return ENTER(aclrtMemInvalidate, {
    not_null(devPtr, "devPtr");
    return ACL_SUCCESS;
  });
}

aclError aclrtCmoAsync(void* src, size_t size, aclrtCmoType cmoType, aclrtStream stream) {
  return ENTER(aclrtCmoAsync, {
    not_null(src, "src");
    if (size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "size is 0");
    if (cmoType < ACL_RT_CMO_TYPE_PREFETCH || cmoType > ACL_RT_CMO_TYPE_FLUSH) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "cache operation %d; defined are 0 to 3", cmoType);
    }
    if (is_host(locate(reinterpret_cast<uintptr_t>(src), size))) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not device memory", src);
    }
    // A hint about caches that a CPU does not need; it keeps its place in the queue.
    Thread::self().context->stream(stream)->submit(
        make_task("aclrtCmoAsync", [](Stream&) -> aclError { return ACL_SUCCESS; }));
    return ACL_SUCCESS;
  });
}
