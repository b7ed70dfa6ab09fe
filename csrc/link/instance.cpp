#include "link/instance.h"

#include "error.h"

namespace datadist {
namespace {

constexpr int64_t kLongestTimeoutMs = 1'000'000'000;

}  // namespace

Instance::Instance(int device, int64_t cluster_id, LinkOptions options)
    : engine_(Engine::of(device)),
      cluster_id_(cluster_id),
      options_(options),
      caches_(std::make_shared<LocalCaches>()) {
  require(options.max_in_flight >= 1 && options.max_in_flight <= kSlots, kParamInvalid,
          "max_in_flight = ", options.max_in_flight, ", expected 1 to ", kSlots);
  require(options.streams >= 1, kParamInvalid, "streams_per_link = ", options.streams,
          ", expected at least 1");
}

Instance::~Instance() { close(); }

std::shared_ptr<Link> Instance::open_link(Peer peer) {
  std::lock_guard lock(mutex_);
  require(!is_closed_, kFailed, "open_link: the instance of cluster ", cluster_id_, " is finalized");
  auto link = std::make_shared<Link>(engine_, caches_, std::move(peer), options_);
  link->set_handle(links().add(link));
  links_[link->handle()] = link;
  engine_->watch(link);
  return link;
}

std::shared_ptr<Link> Instance::link(int64_t handle, const char* asked) const {
  std::lock_guard lock(mutex_);
  const auto found = links_.find(handle);
  require(found != links_.end(), kNotYetLink, asked, ": cluster ", cluster_id_, " has no link ", handle);
  return found->second;
}

void Instance::close_link(int64_t handle) {
  std::shared_ptr<Link> link;
  {
    std::lock_guard lock(mutex_);
    const auto found = links_.find(handle);
    if (found == links_.end()) return;
    link = found->second;
    links_.erase(found);
  }
  link->close();
  links().release(handle);
}

void Instance::close() {
  std::vector<int64_t> handles;
  {
    std::lock_guard lock(mutex_);
    is_closed_ = true;
    for (const auto& [handle, _] : links_) handles.push_back(handle);
  }
  for (const int64_t handle : handles) close_link(handle);
}

std::shared_ptr<Link> require_link(int64_t handle, const char* asked) {
  auto link = links().find(handle);
  require(link != nullptr, kNotYetLink, asked, ": there is no link ", handle,
          " in this process; it was closed, or made anew under "
          "another number");
  link->require_alive(asked);
  return link;
}

TransferPlan plan_transfer(Link& link, const TransferRequest& request) {
  const bool is_push = request.direction == Direction::kPush;
  TransferPlan plan;
  plan.direction = request.direction;
  plan.local = link.caches().find(request.cache, request.asked);
  plan.remote = link.remote_caches().find(request.model_id, request.asked, link.peer().name);
  const Geometry& local = plan.local->geometry;
  const Geometry& remote = plan.remote->geometry;
  require_same_layout(local, remote, request.asked, link.peer().name);
  const auto range = [&](const Geometry& geometry, int64_t first, const char* side) {
    return resolve_layers(geometry, {first, request.num_layers, request.tensors_per_layer}, side,
                          request.asked);
  };
  plan.local_layers = range(local, is_push ? request.src_layer : request.dst_layer, "local");
  plan.remote_layers = range(remote, is_push ? request.dst_layer : request.src_layer, "remote");
  require(plan.local_layers.layers == plan.remote_layers.layers, kParamInvalid, request.asked, ": ",
          plan.local_layers.layers, " local layers and ", plan.remote_layers.layers, " at ", link.peer().name,
          "; give both layer ranges, of the same length. Nothing was sent; the link is still usable.");
  auto pairs = pair_blocks(request.src_blocks, request.src_length, request.dst_blocks, request.dst_length,
                           is_push ? local.num_blocks : remote.num_blocks,
                           is_push ? remote.num_blocks : local.num_blocks, request.asked);
  plan.runs = merge_runs(std::move(pairs));
  require(request.timeout_ms >= 0 && request.timeout_ms <= kLongestTimeoutMs, kParamInvalid, request.asked,
          ": timeout_ms = ", request.timeout_ms, ", expected 0 (the default) to ", kLongestTimeoutMs);
  plan.timeout = request.timeout_ms > 0 ? std::chrono::milliseconds(request.timeout_ms)
                                        : link.options().transfer_timeout;
  return plan;
}

}  // namespace datadist
