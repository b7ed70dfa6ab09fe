#include "emulator/graph.h"

#include <algorithm>

#include "emulator/condition.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/graph_task.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/task_group.h"

namespace emu {

Graph::Graph(std::weak_ptr<Graph> parent)
    : id(Runtime::get().next_graph_id.fetch_add(1)),
      is_branch_(!parent.expired()),
      parent_(std::move(parent)) {}

Graph::~Graph() {
  Runtime& runtime = Runtime::get();
  for (const auto& group : groups_) runtime.task_groups.remove(group->handle);
  for (const auto& condition : conditions_) runtime.conditions.remove(condition->handle);
  for (const auto& branch : branches_) runtime.graphs.remove(branch->handle);
  for (const Lane& lane : lanes_) {
    if (lane.open_group != nullptr) runtime.task_groups.remove(lane.open_group->handle);
    for (const Node& node : lane.nodes) {
      if (node.handle != nullptr) runtime.graph_tasks.remove(node.handle);
    }
    lane.own->close();
    lane.own->context().remove_stream(lane.own);
  }
  if (origin_ != nullptr) origin_->context().device.events.fetch_sub(events_);
  // Left over when the capture failed: whoever waits for the end hears of it all the same.
  for (const auto& [function, argument] : on_release_) function(argument);
}

void Graph::release() {
  std::vector<std::pair<aclrtCallback, void*>> told;
  {
    std::lock_guard lock(mutex_);
    if (is_running()) fail(ACL_ERROR_RT_MODEL_RUNNING, "a replay of graph %u is queued or runs", id);
    if (is_captured_now()) fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is being captured", id);
    if (is_branch_) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "graph %u is a branch of a conditional task and ends with its graph",
           id);
    }
    state_ = kDead;
    told.swap(on_release_);
  }
  for (const auto& [function, argument] : told) function(argument);
}

void Graph::on_release(aclrtCallback function, void* argument) {
  std::lock_guard lock(mutex_);
  on_release_.emplace_back(function, argument);
}

bool Graph::cancel_on_release(aclrtCallback function) {
  std::lock_guard lock(mutex_);
  return std::erase_if(on_release_, [&](const auto& entry) { return entry.first == function; }) != 0;
}

void Graph::set_name(std::string name) {
  std::lock_guard lock(mutex_);
  name_ = std::move(name);
}

std::string Graph::name() const {
  std::lock_guard lock(mutex_);
  return name_;
}

std::vector<std::shared_ptr<Stream>> Graph::streams() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Stream>> own;
  for (const Lane& lane : lanes_) own.push_back(lane.own);
  return own;
}

}  // namespace emu
