#include "link/instance.h"

#include <utility>

#include "error.h"
#include "link/forked.h"
#include "messages/messages.h"

namespace datadist {
Instance::Instance(int device, int64_t cluster_id, LinkOptions options)
    : engine_(Engine::of(device)),
      cluster_id_(cluster_id),
      options_(options),
      caches_(std::make_shared<LocalCaches>()) {
  if (!(options.max_in_flight >= 1 && options.max_in_flight <= kSlots))
    refuse(
        Message::option_outside,
        {{"name", "max_in_flight"}, {"value", options.max_in_flight}, {"expected", join("1 to ", kSlots)}});
  if (options.streams < 1)
    refuse(Message::option_outside,
           {{"name", "streams_per_link"}, {"value", options.streams}, {"expected", "at least 1"}});
  if (options.stream_budget < 1)
    refuse(Message::option_outside,
           {{"name", "stream_budget"}, {"value", options.stream_budget}, {"expected", "at least 1"}});
  engine_->streams().add_limit(options.stream_budget);
}

Instance::~Instance() { close(); }

std::shared_ptr<Link> Instance::open_link(Peer peer) {
  std::lock_guard lock(mutex_);
  require(!is_closed_, kFailed, "open_link: the instance of cluster ", cluster_id_, " is finalized");
  auto link = std::make_shared<Link>(engine_, caches_, std::move(peer), options_);
  link->set_handle(links().add(link));
  try {
    engine_->watch(link);
    links_[link->handle()] = link;
  } catch (...) {
    links().release(link->handle());  // nobody else would: its engine does not know it
    throw;
  }
  return link;
}

std::shared_ptr<Link> Instance::link(int64_t handle, const char* asked) const {
  require_not_forked(asked);
  std::lock_guard lock(mutex_);
  const auto found = links_.find(handle);
  if (found == links_.end())
    refuse(Message::no_link_of_cluster, {{"asked", asked}, {"cluster_id", cluster_id_}, {"value", handle}});
  return found->second;
}

Link::Counts Instance::counts_of(int64_t handle) const {
  std::lock_guard lock(mutex_);
  const auto found = links_.find(handle);
  return found == links_.end() ? Link::Counts{} : found->second->counts();
}

void Instance::release_cache(int64_t id) {
  const auto cache = caches_->find_held(id);  // its memory is there until the engines have forgotten it
  caches_->release(id);
  caches_->let_go_of_copies();
  if (cache == nullptr) return;
  std::lock_guard lock(mutex_);
  for (const Place& place : cache->tensors) {
    if (caches_->reach_of(place.address, 1)) continue;  // another cache has it, too
    for (const auto& [_, link] : links_) link->transport().forget_memory(place.address);
  }
}

void Instance::close_link(int64_t handle, std::optional<std::chrono::milliseconds> patience) {
  std::shared_ptr<Link> link;
  {
    std::lock_guard lock(mutex_);
    const auto found = links_.find(handle);
    if (found == links_.end()) return;
    link = found->second;
    links_.erase(found);
  }
  link->close(patience.value_or(
      std::min(options_.transfer_timeout,
               options_.closing)));  // the engine releases the handle when nothing of it is in use any more
}

void Instance::close() {
  if (is_forked_child()) return;
  std::vector<int64_t> handles;
  {
    std::lock_guard lock(mutex_);
    if (!std::exchange(is_closed_, true)) engine_->streams().remove_limit(options_.stream_budget);
    for (const auto& [handle, _] : links_) handles.push_back(handle);
  }
  for (const int64_t handle : handles) close_link(handle);
  caches_->let_go_of_copies();
}

std::shared_ptr<Link> require_link(int64_t handle, const char* asked) {
  require_not_forked(asked);
  auto link = links().find(handle);
  if (link == nullptr) refuse(Message::no_link_of_number, {{"asked", asked}, {"value", handle}});
  link->require_alive(asked);
  return link;
}

}  // namespace datadist
