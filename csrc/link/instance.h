// One LLMDataDist: its caches and its links.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "cache/cache.h"
#include "link/engine.h"
#include "link/link.h"
#include "link/transfer.h"

namespace datadist {

// What a push or a pull asks for, checked against both ends by `plan_transfer` before anything is queued.
struct TransferRequest {
  Direction direction = Direction::kPush;
  const char* asked = "";
  std::span<char* const> cache;     // the local cache's tensors
  int64_t dimension_0 = -1;         // of theirs; tells two caches apart that share them
  LocalCaches::MakeCopy make_copy;  // when they are none that is registered; a push only
  // The peer's cache: by the model_id of a blocks cache, or by its id.
  uint64_t model_id = 0;
  std::optional<int64_t> cache_id;
  Layout layout = Layout::kBlocks;
  const int64_t* src_blocks = nullptr;  // kBlocks
  size_t src_length = 0;
  const int64_t* dst_blocks = nullptr;  // kBlocks, kEntryToBlocks
  size_t dst_length = 0;
  int64_t src_entry = 0;
  int64_t dst_entry = 0;
  int64_t size_bytes = -1;  // kEntry: of each tensor; -1: the whole local entry
  int64_t src_layer = 0;
  int64_t dst_layer = 0;
  int64_t num_layers = -1;
  int64_t tensors_per_layer = 2;
  int64_t timeout_ms = 0;
  bool may_pack = false;  // a push with a ticket: all that a fenced link takes
  int64_t ticket = 0;     // of a pull: its publication; 0: the caller knows that the blocks are ready
};

class Instance {
 public:
  Instance(int device, int64_t cluster_id, LinkOptions options);
  ~Instance();

  LocalCaches& caches() { return *caches_; }
  void release_cache(int64_t id);
  int device() const { return engine_->device(); }
  std::shared_ptr<Link> open_link(Peer peer);
  std::shared_ptr<Link> link(int64_t handle, const char* asked) const;
  Link::Counts counts_of(int64_t handle) const;  // none of a link that is closed
  // `patience`: for the transfers that run on it; none given: what the options say.
  void close_link(int64_t handle, std::optional<std::chrono::milliseconds> patience = std::nullopt);
  void close();

 private:
  const std::shared_ptr<Engine> engine_;
  const int64_t cluster_id_;
  const LinkOptions options_;
  const std::shared_ptr<LocalCaches> caches_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Link>> links_;
  bool is_closed_ = false;
};

// The link behind a handle that came through an op, alive.
std::shared_ptr<Link> require_link(int64_t handle, const char* asked);

// In link/request.cpp.
TransferPlan plan_transfer(Link& link, const TransferRequest& request);
// For the peer of that link: these tensors of a cache of this instance. A negative count means all that
// follow.
TransferPlan plan_publication(const Link& link, int64_t cache_id, int64_t first_tensor, int64_t tensors,
                              int64_t timeout_ms);

}  // namespace datadist
