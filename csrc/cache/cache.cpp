#include "cache/cache.h"

#include <algorithm>

#include "acl/queue.h"
#include "error.h"
#include "link/kept.h"
#include "messages/messages.h"

namespace datadist {
namespace {

// Called with the table's lock held, so that no withdrawal falls between finding a cache and pinning it. The
// count goes down last: whoever sees zero finds that the pin holds nothing any more.
template <typename T>
std::shared_ptr<T> pin(std::shared_ptr<T> cache) {
  ++*cache->transfers;
  T* const itself = cache.get();
  auto count = cache->transfers;
  auto unpin = [held = std::move(cache), count = std::move(count)](T*) mutable {
    held.reset();
    --*count;
  };
  return std::shared_ptr<T>(itself, std::move(unpin), Kept<T>());
}

bool is_at(const LocalCache& cache, std::span<char* const> tensors) {
  return std::equal(cache.tensors.begin(), cache.tensors.end(), tensors.begin(), tensors.end(),
                    [](const Place& place, const char* address) { return place.address == address; });
}

// Tensors with one handle lie in one allocation; the first of them gives it its number.
std::vector<uintptr_t> slabs_of(const std::vector<Exported>& exports) {
  std::map<std::string, uintptr_t> numbers;
  std::vector<uintptr_t> slabs;
  for (const Exported& tensor : exports) {
    const bool is_known = tensor.kind == MemoryKind::kDevice && !tensor.handle.empty();
    slabs.push_back(is_known ? numbers.emplace(tensor.handle, slabs.size() + 1).first->second : 0);
  }
  return slabs;
}

}  // namespace

Reach reach_of_tensor(const char* address, int64_t bytes, bool is_on_host) {
  if (!is_on_host) return Reach::kDevice;
  const bool is_pinned = acl::is_page_locked(address) && acl::is_page_locked(address + bytes - 1);
  return is_pinned ? Reach::kPinned : Reach::kPageable;
}

int64_t LocalCaches::add(Geometry geometry, std::vector<Place> tensors, std::vector<uintptr_t> slabs,
                         std::vector<std::shared_ptr<void>> storage, bool receives, bool is_offered) {
  auto cache = std::make_shared<LocalCache>();
  cache->geometry = std::move(geometry);
  cache->tensors = std::move(tensors);
  cache->slabs = std::move(slabs);
  cache->storage = std::move(storage);
  cache->receives = receives;
  std::lock_guard lock(mutex_);
  ++version_;
  cache->id = next_id_++;
  by_id_[cache->id] = cache;
  by_address_.emplace(cache->tensors.front().address, cache);
  for (size_t t = 0; t < cache->tensors.size(); ++t) {
    const Place& place = cache->tensors[t];
    const char* const end = place.address + cache->bytes_of(static_cast<int64_t>(t));
    ranges_.emplace(place.address, Range{cache->id, end, place.reach, is_offered, receives});
  }
  return cache->id;
}

std::optional<Reach> LocalCaches::reach_of(const char* address, size_t bytes) const {
  return reach_of(address, bytes, [](const Range&) { return true; });
}

std::optional<Reach> LocalCaches::reach_for_peers(const char* address, size_t bytes, bool is_written) const {
  if (!is_written) return reach_of(address, bytes, [](const Range& range) { return range.is_offered; });
  return reach_of(address, bytes, [](const Range& range) { return range.is_offered && range.receives; });
}

std::optional<Reach> LocalCaches::reach_of(const char* address, size_t bytes,
                                           bool (*is_meant)(const Range&)) const {
  std::shared_lock lock(mutex_);
  // The tensor that begins last before it, as a rule; caches may overlap.
  for (auto range = ranges_.upper_bound(address); range != ranges_.begin();) {
    --range;
    const char* const end = range->second.end;
    if (!is_meant(range->second)) continue;
    if (address < end && bytes <= static_cast<size_t>(end - address)) return range->second.reach;
  }
  return std::nullopt;
}

std::shared_ptr<LocalCache> LocalCaches::get(int64_t id, const char* asked) const {
  std::shared_lock lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) refuse(Message::no_such_local_cache, {{"asked", asked}, {"value", id}});
  return found->second;
}

std::shared_ptr<LocalCache> LocalCaches::find_held(int64_t id) const {
  std::shared_lock lock(mutex_);
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

std::shared_ptr<LocalCache> LocalCaches::find_id(int64_t id, const char* asked) const {
  std::shared_lock lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || found->second->is_withdrawn)
    refuse(Message::no_such_local_cache, {{"asked", asked}, {"value", id}});
  return pin(found->second);
}

std::shared_ptr<LocalCache> LocalCaches::pin_again(const std::weak_ptr<LocalCache>& found,
                                                   uint64_t version) const {
  std::shared_lock lock(mutex_);
  if (version_ != version) return nullptr;
  auto cache = found.lock();
  return cache == nullptr ? nullptr : pin(std::move(cache));
}

std::shared_ptr<LocalCache> LocalCaches::find(std::span<char* const> tensors, bool is_blocks,
                                              int64_t num_blocks, const char* asked,
                                              const MakeCopy& make_copy) const {
  if (tensors.empty())
    refuse(Message::bad_value, {{"name", join(asked, ": cache")},
                                {"value", "an empty list"},
                                {"expected", "the tensors of one registered cache"}});
  std::shared_lock lock(mutex_);
  std::shared_ptr<LocalCache> of_other_shape;
  std::shared_ptr<LocalCache> of_other_kind;
  const auto [first, last] = by_address_.equal_range(tensors.front());
  for (auto it = last; it != first;) {
    const auto& cache = (--it)->second;
    if (cache->is_withdrawn || !is_at(*cache, tensors)) continue;
    if (cache->geometry.is_blocks != is_blocks) {
      of_other_kind = cache;
    } else if (cache->geometry.num_blocks == num_blocks) {
      return pin(cache);
    } else if (of_other_shape == nullptr) {
      of_other_shape = cache;
    }
  }
  if (of_other_shape != nullptr) return pin(of_other_shape);
  if (of_other_kind != nullptr) {
    refuse(Message::other_kind_of_cache, {{"asked", asked},
                                          {"cache", join("cache ", of_other_kind->id)},
                                          {"found", is_blocks ? "contiguous cache" : "blocks cache"},
                                          {"wanted", is_blocks ? "blocks cache" : "contiguous cache"}});
  }
  lock.unlock();
  if (make_copy != nullptr) {
    if (auto copy = make_copy()) return copy;
  }
  refuse(Message::tensors_are_no_cache, {{"asked", asked}, {"value", tensors.size()}});
}

std::shared_ptr<LocalCache> LocalCaches::add_copy(Geometry geometry, std::vector<Place> tensors,
                                                  std::shared_ptr<void> storage) {
  const auto is_alike = [&](const LocalCache& cache) {
    return !cache.receives && !cache.is_withdrawn && cache.geometry == geometry &&
           is_on_device(cache.tensors.front().reach) == is_on_device(tensors.front().reach);
  };
  for (size_t t = 0; t < tensors.size(); ++t) {
    const auto bytes = static_cast<size_t>(geometry.num_blocks * geometry.strides[t]);
    if (reach_of(tensors[t].address, bytes)) return nullptr;
  }
  std::lock_guard lock(mutex_);
  const auto original = std::find_if(by_id_.rbegin(), by_id_.rend(),
                                     [&](const auto& entry) { return is_alike(*entry.second); });
  if (original == by_id_.rend()) return nullptr;
  auto copy = std::make_shared<LocalCache>();
  copy->id = original->first;
  copy->is_copy = true;
  copy->geometry = std::move(geometry);
  copy->slabs.resize(tensors.size());
  copy->tensors = std::move(tensors);
  copy->storage.push_back(std::move(storage));
  copy->receives = false;
  copies_.push_back(copy);
  return pin(copy);
}

void LocalCaches::let_go_of_copies() {
  std::vector<std::shared_ptr<LocalCache>> ended;  // freed after the lock is released
  std::lock_guard lock(mutex_);
  for (auto& copy : copies_) {
    if (*copy->transfers == 0) ended.push_back(std::move(copy));
  }
  std::erase(copies_, nullptr);
}

void LocalCaches::withdraw(int64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  ++version_;
  found->second->is_withdrawn = true;
}

void LocalCaches::release(int64_t id) {
  std::shared_ptr<LocalCache> held;  // freed after the lock is released
  std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  held = found->second;
  if (*held->transfers != 0)
    refuse(Message::cache_is_in_use, {{"value", id}, {"count", held->transfers->load()}});
  ++version_;
  by_id_.erase(found);
  std::erase_if(by_address_, [&](const auto& entry) { return entry.second == held; });
  std::erase_if(ranges_, [&](const auto& entry) { return entry.second.cache == id; });
}

void RemoteCaches::add(std::shared_ptr<RemoteCache> cache) {
  cache->tensors.resize(cache->exports.size());
  cache->slabs = slabs_of(cache->exports);
  std::lock_guard lock(mutex_);
  ++version_;
  announced_.push_back(std::move(cache));
}

void RemoteCaches::drop(int64_t id) {
  std::lock_guard lock(mutex_);
  ++version_;
  for (auto it = announced_.begin(); it != announced_.end();) {
    if ((*it)->id == id) {
      dropped_.push_back(*it);
      it = announced_.erase(it);
    } else {
      ++it;
    }
  }
}

bool RemoteCaches::is_in_use(int64_t id) {
  std::vector<std::shared_ptr<RemoteCache>> unmapped;  // after the lock is released
  std::lock_guard lock(mutex_);
  for (auto it = dropped_.begin(); it != dropped_.end();) {
    if (*(*it)->transfers == 0) {
      unmapped.push_back(std::move(*it));
      it = dropped_.erase(it);
    } else {
      ++it;
    }
  }
  const auto is_it = [&](const auto& cache) { return cache->id == id; };
  return std::any_of(dropped_.begin(), dropped_.end(), is_it) ||
         std::any_of(announced_.begin(), announced_.end(), is_it);
}

std::shared_ptr<RemoteCache> RemoteCaches::find_id(int64_t id, const char* asked,
                                                   const std::string& peer) const {
  std::lock_guard lock(mutex_);
  for (const auto& cache : announced_) {
    if (cache->id == id) return pin(cache);
  }
  std::string there;
  for (const auto& cache : announced_) there += join(there.empty() ? "" : ", ", cache->id);
  refuse(Message::peer_has_no_cache,
         {{"asked", asked},
          {"peer", peer},
          {"what", "cache with cache_id"},
          {"value", id},
          {"known", there.empty() ? std::string("none") : join("cache_id ", there)}});
}

std::shared_ptr<RemoteCache> RemoteCaches::pin_again(const std::weak_ptr<RemoteCache>& found,
                                                     uint64_t version) const {
  std::lock_guard lock(mutex_);
  if (version_ != version) return nullptr;
  auto cache = found.lock();
  return cache == nullptr ? nullptr : pin(std::move(cache));
}

std::shared_ptr<RemoteCache> RemoteCaches::find_model(uint64_t model_id, const char* asked,
                                                      const std::string& peer) const {
  std::lock_guard lock(mutex_);
  for (auto it = announced_.rbegin(); it != announced_.rend(); ++it) {
    if ((*it)->model_id == model_id && (*it)->geometry.is_blocks) return pin(*it);
  }
  std::string there;
  for (const auto& cache : announced_) {
    if (cache->model_id) there += join(there.empty() ? "" : ", ", *cache->model_id);
  }
  refuse(Message::peer_has_no_cache,
         {{"asked", asked},
          {"peer", peer},
          {"what", "blocks cache with model_id"},
          {"value", model_id},
          {"known", there.empty() ? std::string("none") : join("model_id ", there)}});
}

void RemoteCaches::clear() {
  std::lock_guard lock(mutex_);
  ++version_;
  announced_.clear();
  dropped_.clear();
}

LayerRange resolve_layers(const Geometry& geometry, LayerRange range, const char* side, const char* asked) {
  const int64_t tensors = geometry.num_tensors();
  if (range.tensors_per_layer < 1 || range.tensors_per_layer > tensors) {
    refuse(Message::tensors_per_layer_out_of_range,
           {{"asked", asked}, {"value", range.tensors_per_layer}, {"count", tensors}, {"side", side}});
  }
  if (tensors % range.tensors_per_layer != 0) {
    refuse(Message::tensors_are_no_whole_layers,
           {{"asked", asked}, {"value", range.tensors_per_layer}, {"count", tensors}, {"side", side}});
  }
  const int64_t layers = geometry.num_tensors() / range.tensors_per_layer;
  const bool begins_inside = range.first_layer >= 0 && range.first_layer < layers;
  if (range.layers < 0 && begins_inside) range.layers = layers - range.first_layer;
  if (!begins_inside || range.layers < 1 || range.layers > layers - range.first_layer) {
    refuse(Message::layers_outside,
           {{"asked", asked},
            {"side", side},
            {"first", range.first_layer},
            {"value", range.layers < 0 ? "all layers" : join(range.layers, " layers")},
            {"count", layers},
            {"per_layer", range.tensors_per_layer}});
  }
  return range;
}

}  // namespace datadist
