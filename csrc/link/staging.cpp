#include "link/staging.h"

#include <algorithm>
#include <utility>

#include "acl/queue.h"
#include "error.h"
#include "link/page.h"
#include "transport/mapped/fabric.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr size_t kLeastIds = 1024;

}  // namespace

IdBuffer::IdBuffer(size_t count, int device)
    : capacity(count),
      host(count * sizeof(int64_t)),
      device(mapped::allocate(device, count * sizeof(int64_t))) {}

std::unique_ptr<IdBuffer> LinkStaging::take_ids(size_t count) {
  {
    std::lock_guard lock(mutex_);
    const auto found =
        std::find_if(ids_.begin(), ids_.end(), [&](const auto& ids) { return ids->capacity >= count; });
    if (found != ids_.end()) {
      auto ids = std::move(*found);
      ids_.erase(found);
      return ids;
    }
  }
  size_t capacity = kLeastIds;
  while (capacity < count) capacity *= 2;
  return std::make_unique<IdBuffer>(capacity, device_);
}

void LinkStaging::give_back_ids(std::unique_ptr<IdBuffer> ids) {
  if (ids == nullptr) return;
  std::lock_guard lock(mutex_);
  ids_.push_back(std::move(ids));
}

char* LinkStaging::make_own(size_t bytes) {
  {
    std::lock_guard lock(mutex_);
    if (own_bytes_ > 0) return nullptr;
  }
  DeviceMemory made =
      mapped::allocate_for_peers(device_, bytes);  // may wait for streams, so not under the lock
  std::lock_guard lock(mutex_);
  if (own_bytes_ > 0) return nullptr;
  own_ = std::move(made);
  own_bytes_ = bytes;
  return own_.address;
}

void LinkStaging::keep_untold(Exported staging) {
  std::lock_guard lock(mutex_);
  untold_ = std::move(staging);
}

std::optional<Exported> LinkStaging::take_untold() {
  std::lock_guard lock(mutex_);
  return std::exchange(untold_, std::nullopt);
}

size_t LinkStaging::own_chunk_bytes() const {
  std::lock_guard lock(mutex_);
  return chunk_bytes_of(own_bytes_);
}

char* LinkStaging::own_chunk(uint32_t window, uint64_t chunk) const {
  std::lock_guard lock(mutex_);
  return own_.address + (window * kChunksPerWindow + chunk % kChunksPerWindow) * chunk_bytes_of(own_bytes_);
}

bool LinkStaging::is_own(const char* address, size_t bytes) const {
  std::lock_guard lock(mutex_);
  const char* const end = own_.address + own_bytes_;
  return own_.address != nullptr && address >= own_.address && address < end &&
         bytes <= static_cast<size_t>(end - address);
}

bool LinkStaging::claim(uint32_t window, const void* owner) {
  std::lock_guard lock(mutex_);
  if (owners_[window] == nullptr) owners_[window] = owner;
  return owners_[window] == owner;
}

void LinkStaging::release(uint32_t window, const void* owner) {
  std::lock_guard lock(mutex_);
  if (owners_[window] == owner) owners_[window] = nullptr;
}

void LinkStaging::learn_peer(Exported staging, size_t bytes) {
  std::lock_guard lock(mutex_);
  if (peer_) return;
  peer_ = std::move(staging);
  peer_bytes_ = bytes;
}

bool LinkStaging::knows_peer() const {
  std::lock_guard lock(mutex_);
  return peer_.has_value();
}

size_t LinkStaging::peer_chunk_bytes() const {
  std::lock_guard lock(mutex_);
  return chunk_bytes_of(peer_bytes_);
}

uint32_t LinkStaging::take_window(SlotUse use) {
  std::lock_guard lock(mutex_);
  if (window_of_slot_.empty()) window_of_slot_.resize(kSlots);
  const auto least = std::min_element(tickets_.begin(), tickets_.end());
  ++*least;
  const auto window = static_cast<uint32_t>(least - tickets_.begin());
  window_of_slot_[use.slot] = window;
  return window;
}

void LinkStaging::give_back_window(uint32_t slot) {
  std::lock_guard lock(mutex_);
  if (window_of_slot_.empty()) return;
  if (const auto window = std::exchange(window_of_slot_[slot], std::nullopt)) --tickets_[*window];
}

LinkStaging::Window LinkStaging::prepare_window(uint32_t window, Transport& transport) {
  std::optional<Exported> to_map;
  size_t chunk = 0;
  bool is_made = false;
  {
    std::lock_guard lock(mutex_);
    require(peer_.has_value(), kFailed, "the peer has no staging");
    require(peer_->kind == MemoryKind::kDevice, kLinkFailed,
            "the peer announced staging in what is not device memory. Nothing was sent; the link is still "
            "usable.");
    if (peer_mapping_.address == nullptr) to_map = peer_;
    chunk = chunk_bytes_of(peer_bytes_);
    is_made = gathered_[window].address != nullptr;
  }
  // Both may wait, for the runtime or for streams; nobody else makes them.
  Mapped mapping = to_map ? transport.map(*to_map, kStagingWindows * kChunksPerWindow * chunk) : Mapped();
  DeviceMemory made = is_made ? DeviceMemory() : mapped::allocate(device_, kChunksPerWindow * chunk);
  if (!is_made) transport.use_memory({{made.address, Reach::kDevice}, kChunksPerWindow * chunk});
  std::lock_guard lock(mutex_);
  if (to_map) peer_mapping_ = std::move(mapping);
  if (!is_made) gathered_[window] = std::move(made);
  return {peer_mapping_.address + window * kChunksPerWindow * chunk, gathered_[window].address, chunk};
}

void LinkStaging::unmap_peer() {
  Mapped mapping;
  std::lock_guard lock(mutex_);
  std::swap(mapping, peer_mapping_);
}

void LinkStaging::free(bool also_own, Transport& transport) {
  std::vector<std::unique_ptr<IdBuffer>> ids;
  std::array<DeviceMemory, kStagingWindows> gathered;
  DeviceMemory own;
  {
    std::lock_guard lock(mutex_);
    ids.swap(ids_);
    gathered.swap(gathered_);
    if (also_own) std::swap(own, own_);
  }
  for (const DeviceMemory& window : gathered)
    if (window.address != nullptr) transport.forget_memory(window.address);
  if (own.address != nullptr) transport.forget_memory(own.address);
  if (!ids.empty()) acl::set_device(device_);  // page-locked memory is freed in a context of its device
}

}  // namespace datadist
