#include <unistd.h>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

IpcKey parsed(const char* text) {
  IpcKey key;
  if (!IpcKey::parse(not_null(text, "key"), key)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "'%.64s' is not a key of aclrtIpcMemGetExportKey", text);
  }
  return key;
}

aclError export_key(void* pointer, size_t size, char* key, size_t length, uint64_t flags) {
  const auto address = reinterpret_cast<uintptr_t>(not_null(pointer, "devPtr"));
  not_null(key, "key");
  if (length < IpcKey::kLength) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "len %zu; a key takes %zu bytes", length, IpcKey::kLength);
  }
  if ((flags & ~ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION) != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx; defined are 0 and 0x1", flags);
  }
  const auto block = Runtime::get().memory.find(address);
  if (block == nullptr || block->place != Place::Device) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not live device memory of this process", pointer);
  }
  if (block->physical != nullptr) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%p is memory of aclrtMapMem: its physical handle can be exported",
         pointer);
  }
  size_t page = block->page;
  if (is_armed(bit(Fault::ExportPage))) page = Runtime::get().faults->export_page(page);
  if (address % page != 0 || size % page != 0 || size == 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID,
         "[%p, +%zu) does not fit the page table: the pages behind it have %zu bytes", pointer, size, page);
  }
  const uint64_t offset = address - block->base;
  if (size > block->mapped - offset) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "[%p, +%zu) is longer than its allocation of %zu bytes", pointer, size,
         block->mapped);
  }
  const int32_t physical = Runtime::get().device(block->device).physical_id;
  Runtime::get().exports->add({block->base, block->fd, offset, size, physical}, flags != 0).print(key);
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtIpcMemGetExportKey(void* devPtr, size_t size, char* key, size_t len, uint64_t flags) {
  return ENTER(aclrtIpcMemGetExportKey, {
    on_memory(Entry::aclrtIpcMemGetExportKey, devPtr, nullptr, size);
    return export_key(devPtr, size, key, len, flags);
  });
}

aclError aclrtIpcMemSetImportPid(const char* key, int32_t* pid, size_t num) {
  return ENTER(aclrtIpcMemSetImportPid, {
    not_null(pid, "pid");
    if (num == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "num is 0");
    Runtime::get().exports->allow(parsed(key), pid, num);
    return ACL_SUCCESS;
  });
}

aclError aclrtIpcMemImportByKey(void** devPtr, const char* key, uint64_t flags) {
  return ENTER(aclrtIpcMemImportByKey, {
    not_null(devPtr, "devPtr");
    if ((flags & ~ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS) != 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx; defined are 0 and 0x1", flags);
    }
    const IpcKey from = parsed(key);
    if (from.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the key was exported by this same process");
    const uintptr_t base =
        Runtime::get().imports->open(key, from, Thread::self().context->device, flags != 0);
    *devPtr = reinterpret_cast<void*>(base);
    return ACL_SUCCESS;
  });
}

aclError aclrtIpcMemClose(const char* key) {
  return ENTER(aclrtIpcMemClose, {
    const IpcKey closed = parsed(key);
    if (closed.pid == getpid()) {
      Runtime::get().exports->close(closed);
    } else if (!Runtime::get().imports->close(key)) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "the key was not imported, or is closed already");
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtIpcMemSetAttr(const char* key, aclrtIpcMemAttrType type, uint64_t attr) {
  return ENTER(aclrtIpcMemSetAttr, {
    parsed(key);
    if (type != ACL_RT_IPC_MEM_ATTR_ACCESS_LINK || attr > ACL_RT_IPC_MEM_ATTR_ACCESS_LINK_HCCS) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "attribute %d with value %lu does not exist", type, attr);
    }
    const Profile& profile = Runtime::get().config.profile;
    if (!profile.has_two_links()) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s has one kind of link", profile.soc_name());
    }
    return ACL_SUCCESS;  // bytes arrive the same way over either
  });
}

aclError aclrtIpcMemImportPidInterServer(const char* key, aclrtServerPid* serverPids, size_t num) {
  return ENTER(aclrtIpcMemImportPidInterServer, {
    const IpcKey shared = parsed(key);
    const auto pids = pids_of_servers(serverPids, num);
    Runtime::get().exports->allow(shared, pids.data(), pids.size());
    return ACL_SUCCESS;
  });
}
