// What the core knows of a cache: its geometry, and where each tensor lies — here, or at a peer.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace datadist {

// All tensors of a cache are equal: num_blocks blocks of block_bytes, block i at i * block_bytes.
struct Geometry {
  int64_t num_tensors = 0;
  int64_t num_blocks = 0;
  int64_t block_bytes = 0;
};

// The tensors that a transfer touches on one side: `layers` layers of `tensors_per_layer` from `first_layer`
// on.
struct LayerRange {
  int64_t first_layer = 0;
  int64_t layers = 0;
  int64_t tensors_per_layer = 0;
};

// A cache of this instance. `storage` keeps the memory alive; it is let go on a Python thread, never by the
// watchdog.
struct LocalCache {
  int64_t id = 0;
  Geometry geometry;
  std::vector<char*> tensors;
  std::vector<std::shared_ptr<void>> storage;
  std::shared_ptr<std::atomic<int64_t>> transfers = std::make_shared<std::atomic<int64_t>>(0);  // that pin it
  bool is_withdrawn = false;
};

// A cache that a peer announced. A tensor is mapped by the link's feeding thread when a transfer first needs
// it.
struct RemoteCache {
  int64_t id = 0;
  std::optional<uint64_t> model_id;
  Geometry geometry;
  std::vector<Exported> exports;
  std::vector<std::shared_ptr<void>> mappings;
  std::vector<char*> tensors;  // nullptr until mapped
  std::shared_ptr<std::atomic<int64_t>> transfers = std::make_shared<std::atomic<int64_t>>(0);
};

class LocalCaches {
 public:
  int64_t add(Geometry geometry, std::vector<char*> tensors, std::vector<std::shared_ptr<void>> storage);
  std::shared_ptr<LocalCache> get(int64_t id, const char* asked) const;
  // By the address of its first tensor; the others must follow in order. Throws when it is not registered
  // memory.
  std::shared_ptr<LocalCache> find(const std::vector<char*>& tensors, const char* asked) const;
  void withdraw(int64_t id);
  void release(int64_t id);

 private:
  mutable std::mutex mutex_;
  int64_t next_id_ = 1;
  std::map<int64_t, std::shared_ptr<LocalCache>> by_id_;
  std::multimap<char*, std::shared_ptr<LocalCache>>
      by_address_;  // two caches may share an address: the last one counts
};

class RemoteCaches {
 public:
  void add(std::shared_ptr<RemoteCache> cache);
  void drop(int64_t id);
  // False once no transfer touches it; its mappings go with that answer, on the caller's thread.
  bool is_in_use(int64_t id);
  // The last announced blocks cache of that model id, pinned: it stays mapped, and `is_in_use`, as long as
  // what is returned lives. Throws LLM_KV_CACHE_NOT_EXIST naming what there is.
  std::shared_ptr<RemoteCache> find(uint64_t model_id, const char* asked, const std::string& peer) const;
  void clear();

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<RemoteCache>> announced_;
  std::vector<std::shared_ptr<RemoteCache>> dropped_;  // still touched by transfers
};

// Fills in a negative `layers` (all that follow) and checks the range against the cache.
LayerRange resolve_layers(const Geometry& geometry, LayerRange asked_range, const char* side,
                          const char* asked);

// Both ends must agree on bytes per block; counts of blocks may differ.
void require_same_layout(const Geometry& local, const Geometry& remote, const char* asked,
                         const std::string& peer);

}  // namespace datadist
