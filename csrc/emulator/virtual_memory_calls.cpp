#include <sys/types.h>
#include <unistd.h>

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

void check_share_type(aclrtMemSharedHandleType type) {
  if (type == ACL_MEM_SHARE_HANDLE_TYPE_DEFAULT) return;
  if (type == ACL_MEM_SHARE_HANDLE_TYPE_FABRIC) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "fabric handles exist on Atlas A3 only; this is %s",
         Runtime::get().config.profile.soc_name());
  }
  fail(ACL_ERROR_RT_PARAM_INVALID, "share type %d does not exist", type);
}

uint64_t export_handle(aclrtDrvMemHandle handle, uint64_t flags) {
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
  return Runtime::get().exports->add(range, flags != 0).packed();
}

aclrtDrvMemHandle import_handle(uint64_t shareable, Device& device) {
  const IpcKey key = Imports::key_of(shareable);
  if (key.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the handle was exported by this same process");
  return Runtime::get().physicals.add(Runtime::get().imports->open_physical(key, device));
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

aclError aclrtReserveMemAddress(void** virPtr, size_t size, size_t alignment, void*, uint64_t) {
  return ENTER(aclrtReserveMemAddress, {
    not_null(virPtr, "virPtr");
    if (size == 0 || (alignment != 0 && kGranularity % alignment != 0)) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "size %zu, alignment %zu; alignments are divisors of %zu", size,
           alignment, kGranularity);
    }
    // torch_npu reserves a few bytes, with no context, to find out whether this is supported.
    *virPtr = reinterpret_cast<void*>(Runtime::get().virtual_memory->reserve(size));
    return ACL_SUCCESS;
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
    const auto block = Runtime::get().memory.find(address(virPtr, "virPtr"));
    if (block == nullptr || block->physical == nullptr) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not in memory of aclrtMapMem", virPtr);
    }
    *handle = Runtime::get().physicals.add(block->physical);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType handleType,
                                         uint64_t flags, uint64_t* shareableHandle) {
  return ENTER(aclrtMemExportToShareableHandle, {
    not_null(shareableHandle, "shareableHandle");
    if (handleType != ACL_MEM_HANDLE_TYPE_NONE) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "handle type %d; only 0 is defined", handleType);
    }
    *shareableHandle = export_handle(handle, flags);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemExportToShareableHandleV2(aclrtDrvMemHandle handle, uint64_t flags,
                                           aclrtMemSharedHandleType shareType, void* shareableHandle) {
  return ENTER(aclrtMemExportToShareableHandleV2, {
    not_null(shareableHandle, "shareableHandle");
    check_share_type(shareType);
    *static_cast<uint64_t*>(shareableHandle) = export_handle(handle, flags);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemImportFromShareableHandle(uint64_t shareableHandle, int32_t deviceId,
                                           aclrtDrvMemHandle* handle) {
  return ENTER(aclrtMemImportFromShareableHandle, {
    *not_null(handle, "handle") = import_handle(shareableHandle, Runtime::get().device(deviceId));
    return ACL_SUCCESS;
  });
}

aclError aclrtMemImportFromShareableHandleV2(void* shareableHandle, aclrtMemSharedHandleType shareType,
                                             uint64_t, aclrtDrvMemHandle* handle) {
  return ENTER(aclrtMemImportFromShareableHandleV2, {
    not_null(handle, "handle");
    check_share_type(shareType);
    const uint64_t shareable = *static_cast<uint64_t*>(not_null(shareableHandle, "shareableHandle"));
    *handle = import_handle(shareable, Thread::self().context->device);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemSetPidToShareableHandle(uint64_t shareableHandle, int32_t* pid, size_t pidNum) {
  return ENTER(aclrtMemSetPidToShareableHandle, {
    not_null(pid, "pid");
    Runtime::get().exports->allow(Imports::key_of(shareableHandle), pid, pidNum);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemSetPidToShareableHandleV2(void* shareableHandle, aclrtMemSharedHandleType shareType,
                                           int32_t* pid, size_t pidNum) {
  return ENTER(aclrtMemSetPidToShareableHandleV2, {
    not_null(pid, "pid");
    check_share_type(shareType);
    const uint64_t shareable = *static_cast<uint64_t*>(not_null(shareableHandle, "shareableHandle"));
    Runtime::get().exports->allow(Imports::key_of(shareable), pid, pidNum);
    return ACL_SUCCESS;
  });
}
