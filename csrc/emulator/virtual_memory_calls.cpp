#include <sys/types.h>
#include <unistd.h>

#include <cstring>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/virtual_memory.h"

namespace emu {
namespace {

constexpr size_t kGranularity = AddressSpace::kChunk;
constexpr size_t kGranularity1G = size_t{1} << 30;
constexpr uint64_t kMostPageType = 2;  // normal, huge, 1 GiB

size_t granularity_of(const aclrtPhysicalMemProp& prop) {
  if (prop.location.type != ACL_MEM_LOCATION_TYPE_DEVICE) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "physical memory of location type %d is not emulated",
         prop.location.type);
  }
  switch (prop.memAttr) {
    case ACL_HBM_MEM_HUGE1G:
    case ACL_HBM_MEM_P2P_HUGE1G:
    case ACL_MEM_HUGE1G:
    case ACL_MEM_P2P_HUGE1G:
      return kGranularity1G;
    default:
      return kGranularity;
  }
}

uintptr_t address(const void* pointer, const char* name) {
  not_null(pointer, name);
  return reinterpret_cast<uintptr_t>(pointer);
}

void check_share_flags(uint64_t flags) {
  if ((flags & ~ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION) == 0) return;
  fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx; defined are 0 and 0x1", flags);
}

// What travels from exporter to importer, behind the two shapes that it has.
struct Shareable {
  aclrtMemSharedHandleType type;
  void* bytes;

  void put(const IpcKey& key) const {
    if (type == ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT) {
      *static_cast<uint64_t*>(bytes) = key.packed();
      return;
    }
    auto& fabric = *static_cast<aclrtMemFabricHandle*>(bytes);
    std::memset(&fabric, '=', sizeof fabric);
    key.print(reinterpret_cast<char*>(fabric.data));
  }
  IpcKey key() const {
    if (type == ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT)
      return Imports::key_of(*static_cast<const uint64_t*>(bytes));
    IpcKey key;
    const auto* text = reinterpret_cast<const char*>(static_cast<const aclrtMemFabricHandle*>(bytes)->data);
    if (text[IpcKey::kLength - 1] != '\0' || !IpcKey::parse(text, key)) {
      fail(ACL_ERROR_RT_PARAM_INVALID,
           "the 128 bytes are not a fabric handle of aclrtMemExportToShareableHandleV2");
    }
    return key;
  }
};

Shareable shareable_of(aclrtMemSharedHandleType type, void* bytes) {
  not_null(bytes, "shareableHandle");
  const Profile& profile = Runtime::get().config.profile;
  if (type == ACL_MEM_SHARE_HANDLE_TYPE_FABRIC && !profile.has_fabric()) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "fabric handles exist on Atlas A3 only; this is %s",
         profile.soc_name());
  }
  if (type != ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT && type != ACL_MEM_SHARE_HANDLE_TYPE_FABRIC) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "share type %d does not exist", type);
  }
  return {type, bytes};
}

aclError export_handle(aclrtDrvMemHandle handle, uint64_t flags, const Shareable& out) {
  check_share_flags(flags);
  auto physical = Runtime::get().physicals.get(handle);
  if (physical->import != nullptr) fail(ACL_ERROR_RT_PARAM_INVALID, "the memory was imported itself");
  if (physical->exported.exchange(true)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "the physical memory was exported before; keep the first handle");
  }
  const Exports::Range range{reinterpret_cast<uintptr_t>(physical.get()),
                             physical->fd,
                             0,
                             physical->size,
                             physical->device.physical_id,
                             ExportKind::Physical};
  out.put(Runtime::get().exports->add(range, flags != 0));
  return ACL_SUCCESS;
}

aclError import_handle(const Shareable& shared, Device& device, aclrtDrvMemHandle* out) {
  not_null(out, "handle");
  const IpcKey key = shared.key();
  if (key.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the handle was exported by this same process");
  *out = Runtime::get().physicals.add(
      Runtime::get().imports->open_physical(key, device, shared.type == ACL_MEM_SHARE_HANDLE_TYPE_FABRIC));
  return ACL_SUCCESS;
}

aclError allow(const Shareable& shared, const int32_t* pids, size_t count) {
  not_null(pids, "pid");
  if (count == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "pidNum is 0");
  Runtime::get().exports->allow(shared.key(), pids, count);
  return ACL_SUCCESS;
}

constexpr size_t kTiB = size_t{1} << 40;

// Rules of its own for what HIXL reserves: gigabytes in a window of addresses, to be named by the caller.
void check_uncached_reserve(size_t size, uintptr_t expected) {
  const Profile& profile = Runtime::get().config.profile;
  if (!profile.has_uncached_reserve() || expected == 0) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s",
         profile.has_uncached_reserve()
             ? "an expectPtr is needed"
             : text("%s has no such ranges; Atlas A3 has", profile.soc_name()).c_str());
  }
  const bool in_window = expected >= 40 * kTiB && expected < 224 * kTiB && size <= 224 * kTiB - expected;
  if (size == 0 || size % kGranularity1G != 0 || expected % kGranularity1G != 0 || !in_window) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "[0x%zx, +%zu): both must be multiples of 1 GiB, between 40 and 224 TiB",
         expected, size);
  }
}

aclError reserve(void** out, size_t size, size_t alignment, uint64_t flags) {
  if (size == 0 || (alignment != 0 && kGranularity % alignment != 0) || flags > kMostPageType) {
    fail(ACL_ERROR_RT_PARAM_INVALID,
         "size %zu, alignment %zu, flags %lu; alignments are divisors of %zu, flags 0 to %lu", size,
         alignment, flags, kGranularity, kMostPageType);
  }
  // torch_npu reserves a few bytes, with no context, to find out whether this is supported.
  *out = reinterpret_cast<void*>(Runtime::get().virtual_memory->reserve(size));
  return ACL_SUCCESS;
}

const Device& device_at(const aclrtMemLocation& location) {
  if (location.type != ACL_MEM_LOCATION_TYPE_DEVICE) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "location type %d; access is set and asked for devices", location.type);
  }
  return Runtime::get().device(static_cast<int32_t>(location.id));
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp* prop, aclrtMemGranularityOptions option,
                                          size_t* granularity) {
  return ENTER(aclrtMemGetAllocationGranularity, {
    not_null(prop, "prop");
    if (option != ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM &&
        option != ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "option %d is neither 0 nor 1", option);
    }
    *not_null(granularity, "granularity") = granularity_of(*prop);
    return ACL_SUCCESS;
  });
}

aclError aclrtReserveMemAddress(void** virPtr, size_t size, size_t alignment, void* expectPtr,
                                uint64_t flags) {
  return ENTER(aclrtReserveMemAddress, {
    not_null(virPtr, "virPtr");
    if (expectPtr != nullptr) fail(ACL_ERROR_RT_PARAM_INVALID, "expectPtr %p must be null", expectPtr);
    return reserve(virPtr, size, alignment, flags);
  });
}

aclError aclrtReserveMemAddressNoUCMemory(void** virPtr, size_t size, size_t alignment, void* expectPtr,
                                          uint64_t flags) {
  return ENTER(aclrtReserveMemAddressNoUCMemory, {
    not_null(virPtr, "virPtr");
    check_uncached_reserve(size, reinterpret_cast<uintptr_t>(expectPtr));
    return reserve(virPtr, size, alignment, flags);  // elsewhere than expected: the caller reads virPtr
  });
}

aclError aclrtReleaseMemAddress(void* virPtr) {
  return ENTER(aclrtReleaseMemAddress, {
    Runtime::get().virtual_memory->release(address(virPtr, "virPtr"));
    return ACL_SUCCESS;
  });
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t size, const aclrtPhysicalMemProp* prop,
                             uint64_t flags) {
  return ENTER(aclrtMallocPhysical, {
    not_null(handle, "handle");
    const size_t unit = granularity_of(*not_null(prop, "prop"));
    if (size == 0 || size % unit != 0 || flags != 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "size %zu, flags %lu; the size is a multiple of %zu, the flags 0",
           size, flags, unit);
    }
    Device& device = Runtime::get().device(static_cast<int32_t>(prop->location.id));
    *handle = Runtime::get().physicals.add(std::make_shared<Physical>(device, size));
    return ACL_SUCCESS;
  });
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  return ENTER(aclrtFreePhysical, {
    Runtime::get().physicals.get(handle);
    Runtime::get().physicals.remove(handle);
    return ACL_SUCCESS;
  });
}

aclError aclrtMapMem(void* virPtr, size_t size, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
  return ENTER(aclrtMapMem, {
    if (offset != 0 || flags != 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "offset %zu and flags %lu must be 0", offset, flags);
    }
    const auto physical = Runtime::get().physicals.get(handle);
    Runtime::get().virtual_memory->map(address(virPtr, "virPtr"), size, physical);
    return ACL_SUCCESS;
  });
}

aclError aclrtUnmapMem(void* virPtr) {
  return ENTER(aclrtUnmapMem, {
    Runtime::get().virtual_memory->unmap(address(virPtr, "virPtr"));
    return ACL_SUCCESS;
  });
}

aclError aclrtMemRetainAllocationHandle(void* virPtr, aclrtDrvMemHandle* handle) {
  return ENTER(aclrtMemRetainAllocationHandle, {
    not_null(handle, "handle");
    const Profile& profile = Runtime::get().config.profile;
    if (!profile.retains_handles()) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "the driver is %d.%d, and this came with 26.0",
           profile.driver_major, profile.driver_minor);
    }
    const auto block = Runtime::get().memory.find(address(virPtr, "virPtr"));
    if (block == nullptr || block->physical == nullptr) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not in memory of aclrtMapMem", virPtr);
    }
    *handle = Runtime::get().physicals.add(block->physical);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemSetAccess(void* virPtr, size_t size, aclrtMemAccessDesc* desc, size_t count) {
  return ENTER(aclrtMemSetAccess, {
    not_null(desc, "desc");
    if (count == 0 || size == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "count %zu, size %zu", count, size);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t flags = desc[i].flags;
      if (flags > ACL_RT_MEM_ACCESS_FLAGS_READWRITE || flags == 2) {
        fail(ACL_ERROR_RT_PARAM_INVALID, "desc[%zu]: flags %u; defined are 0, 1 and 3", i, flags);
      }
      const Device& device = device_at(desc[i].location);
      Runtime::get().virtual_memory->set_access(address(virPtr, "virPtr"), size, device, flags);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtMemGetAccess(void* virPtr, aclrtMemLocation* location, uint64_t* flag) {
  return ENTER(aclrtMemGetAccess, {
    const Device& device = device_at(*not_null(location, "location"));
    *not_null(flag, "flag") = Runtime::get().virtual_memory->access(address(virPtr, "virPtr"), device);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType handleType,
                                         uint64_t flags, uint64_t* shareableHandle) {
  return ENTER(aclrtMemExportToShareableHandle, {
    if (handleType != ACL_MEM_HANDLE_TYPE_NONE) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "handle type %d; only 0 is defined", handleType);
    }
    return export_handle(handle, flags, shareable_of(ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT, shareableHandle));
  });
}

aclError aclrtMemExportToShareableHandleV2(aclrtDrvMemHandle handle, uint64_t flags,
                                           aclrtMemSharedHandleType shareType, void* shareableHandle) {
  return ENTER(aclrtMemExportToShareableHandleV2,
               { return export_handle(handle, flags, shareable_of(shareType, shareableHandle)); });
}

aclError aclrtMemImportFromShareableHandle(uint64_t shareableHandle, int32_t deviceId,
                                           aclrtDrvMemHandle* handle) {
  return ENTER(aclrtMemImportFromShareableHandle, {
    return import_handle(shareable_of(ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT, &shareableHandle),
                         Runtime::get().device(deviceId), handle);
  });
}

aclError aclrtMemImportFromShareableHandleV2(void* shareableHandle, aclrtMemSharedHandleType shareType,
                                             uint64_t flags, aclrtDrvMemHandle* handle) {
  return ENTER(aclrtMemImportFromShareableHandleV2, {
    if (flags != 0) fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx must be 0", flags);
    return import_handle(shareable_of(shareType, shareableHandle), Thread::self().context->device, handle);
  });
}

aclError aclrtMemSetPidToShareableHandle(uint64_t shareableHandle, int32_t* pid, size_t pidNum) {
  return ENTER(aclrtMemSetPidToShareableHandle, {
    return allow(shareable_of(ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT, &shareableHandle), pid, pidNum);
  });
}

aclError aclrtMemSetPidToShareableHandleV2(void* shareableHandle, aclrtMemSharedHandleType shareType,
                                           int32_t* pid, size_t pidNum) {
  return ENTER(aclrtMemSetPidToShareableHandleV2,
               { return allow(shareable_of(shareType, shareableHandle), pid, pidNum); });
}
