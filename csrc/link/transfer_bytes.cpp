#include "link/transfer_bytes.h"

#include <utility>

#include "link/transfer.h"
#include "plan/span.h"

namespace datadist {

int64_t bytes_of(const TransferPlan& plan, int64_t first_layer, int64_t layers) {
  const int64_t each = plan.local_layers.tensors_per_layer;
  const bool is_pull = plan.direction == Direction::kPull;
  int64_t bytes = 0;
  int64_t of_tensor = 0;
  std::pair<int64_t, int64_t> strides{-1, -1};
  for (int64_t i = first_layer * each; i < (first_layer + layers) * each; ++i) {
    const int64_t local = plan.local->geometry.strides[plan.local_layers.first_layer * each + i];
    const int64_t remote = plan.remote->geometry.strides[plan.remote_layers.first_layer * each + i];
    if (strides != std::pair(local, remote)) {  // most tensors are as the one before
      strides = {local, remote};
      of_tensor = 0;
      for (const Run& run : plan.runs)
        of_tensor +=
            span_of(plan.shape, run, is_pull ? remote : local, is_pull ? local : remote, local).bytes;
    }
    bytes += of_tensor;
  }
  return bytes;
}

uint64_t bytes_of(const TransferPlan& plan) {
  if (plan.local == nullptr || plan.remote == nullptr) return 0;
  return static_cast<uint64_t>(bytes_of(plan, 0, plan.local_layers.layers));
}

}  // namespace datadist
