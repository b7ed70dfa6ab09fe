// Which bytes a transfer writes, and what becomes of the next one into the same bytes when it failed with
// copies still queued.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "link/transfer.h"

namespace datadist {

struct Destination {
  struct Range {
    uint64_t space;  // 0 here; else of the peer's segment, by its hash: two that are one cost a wait at most
    uint64_t begin;
    uint64_t end;
  };
  std::vector<Range> ranges;  // sorted, apart

  Destination(const Link& link, const TransferPlan& plan)
      : Destination(link, plan, plan.local, plan.remote) {}
  // Of a plan whose caches another thread may give up meanwhile.
  Destination(const Link& link, const TransferPlan& plan, const std::shared_ptr<LocalCache>& local,
              const std::shared_ptr<RemoteCache>& remote);
  bool overlaps(const Destination& other) const;
};

// Waits until nothing that failed may still write where this plan writes: at most as long as the plan's
// transfer may take, then LLM_TIMEOUT. Costs one load as long as nothing has failed.
void wait_until_settled(const Link& link, const TransferPlan& plan, const char* asked);

}  // namespace datadist
