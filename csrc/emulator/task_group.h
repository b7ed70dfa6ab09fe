#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/task.h"

namespace emu {

class Graph;
class Stream;

// A captured task whose work may be replaced by an update of its group, also while its graph runs: what the
// task does is looked up when it is its turn.
class GroupedTask final : public Task {
 public:
  explicit GroupedTask(std::shared_ptr<Task> task) : Task(task->what), task_(std::move(task)) {}

  aclError run(Stream& stream) override { return current()->run(stream); }
  bool may_be_updated() const override { return current()->may_be_updated(); }
  void describe(TaskFacts& facts) const override { current()->describe(facts); }
  void read_parameters(aclmdlRITaskParams& out) const override { current()->read_parameters(out); }
  std::shared_ptr<Task> with_parameters(const aclmdlRITaskParams& given) const override {
    return current()->with_parameters(given);
  }

  std::shared_ptr<Task> current() const {
    std::lock_guard lock(mutex_);
    return task_;
  }
  void replace(std::shared_ptr<Task> task) {
    std::lock_guard lock(mutex_);
    task_.swap(task);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Task> task_;
};

// Tasks of one stream of a graph, captured between TaskGrpBegin and TaskGrpEnd.
struct TaskGroup {
  explicit TaskGroup(std::weak_ptr<Graph> graph) : graph(std::move(graph)) {}

  const std::weak_ptr<Graph> graph;
  aclrtTaskGrp handle = nullptr;
  std::vector<std::shared_ptr<GroupedTask>> tasks;
};

// What a stream is given between TaskUpdateBegin and TaskUpdateEnd: one task for each of the group, in the
// same order and of the same kind.
class GroupUpdate {
 public:
  explicit GroupUpdate(std::shared_ptr<TaskGroup> group) : group_(std::move(group)) {}

  // Throws 107033 for a task that the group has not, or that cannot be changed.
  void add(const Stream& stream, std::shared_ptr<Task> task);
  // The task that makes the change, all of it or nothing, in the order of the stream. Throws 107034 when the
  // group's tasks were not all given.
  std::shared_ptr<Task> finish() const;

 private:
  const std::shared_ptr<TaskGroup> group_;
  std::vector<std::shared_ptr<Task>> given_;
  bool refused_ = false;
  mutable std::mutex mutex_;
};

}  // namespace emu
