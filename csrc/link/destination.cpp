#include "link/destination.h"

#include <algorithm>
#include <functional>

#include "error.h"
#include "link/engine.h"
#include "messages/messages.h"

namespace datadist {
namespace {

using Range = Destination::Range;

bool is_before(const Range& one, const Range& other) {
  return one.space != other.space ? one.space < other.space : one.begin < other.begin;
}

// Where tensor t of the destination begins.
Range place_of(const Link& link, const LocalCache& local, const RemoteCache& remote, bool is_pull,
               int64_t t) {
  if (is_pull) return {0, reinterpret_cast<uint64_t>(local.tensors[static_cast<size_t>(t)].address), 0};
  const Exported& there = remote.exports[static_cast<size_t>(t)];
  const bool is_bare = there.handle.empty();
  return {std::hash<std::string>()(join(link.handle(), "/", there.handle)) | 1,
          is_bare ? there.address : static_cast<uint64_t>(there.offset), 0};
}

}  // namespace

Destination::Destination(const Link& link, const TransferPlan& plan,
                         const std::shared_ptr<LocalCache>& local_cache,
                         const std::shared_ptr<RemoteCache>& remote_cache) {
  if (local_cache == nullptr || remote_cache == nullptr) return;
  const LayerRange& local = plan.local_layers;
  const bool is_pull = plan.direction == Direction::kPull;
  for (int64_t i = 0; i < local.layers * local.tensors_per_layer; ++i) {
    const int64_t l = local.first_layer * local.tensors_per_layer + i;
    const int64_t r = plan.remote_layers.first_layer * plan.remote_layers.tensors_per_layer + i;
    const int64_t local_stride = local_cache->geometry.strides[static_cast<size_t>(l)];
    const int64_t remote_stride = remote_cache->geometry.strides[static_cast<size_t>(r)];
    const Range tensor = place_of(link, *local_cache, *remote_cache, is_pull, is_pull ? l : r);
    for (const Run& run : plan.runs) {
      const Span span = span_of(plan.shape, run, is_pull ? remote_stride : local_stride,
                                is_pull ? local_stride : remote_stride, local_stride);
      const uint64_t begin = tensor.begin + static_cast<uint64_t>(span.dst);
      ranges.push_back({tensor.space, begin, begin + static_cast<uint64_t>(span.bytes)});
    }
  }
  std::sort(ranges.begin(), ranges.end(), is_before);
}

bool Destination::overlaps(const Destination& other) const {
  auto one = ranges.begin();
  auto two = other.ranges.begin();
  while (one != ranges.end() && two != other.ranges.end()) {
    if (one->space == two->space && one->begin < two->end && two->begin < one->end) return true;
    // Ranges of one destination are apart, so the one that ends first meets no later one.
    const bool one_is_first = one->space != two->space ? one->space < two->space : one->end <= two->end;
    ++(one_is_first ? one : two);
  }
  return false;
}

void wait_until_settled(const Link& link, const TransferPlan& plan, const char* asked) {
  Engine& engine = link.engine();
  if (!engine.has_doubts()) return;
  const Destination wanted(link, plan);
  const auto deadline = Clock::now() + plan.timeout;
  while (true) {
    std::optional<std::string> why;
    for (const auto& transfer : engine.transfers()) {
      if (!why) why = transfer->why_in_doubt(wanted);
    }
    if (!why) return;
    if (!engine.wait_for_tick(deadline)) {
      refuse(Message::blocks_are_in_doubt,
             {{"asked", asked}, {"why", *why}, {"value", plan.timeout.count()}});
    }
  }
}

}  // namespace datadist
