// Where the last push and the last pull over a link went, for the next ones: an engine asks for the same
// caches and layers again and again, with other blocks. What was registered, withdrawn or announced since
// makes it void.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cache/cache.h"
#include "link/route.h"
#include "plan/span.h"

namespace datadist {

struct TransferPlan;
struct TransferRequest;

class KnownEnds {
 public:
  struct Versions {
    uint64_t local = 0;
    uint64_t remote = 0;
    bool operator==(const Versions&) const = default;
  };

  // Fills in the caches, pinned, their layers and what their memory needs. False: the last one was not like
  // this.
  bool find(const LocalCaches& local, const RemoteCaches& remote, const TransferRequest& request,
            TransferPlan* plan) const;
  // `versions`: from before they were looked up.
  void keep(Versions versions, const TransferRequest& request, const TransferPlan& plan);

 private:
  // What the ends depend on, all of it.
  struct Asked {
    Layout layout = Layout::kBlocks;
    int64_t dimension_0 = 0;
    uint64_t model_id = 0;
    std::optional<int64_t> cache_id;
    size_t slices = 0;
    int64_t size_bytes = 0;
    int64_t src_layer = 0;
    int64_t dst_layer = 0;
    int64_t num_layers = 0;
    int64_t tensors_per_layer = 0;
    bool operator==(const Asked&) const = default;
  };
  struct Known {
    Versions versions;
    Asked asked;
    std::vector<char*> tensors;
    std::weak_ptr<LocalCache> local;
    std::weak_ptr<RemoteCache> remote;
    LayerRange local_layers;
    LayerRange remote_layers;
    RouteNeeds needs;
  };
  static Asked asked_of(const TransferRequest& request);
  static size_t index_of(const TransferRequest& request);

  mutable std::mutex mutex_;
  std::array<Known, 2> known_;  // of a push and of a pull
};

}  // namespace datadist
