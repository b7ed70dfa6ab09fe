#include "transport/mapped/mapped.h"

#include <ATen/ops/empty.h>
#include <torch_npu/csrc/core/npu/NPUCachingAllocator.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>

#include <map>
#include <mutex>

#include "acl/address_range.h"
#include "acl/check.h"
#include "acl/stream.h"
#include "error.h"
#include "messages/messages.h"
#include "transport/mapped/fabric.h"
#include "transport/mapped/host_memory.h"
#include "transport/stream_copies.h"

namespace datadist::mapped {
namespace {

// torch_npu's allocator acts on the current device of the calling thread, and its thread-local record of that
// device may be out of step with the runtime's context (a feeding thread sits in its link's own). Sets both,
// restores both.
class AllocatorScope {
 public:
  explicit AllocatorScope(int device) {
    DATADIST_ACL(c10_npu::GetDevice(&previous_));
    DATADIST_ACL(c10_npu::SetDevice(static_cast<c10::DeviceIndex>(device)));
    DATADIST_ACL(acl::set_device(device));
  }
  ~AllocatorScope() { c10_npu::SetDevice(static_cast<c10::DeviceIndex>(previous_)); }
  AllocatorScope(const AllocatorScope&) = delete;
  AllocatorScope& operator=(const AllocatorScope&) = delete;

 private:
  acl::ContextScope restore_;  // last, after torch_npu's own record
  int32_t previous_ = 0;
};

using Segments = decltype(c10_npu::NPUCachingAllocator::snapshot().segments);

// A context in which nothing ever runs, and a stream of it.
struct Quiet {
  explicit Quiet(int device) : context(device), stream(context, acl::OnFailure::kContinue) {}

  acl::Context context;
  acl::Stream stream;
};

const Quiet& quiet(int device) {
  static std::mutex mutex;
  static auto* const all = new std::map<int, Quiet*>;  // kept: exit order is not ours
  std::lock_guard lock(mutex);
  Quiet*& one = (*all)[device];
  if (one == nullptr) {
    acl::ContextScope restore;
    one = new Quiet(device);
  }
  return *one;
}

// The allocator keeps what was freed for the stream on which it was taken, since the next user comes behind
// the last one there; ours run on streams of ours, and would write memory that a kernel of the caller's
// stream has yet to read.
c10_npu::NPUStream stream_of_our_memory(int device) {
  return c10_npu::getStreamFromExternal(quiet(device).stream.get(), static_cast<c10::DeviceIndex>(device));
}

class CurrentStreamScope {
 public:
  explicit CurrentStreamScope(const c10_npu::NPUStream& stream)
      : previous_(c10_npu::getCurrentNPUStream(stream.device_index())) {
    c10_npu::setCurrentNPUStream(stream);
  }
  ~CurrentStreamScope() { c10_npu::setCurrentNPUStream(previous_); }
  CurrentStreamScope(const CurrentStreamScope&) = delete;
  CurrentStreamScope& operator=(const CurrentStreamScope&) = delete;

 private:
  const c10_npu::NPUStream previous_;
};

struct Block {
  char* begin = nullptr;  // nullptr: not the allocator's memory, or free
  size_t size = 0;
};

// The allocator shares a block by its first byte only, and a cache may be a view into a slab.
Block allocated_block_of(const Segments& segments, int device, const char* address) {
  for (const auto& segment : segments) {
    if (segment.device != device) continue;
    char* block = reinterpret_cast<char*>(segment.address);
    if (address < block || address >= block + segment.total_size) continue;
    for (const auto& info : segment.blocks) {
      if (address < block + info.size)
        return info.allocated ? Block{block, static_cast<size_t>(info.size)} : Block{};
      block += info.size;
    }
  }
  return {};
}

// A cache may be given by addresses, which say nothing of how much is there.
void require_allocated(const Segments& segments, int device, const OwnMemory& memory) {
  const char* const address = memory.place.address;
  const Block block = allocated_block_of(segments, device, address);
  if (block.begin == nullptr) return;  // what does not know it refuses it when it is exported
  const auto known = static_cast<size_t>(block.begin + block.size - address);
  if (memory.bytes > known) {
    refuse(Message::memory_is_too_short, {{"value", static_cast<const void*>(address)},
                                          {"bytes", memory.bytes},
                                          {"known", known},
                                          {"device", device}});
  }
}

// What an address has around it for as long as its tensor lives. Of a segment that is one allocation that is
// all of it; an expandable one loses what is free, so that between two blocks of it a hole may open later.
uintptr_t slab_of(const Segments& segments, int device, const char* address) {
  for (const auto& segment : segments) {
    const char* const begin = reinterpret_cast<const char*>(segment.address);
    if (segment.device != device || address < begin || address >= begin + segment.total_size) continue;
    return reinterpret_cast<uintptr_t>(
        segment.is_expandable ? allocated_block_of(segments, device, address).begin : begin);
  }
  return 0;
}

// torch_npu synchronises the current context before it unmaps, and throws where that fails: out of a
// destructor, which ends the process. Where nothing runs nothing fails, be it a word that was on its way to a
// peer that died, and the watchdog is not held up by a stream that waits for it. What is mapped of a lost
// device stays mapped.
std::shared_ptr<void> unmapped_where_nothing_runs(int device, std::shared_ptr<void> segment) {
  void* address = segment.get();
  auto* held = new std::shared_ptr<void>(std::move(segment));
  return {address, [device, held](void*) {
            try {
              AllocatorScope scope(device);
              const Quiet& where = quiet(device);
              where.context.make_current();
              if (acl::synchronize(where.stream.get(), 0) == ACL_SUCCESS) delete held;
            } catch (const std::exception&) {  // the device is lost
            }
          }};
}

class MappedTransport : public StreamCopies {
 public:
  MappedTransport(int device, PeerProcess peer) : device_(device), peer_(peer) {}

  const char* name() const override { return peer_.is_on_this_host ? "mapped" : "fabric"; }

  std::vector<Exported> export_memory(const std::vector<OwnMemory>& memory) override {
    if (!peer_.is_on_this_host) return export_beyond_this_host(memory);
    return export_on_this_host(device_, memory);
  }

  Mapped map(const Exported& memory, size_t bytes) override {
    if (peer_.in_this_process) {
      if (memory.kind == MemoryKind::kDevice) enable_peer_access();
      return {{reinterpret_cast<char*>(memory.address), reach_of(memory.kind)}, nullptr};
    }
    require(peer_.is_on_this_host || is_fabric(memory), kLinkFailed, "process ", peer_.pid,
            " of another host announced memory that is no fabric memory. Nothing was sent; the link is still "
            "usable.");
    if (is_fabric(memory)) return map_fabric(device_, memory, bytes);
    switch (memory.kind) {
      case MemoryKind::kSharedHost:
        return map_shared_host(device_, {peer_.pid, peer_.start_time}, memory, bytes);
      case MemoryKind::kPrivateHost:
        if (peer_memory_ == nullptr) peer_memory_ = open_memory_of({peer_.pid, peer_.start_time});
        return {{reinterpret_cast<char*>(memory.address), Reach::kForeign, *peer_memory_}, nullptr};
      case MemoryKind::kDevice:
        break;
    }
    AllocatorScope scope(device_);
    // Also where it is refused below: the caller's stream may wait for what that ends.
    std::shared_ptr<void> segment =
        unmapped_where_nothing_runs(device_, c10_npu::NPUCachingAllocator::getIpcDevPtr(memory.handle));
    char* const begin = static_cast<char*>(segment.get());
    require_mapped(begin, memory.offset, bytes);
    return {{begin + memory.offset, Reach::kImported}, std::move(segment)};
  }

  Reach reach_of(MemoryKind kind) const override {
    if (kind == MemoryKind::kSharedHost) return Reach::kPinned;
    if (kind == MemoryKind::kPrivateHost) return peer_.in_this_process ? Reach::kPageable : Reach::kForeign;
    return peer_.in_this_process && peer_.device == device_ ? Reach::kDevice : Reach::kImported;
  }

 private:
  static std::vector<Exported> export_beyond_this_host(const std::vector<OwnMemory>& memory) {
    std::vector<Exported> exported;
    for (const OwnMemory& own : memory) {
      require(is_on_device(own.place.reach), kFeatureNotEnabled,
              "a host cache is not reached from another host over fabric handles (207000); transport='hixl' "
              "and 'nixl' reach it");
      auto found = export_fabric(own.place.address);
      require(found.has_value(), kParamInvalid, "device memory at ", static_cast<void*>(own.place.address),
              " cannot be exported to another host over fabric handles: memory of mem_pool_cfg "
              "(allocate_cache, allocate_blocks_cache) can; transport='hixl' and 'nixl' take any");
      exported.push_back(std::move(*found));
    }
    return exported;
  }

  // What the peer says of its memory is the peer's word: no copy of ours leaves what it has really exported.
  void require_mapped(char* segment, int64_t offset, size_t bytes) const {
    const auto begin = static_cast<size_t>(offset);
    const size_t end = begin + bytes;
    const size_t there = offset < 0 || end < begin ? 0 : acl::mapped_bytes(segment, end).value_or(end);
    require(offset >= 0 && end >= begin && there == end, kLinkFailed, "process ", peer_.pid,
            " announced a tensor of ", bytes, " bytes at offset ", offset,
            " of an exported segment, of which ", there,
            " bytes are mapped here. Nothing was sent; the link is still usable.");
  }

  void enable_peer_access() {
    if (has_peer_access_ || peer_.device == device_) return;
    AllocatorScope scope(device_);
    DATADIST_ACL(acl::enable_peer_access(peer_.device));
    has_peer_access_ = true;
  }

  const int device_;
  const PeerProcess peer_;
  std::shared_ptr<const int> peer_memory_;
  bool has_peer_access_ = false;
};

}  // namespace

DeviceMemory allocate(int device, size_t bytes) {
  AllocatorScope scope(device);
  const CurrentStreamScope ours(stream_of_our_memory(device));
  const auto options =
      at::TensorOptions().dtype(at::kByte).device(c10::Device(c10::DeviceType::PrivateUse1, device));
  auto tensor = std::make_shared<at::Tensor>(at::empty({static_cast<int64_t>(bytes)}, options));
  return {static_cast<char*>(tensor->data_ptr()), tensor};
}

namespace {

Exported export_address(const Segments& segments, int device, char* address) {
  char* const block = allocated_block_of(segments, device, address).begin;
  if (block == nullptr)
    refuse(Message::memory_cannot_be_exported, {{"value", static_cast<void*>(address)}, {"device", device}});
  try {
    const auto shared = c10_npu::NPUCachingAllocator::shareIpcHandle(block);
    return {shared.handle, shared.offset + (address - block), reinterpret_cast<uint64_t>(address),
            MemoryKind::kDevice};
  } catch (const c10::Error& error) {
    throw Error(kFailed, join("exporting device memory at ", static_cast<void*>(address),
                              " failed: ", error.what_without_backtrace()));
  }
}

}  // namespace

std::vector<Exported> export_addresses(int device, const std::vector<char*>& addresses) {
  AllocatorScope scope(device);
  const Segments segments = c10_npu::NPUCachingAllocator::snapshot().segments;
  std::vector<Exported> exported;
  exported.reserve(addresses.size());
  for (char* address : addresses) {
    auto fabric = export_fabric(address);
    exported.push_back(fabric ? std::move(*fabric) : export_address(segments, device, address));
  }
  return exported;
}

std::vector<Exported> export_on_this_host(int device, const std::vector<OwnMemory>& memory) {
  if (memory.front().place.reach == Reach::kDevice) {
    std::vector<char*> addresses;
    for (const OwnMemory& own : memory) addresses.push_back(own.place.address);
    return export_addresses(device, addresses);
  }
  std::vector<Exported> exported;
  for (const OwnMemory& own : memory) exported.push_back(export_host(own.place.address));
  return exported;
}

std::vector<uintptr_t> slabs_of(int device, const std::vector<OwnMemory>& memory) {
  AllocatorScope scope(device);
  const Segments segments = c10_npu::NPUCachingAllocator::snapshot().segments;
  std::vector<uintptr_t> slabs;
  slabs.reserve(memory.size());
  for (const OwnMemory& own : memory) {
    require_allocated(segments, device, own);
    const uintptr_t fabric = fabric_segment_of(own.place.address);
    slabs.push_back(fabric != 0 ? fabric : slab_of(segments, device, own.place.address));
  }
  return slabs;
}

std::unique_ptr<Transport> make_transport(int device, PeerProcess peer) {
  return std::make_unique<MappedTransport>(device, peer);
}

}  // namespace datadist::mapped
