// Looking at the tasks of a finished graph, and changing their parameters between replays.

#include "emulator/graph_task.h"

#include "emulator/error.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

// What a disabled task does.
class Nothing final : public Task {
 public:
  explicit Nothing(std::shared_ptr<Task> instead_of) : Task(instead_of->what), was_(std::move(instead_of)) {}

  aclError run(Stream&) override { return ACL_SUCCESS; }
  void read_parameters(aclmdlRITaskParams& out) const override { was_->read_parameters(out); }
  std::shared_ptr<Task> with_parameters(const aclmdlRITaskParams& given) const override {
    return was_->with_parameters(given);
  }

 private:
  const std::shared_ptr<Task> was_;
};

const char* kFrozen =
    "task %u (%s) of graph %u is frozen: the address, value and flag of value writes and waits can be set, "
    "and "
    "the arguments of kernels through their task group";

}  // namespace

std::vector<aclmdlRITask> Graph::tasks_of(const Stream& stream) {
  std::lock_guard lock(mutex_);
  if (state() != kReady) fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is still being captured", id);
  std::vector<aclmdlRITask> handles;
  for (size_t lane = 0; lane < lanes_.size(); ++lane) {
    if (lanes_[lane].own.get() != &stream) continue;
    for (size_t i = 0; i < lanes_[lane].nodes.size(); ++i) {
      aclmdlRITask& handle = lanes_[lane].nodes[i].handle;
      if (handle == nullptr) {
        handle =
            Runtime::get().graph_tasks.add(std::make_shared<GraphTask>(GraphTask{weak_from_this(), lane, i}));
      }
      handles.push_back(handle);
    }
  }
  return handles;
}

Graph::Node& Graph::node_of(const GraphTask& task) { return lanes_[task.lane].nodes[task.index]; }

uint32_t Graph::sequence_of(const GraphTask& task) {
  std::lock_guard lock(mutex_);
  return node_of(task).sequence;
}

void Graph::read_parameters(const GraphTask& task, aclmdlRITaskParams& out) {
  std::lock_guard lock(mutex_);
  const Node& node = node_of(task);
  out = {};
  (node.edited != nullptr ? node.edited : node.task)->read_parameters(out);
  out.taskGrp = node.group;
}

void Graph::edit(const GraphTask& task, const aclmdlRITaskParams& given) {
  std::lock_guard lock(mutex_);
  Node& node = node_of(task);
  aclmdlRITaskParams old{};
  node.task->read_parameters(old);
  if (given.type != old.type) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "task %u of graph %u (%s) has type %d, its new parameters type %d",
         node.sequence, id, node.task->what, old.type, given.type);
  }
  auto edited = node.group != nullptr ? nullptr : node.task->with_parameters(given);
  if (edited == nullptr) fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, kFrozen, node.sequence, node.task->what, id);
  node.edited = std::move(edited);
}

void Graph::disable(const GraphTask& task) {
  std::lock_guard lock(mutex_);
  Node& node = node_of(task);
  for (const auto& [_, edge] : edges_) {
    if (edge.lane == task.lane && edge.position == task.index + 1) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, kFrozen, node.sequence, node.task->what, id);
    }
  }
  node.edited = std::make_shared<Nothing>(node.task);
}

void Graph::update() {
  std::lock_guard lock(mutex_);
  if (is_running()) fail(ACL_ERROR_RT_MODEL_RUNNING, "a replay of graph %u is queued or runs", id);
  if (state() != kReady) fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is still being captured", id);
  for (Lane& lane : lanes_) {
    for (Node& node : lane.nodes) {
      if (node.edited != nullptr) node.task = std::exchange(node.edited, nullptr);
    }
  }
}

}  // namespace emu
