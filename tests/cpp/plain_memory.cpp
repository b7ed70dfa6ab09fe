// In place of transport/mapped/mapped.cpp, whose memory is torch's allocator's: the same by the runtime
// alone, so that programs without torch run all of the link's code.
#include <map>
#include <mutex>

#include "acl/check.h"
#include "acl/stream.h"
#include "error.h"
#include "transport/mapped/fabric.h"
#include "transport/mapped/mapped.h"
#include "transport/stream_copies.h"

namespace datadist::mapped {
namespace {

constexpr size_t kKeyBytes = 65;
constexpr size_t kPageBytes = 2 << 20;

struct Allocation {
  char* address;
  size_t bytes;
  std::string key;  // once it is exported
};

struct Allocations {
  std::mutex mutex;
  std::map<char*, Allocation> by_address;
};

// Never destroyed: threads of the link may give memory back at the very end.
Allocations& allocations() {
  static auto* const all = new Allocations;
  return *all;
}

class OnDevice {
 public:
  explicit OnDevice(int device) { DATADIST_ACL(acl::set_device(device)); }

 private:
  acl::ContextScope restore_;
};

void release(int device, char* address) {
  {
    Allocations& all = allocations();
    std::lock_guard lock(all.mutex);
    const auto found = all.by_address.find(address);
    if (!found->second.key.empty()) aclrtIpcMemClose(found->second.key.c_str());
    all.by_address.erase(found);
  }
  try {
    OnDevice on(device);
    aclrtFree(address);
  } catch (const std::exception&) {
    // The runtime has gone before us.
  }
}

class PlainTransport : public StreamCopies {
 public:
  PlainTransport(int device, PeerProcess peer) : device_(device), peer_(peer) {}

  const char* name() const override { return "plain"; }

  std::vector<Exported> export_memory(const std::vector<OwnMemory>& memory) override {
    std::vector<char*> addresses;
    for (const OwnMemory& own : memory) addresses.push_back(own.place.address);
    return export_addresses(device_, addresses);
  }

  Mapped map(const Exported& memory, size_t) override {
    OnDevice on(device_);
    if (peer_.in_this_process) {
      if (peer_.device != device_) DATADIST_ACL(acl::enable_peer_access(peer_.device));
      return {{reinterpret_cast<char*>(memory.address), reach_of(memory.kind)}, nullptr};
    }
    void* base = nullptr;
    DATADIST_ACL(
        aclrtIpcMemImportByKey(&base, memory.handle.c_str(), ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS));
    std::shared_ptr<void> handle(base, [key = memory.handle, device = device_](void*) {
      OnDevice on(device);
      aclrtIpcMemClose(key.c_str());
    });
    return {{static_cast<char*>(base) + memory.offset, Reach::kImported}, std::move(handle)};
  }

  Reach reach_of(MemoryKind) const override {
    return peer_.in_this_process && peer_.device == device_ ? Reach::kDevice : Reach::kImported;
  }

 private:
  const int device_;
  const PeerProcess peer_;
};

}  // namespace

DeviceMemory allocate(int device, size_t bytes) {
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;  // exports are of whole pages
  OnDevice on(device);
  void* address = nullptr;
  DATADIST_ACL(aclrtMalloc(&address, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
  auto* const begin = static_cast<char*>(address);
  Allocations& all = allocations();
  std::lock_guard lock(all.mutex);
  all.by_address[begin] = {begin, bytes, {}};
  return {begin,
          std::shared_ptr<void>(address, [device](void* p) { release(device, static_cast<char*>(p)); })};
}

DeviceMemory allocate_for_peers(int device, size_t bytes) { return allocate(device, bytes); }

std::vector<Exported> export_addresses(int device, const std::vector<char*>& addresses) {
  OnDevice on(device);
  Allocations& all = allocations();
  std::lock_guard lock(all.mutex);
  std::vector<Exported> exported;
  for (char* const address : addresses) {
    auto found = all.by_address.upper_bound(address);
    require(found != all.by_address.begin(), kParamInvalid, "export: not memory of this process");
    Allocation& allocation = (--found)->second;
    require(address < allocation.address + allocation.bytes, kParamInvalid, "export: not live memory");
    if (allocation.key.empty()) {
      char key[kKeyBytes] = {};
      DATADIST_ACL(aclrtIpcMemGetExportKey(allocation.address, allocation.bytes, key, sizeof key,
                                           ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION));
      allocation.key = key;
    }
    exported.push_back({allocation.key, address - allocation.address, reinterpret_cast<uint64_t>(address),
                        MemoryKind::kDevice});
  }
  return exported;
}

std::unique_ptr<Transport> make_transport(int device, PeerProcess peer) {
  return std::make_unique<PlainTransport>(device, peer);
}

}  // namespace datadist::mapped
