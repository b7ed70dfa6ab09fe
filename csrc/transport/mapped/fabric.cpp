#include "transport/mapped/fabric.h"

#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"
#include "acl/symbols.h"
#include "error.h"
#include "transport/mapped/mapped.h"

namespace datadist::mapped {
namespace {

constexpr char kMark[] = {'\1', 'f'};  // of the handle; torch_npu's begin with 1 and 'c' or 'e'

// A handle as it travels.
struct Handle {
  uint64_t bytes = 0;  // of the whole segment
  aclrtMemFabricHandle fabric{};

  std::string pack() const {
    std::string text(kMark, sizeof kMark);
    text.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    return text.append(reinterpret_cast<const char*>(fabric.data), sizeof fabric.data);
  }
  static constexpr size_t kLength = sizeof kMark + sizeof(uint64_t) + sizeof(aclrtMemFabricHandle);
  static Handle unpack(const std::string& text) {
    Handle handle;
    std::memcpy(&handle.bytes, text.data() + sizeof kMark, sizeof handle.bytes);
    std::memcpy(handle.fabric.data, text.data() + sizeof kMark + sizeof handle.bytes,
                sizeof handle.fabric.data);
    return handle;
  }
};

aclrtPhysicalMemProp physical_on(int device) {
  aclrtPhysicalMemProp prop{};
  prop.handleType = ACL_MEM_HANDLE_TYPE_NONE;
  prop.allocationType = ACL_MEM_ALLOCATION_TYPE_PINNED;
  prop.memAttr = ACL_HBM_MEM_HUGE;  // what links between chips ask for
  prop.location.type = ACL_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = static_cast<uint32_t>(device);
  return prop;
}

// Physical memory with an address here.
class Segment {
 public:
  // Takes the handle over.
  Segment(int device, aclrtDrvMemHandle physical, size_t bytes)
      : device_(device), physical_(physical), bytes_(bytes) {
    void* address = nullptr;
    aclError code = aclrtReserveMemAddress(&address, bytes_, 0, nullptr, 1);  // 1: huge pages
    const char* call = "aclrtReserveMemAddress";
    if (code == 0) {
      call = "aclrtMapMem";
      code = aclrtMapMem(address, bytes_, 0, physical_, 0);
      if (code != 0) aclrtReleaseMemAddress(address);
    }
    if (code != 0) {
      aclrtFreePhysical(physical_);
      acl::raise(call, code);
    }
    address_ = static_cast<char*>(address);
  }
  // Of a device that is lost it stays as it is.
  ~Segment() {
    acl::ContextScope restore;
    if (acl::set_device(device_) != 0) return;
    if (aclrtUnmapMem(address_) != 0) return;
    aclrtReleaseMemAddress(address_);
    aclrtFreePhysical(physical_);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  char* address() const { return address_; }
  size_t bytes() const { return bytes_; }
  bool has(const char* at) const { return at >= address_ && at < address_ + bytes_; }

  std::string handle;  // of own memory

 private:
  const int device_;
  const aclrtDrvMemHandle physical_;
  const size_t bytes_;
  char* address_ = nullptr;
};

std::mutex segments_mutex;

std::map<const char*, const Segment*>& segments() {
  static auto* map = new std::map<const char*, const Segment*>;
  return *map;
}

// With the mutex.
const Segment* segment_around(const char* address) {
  auto after = segments().upper_bound(address);
  if (after == segments().begin()) return nullptr;
  const Segment* const segment = std::prev(after)->second;
  return segment->has(address) ? segment : nullptr;
}

std::unique_ptr<Segment> make_segment(int device, size_t wanted) {
  const auto& symbols = acl::symbols();
  acl::ContextScope restore;
  DATADIST_ACL(acl::set_device(device));
  aclrtPhysicalMemProp prop = physical_on(device);
  size_t unit = 0;
  DATADIST_ACL(symbols.aclrtMemGetAllocationGranularity(&prop, ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM, &unit));
  const size_t bytes = (wanted + unit - 1) / unit * unit;
  aclrtDrvMemHandle physical = nullptr;
  const aclError code = aclrtMallocPhysical(&physical, bytes, &prop, 0);
  if (code != 0)
    throw Error(acl::status_code(code), join(bytes, " bytes of fabric memory on npu:", device, ": ",
                                             acl::describe("aclrtMallocPhysical", code)));
  auto segment = std::make_unique<Segment>(device, physical, bytes);
  Handle handle{bytes, {}};
  DATADIST_ACL(symbols.aclrtMemExportToShareableHandleV2(physical,
                                                         ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION,
                                                         ACL_MEM_SHARE_HANDLE_TYPE_FABRIC, &handle.fabric));
  segment->handle = handle.pack();
  return segment;
}

std::string try_fabric(int device) {
  const auto& symbols = acl::symbols();
  if (symbols.aclrtMemExportToShareableHandleV2 == nullptr ||
      symbols.aclrtMemImportFromShareableHandleV2 == nullptr ||
      symbols.aclrtMemGetAllocationGranularity == nullptr)
    return "the installed CANN has no fabric handles; 8.5 has";
  try {
    make_segment(device, 1);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

std::string why_no_fabric(int device) {
  static std::mutex mutex;
  static auto* known = new std::map<int, std::string>;
  std::lock_guard lock(mutex);
  const auto found = known->find(device);
  if (found != known->end()) return found->second;
  return known->emplace(device, try_fabric(device)).first->second;
}

int64_t super_pod_of(int device) {
  int64_t number = -1;
  const auto& symbols = acl::symbols();
  if (symbols.aclrtGetDeviceInfo == nullptr) return -1;
  const auto code =
      symbols.aclrtGetDeviceInfo(static_cast<uint32_t>(device), ACL_DEV_ATTR_SUPER_POD_ID, &number);
  return code == 0 && number >= 0 ? number : -1;
}

DeviceMemory allocate_fabric(int device, size_t bytes) {
  const std::string why = why_no_fabric(device);
  require(why.empty(), kFeatureNotEnabled, "no fabric memory on npu:", device, ": ", why);
  std::unique_ptr<Segment> made = make_segment(device, bytes);
  char* const address = made->address();
  std::lock_guard lock(segments_mutex);
  segments()[address] = made.get();
  const auto release = [](Segment* segment) {
    {
      std::lock_guard lock(segments_mutex);
      segments().erase(segment->address());
    }
    delete segment;
  };
  return {address, std::shared_ptr<Segment>(made.release(), release)};
}

DeviceMemory allocate_for_peers(int device, size_t bytes) {
  return why_no_fabric(device).empty() ? allocate_fabric(device, bytes) : allocate(device, bytes);
}

std::optional<Exported> export_fabric(const char* address) {
  std::lock_guard lock(segments_mutex);
  const Segment* const segment = segment_around(address);
  if (segment == nullptr) return std::nullopt;
  return Exported{segment->handle, address - segment->address(), reinterpret_cast<uint64_t>(address),
                  MemoryKind::kDevice};
}

uintptr_t fabric_segment_of(const char* address) {
  std::lock_guard lock(segments_mutex);
  const Segment* const segment = segment_around(address);
  return segment == nullptr ? 0 : reinterpret_cast<uintptr_t>(segment->address());
}

bool is_fabric(const Exported& memory) {
  return memory.handle.size() == Handle::kLength &&
         memory.handle.compare(0, sizeof kMark, kMark, sizeof kMark) == 0;
}

Mapped map_fabric(int device, const Exported& memory, size_t bytes) {
  const std::string why = why_no_fabric(device);
  require(why.empty(), kFeatureNotEnabled, "the peer's memory is fabric memory, and npu:", device,
          " has none: ", why);
  const auto offset = static_cast<uint64_t>(memory.offset);
  Handle handle = Handle::unpack(memory.handle);
  require(memory.offset >= 0 && bytes <= handle.bytes && offset <= handle.bytes - bytes, kLinkFailed,
          "the peer announced ", bytes, " bytes at offset ", memory.offset, " of fabric memory of ",
          handle.bytes, " bytes. Nothing was sent; the link is still usable.");
  static std::mutex mutex;
  static auto* known = new std::map<std::pair<int, std::string>, std::weak_ptr<Segment>>;
  std::lock_guard lock(mutex);
  std::erase_if(*known, [](const auto& entry) { return entry.second.expired(); });
  auto& slot = (*known)[{device, memory.handle}];
  auto segment = slot.lock();
  if (segment == nullptr) {
    acl::ContextScope restore;
    DATADIST_ACL(acl::set_device(device));
    aclrtDrvMemHandle physical = nullptr;
    DATADIST_ACL(acl::symbols().aclrtMemImportFromShareableHandleV2(
        &handle.fabric, ACL_MEM_SHARE_HANDLE_TYPE_FABRIC, 0, &physical));
    segment = std::make_shared<Segment>(device, physical, handle.bytes);
    slot = segment;
  }
  return {{segment->address() + offset, Reach::kImported}, segment};
}

}  // namespace datadist::mapped
