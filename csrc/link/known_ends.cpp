#include "link/known_ends.h"

#include <algorithm>

#include "link/instance.h"
#include "link/transfer.h"

namespace datadist {

KnownEnds::Asked KnownEnds::asked_of(const TransferRequest& request) {
  return {request.layout,
          request.dimension_0,
          request.model_id,
          request.cache_id,
          request.layout == Layout::kEntryToBlocks ? request.dst_length : 0,
          request.size_bytes,
          request.src_layer,
          request.dst_layer,
          request.num_layers,
          request.tensors_per_layer};
}

size_t KnownEnds::index_of(const TransferRequest& request) {
  return request.direction == Direction::kPush ? 0 : 1;
}

bool KnownEnds::find(const LocalCaches& local, const RemoteCaches& remote, const TransferRequest& request,
                     TransferPlan* plan) const {
  std::lock_guard lock(mutex_);
  const Known& known = known_[index_of(request)];
  const bool is_it =
      known.asked == asked_of(request) &&
      std::equal(known.tensors.begin(), known.tensors.end(), request.cache.begin(), request.cache.end());
  if (!is_it) return false;
  plan->local = local.pin_again(known.local, known.versions.local);
  plan->remote = remote.pin_again(known.remote, known.versions.remote);
  plan->local_layers = known.local_layers;
  plan->remote_layers = known.remote_layers;
  plan->needs = known.needs;
  return plan->local != nullptr && plan->remote != nullptr;
}

void KnownEnds::keep(Versions versions, const TransferRequest& request, const TransferPlan& plan) {
  std::lock_guard lock(mutex_);
  Known& known = known_[index_of(request)];
  known.local.reset();  // nothing is known until all of it is there
  known.versions = versions;
  known.asked = asked_of(request);
  known.tensors.assign(request.cache.begin(), request.cache.end());
  known.remote = plan.remote->weak_from_this();
  known.local_layers = plan.local_layers;
  known.remote_layers = plan.remote_layers;
  known.needs = plan.needs;
  known.local = plan.local->weak_from_this();
}

}  // namespace datadist
