// What the core knows of a cache: its geometry, and where each tensor lies — here, or at a peer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace datadist {

// A blocks cache has num_blocks blocks in each tensor, a contiguous one num_blocks batch entries; either
// starts at i * strides[t] in tensor t. Tensors may differ in the size of a block (MLA), not in their number.
struct Geometry {
  int64_t num_blocks = 0;
  bool is_blocks = true;
  std::vector<int64_t> strides;

  int64_t num_tensors() const { return static_cast<int64_t>(strides.size()); }
  bool operator==(const Geometry&) const = default;
};

// Of a tensor of this process, on its device or on the host.
Reach reach_of_tensor(const char* address, int64_t bytes, bool is_on_host);

// The tensors that a transfer touches on one side: `layers` layers of `tensors_per_layer` from `first_layer`
// on.
struct LayerRange {
  int64_t first_layer = 0;
  int64_t layers = 0;
  int64_t tensors_per_layer = 0;
};

// A cache of this instance. `storage` keeps the memory alive; it is let go on a Python thread, never by the
// watchdog.
struct LocalCache : std::enable_shared_from_this<LocalCache> {
  int64_t id = 0;
  bool is_copy = false;  // of `add_copy`: of one op's, and of no other's
  Geometry geometry;
  std::vector<Place> tensors;
  std::vector<uintptr_t> slabs;  // per tensor, the allocation that it lies in; 0: not known
  std::vector<std::shared_ptr<void>> storage;
  std::shared_ptr<std::atomic<int64_t>> transfers = std::make_shared<std::atomic<int64_t>>(0);  // that pin it
  bool is_withdrawn = false;
  bool receives = true;  // peers, and pulls, may write into it

  size_t bytes_of(int64_t tensor) const {
    return static_cast<size_t>(geometry.num_blocks * geometry.strides[static_cast<size_t>(tensor)]);
  }
};

// A cache that a peer announced. A tensor is mapped by the link's feeding thread when a transfer first needs
// it.
struct RemoteCache : std::enable_shared_from_this<RemoteCache> {
  int64_t id = 0;
  std::optional<uint64_t> model_id;
  Geometry geometry;
  bool receives = true;
  std::vector<Exported> exports;
  std::vector<uintptr_t> slabs;  // as LocalCache's
  std::vector<Mapped> tensors;   // address nullptr until mapped
  std::shared_ptr<std::atomic<int64_t>> transfers = std::make_shared<std::atomic<int64_t>>(0);
};

class LocalCaches {
 public:
  // Makes what takes the place of tensors that are not registered memory; nullptr: there is nothing.
  using MakeCopy = std::function<std::shared_ptr<LocalCache>()>;

  int64_t add(Geometry geometry, std::vector<Place> tensors, std::vector<uintptr_t> slabs,
              std::vector<std::shared_ptr<void>> storage, bool receives = true, bool is_offered = true);
  std::shared_ptr<LocalCache> get(int64_t id, const char* asked) const;
  std::shared_ptr<LocalCache> find_held(int64_t id) const;  // nullptr: there is none, withdrawn or not
  // Pinned, and not withdrawn.
  std::shared_ptr<LocalCache> find_id(int64_t id, const char* asked) const;
  // What was found before, pinned once more; nullptr when anything was registered or withdrawn since then.
  std::shared_ptr<LocalCache> pin_again(const std::weak_ptr<LocalCache>& found, uint64_t version) const;
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // By the addresses of its tensors, in order. Throws when that is not registered memory. Caches may share
  // memory: of those of the kind that is asked for, the one with `num_blocks` (the size of the tensors'
  // dimension 0) is meant, and of several the last.
  std::shared_ptr<LocalCache> find(std::span<char* const> tensors, bool is_blocks, int64_t num_blocks,
                                   const char* asked, const MakeCopy& make_copy = nullptr) const;
  // Other memory with the content of a cache that receives nothing, of the same geometry and as far away.
  // Pinned, and found by nobody else; `storage` lives until `let_go_of_copies`, which comes on a thread that
  // may let go of it. nullptr: no such cache is registered, or this is memory of a registered one.
  std::shared_ptr<LocalCache> add_copy(Geometry geometry, std::vector<Place> tensors,
                                       std::shared_ptr<void> storage);
  // Of those that no transfer touches any more.
  void let_go_of_copies();
  void withdraw(int64_t id);
  void release(int64_t id);
  // How all of that memory is reached; nullopt where it is not memory of one tensor of a cache.
  std::optional<Reach> reach_of(const char* address, size_t bytes) const;
  // The same; nullopt, too, where no cache offers peers to read it, or to write it.
  std::optional<Reach> reach_for_peers(const char* address, size_t bytes, bool is_written) const;

 private:
  mutable std::shared_mutex mutex_;  // ops only read, side by side
  std::atomic<uint64_t> version_{0};
  int64_t next_id_ = 1;
  std::map<int64_t, std::shared_ptr<LocalCache>> by_id_;
  std::multimap<char*, std::shared_ptr<LocalCache>> by_address_;  // of the first tensor
  std::vector<std::shared_ptr<LocalCache>> copies_;
  struct Range {
    int64_t cache;
    const char* end;
    Reach reach;
    bool is_offered;
    bool receives;
  };
  std::optional<Reach> reach_of(const char* address, size_t bytes, bool (*is_meant)(const Range&)) const;
  std::multimap<const char*, Range> ranges_;  // of every tensor
};

class RemoteCaches {
 public:
  void add(std::shared_ptr<RemoteCache> cache);
  void drop(int64_t id);
  // False once no transfer touches it; its mappings go with that answer, on the caller's thread.
  bool is_in_use(int64_t id);
  // The last announced blocks cache of that model id, or the cache with that id. Pinned: it stays mapped, and
  // `is_in_use`, as long as what is returned lives. Throws LLM_KV_CACHE_NOT_EXIST naming what there is.
  std::shared_ptr<RemoteCache> find_model(uint64_t model_id, const char* asked,
                                          const std::string& peer) const;
  std::shared_ptr<RemoteCache> find_id(int64_t id, const char* asked, const std::string& peer) const;
  std::shared_ptr<RemoteCache> pin_again(const std::weak_ptr<RemoteCache>& found, uint64_t version) const;
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  void clear();

 private:
  mutable std::mutex mutex_;
  std::atomic<uint64_t> version_{0};
  std::vector<std::shared_ptr<RemoteCache>> announced_;
  std::vector<std::shared_ptr<RemoteCache>> dropped_;  // still touched by transfers
};

// Fills in a negative `layers` (all that follow) and checks the range against the cache.
LayerRange resolve_layers(const Geometry& geometry, LayerRange asked_range, const char* side,
                          const char* asked);

}  // namespace datadist
