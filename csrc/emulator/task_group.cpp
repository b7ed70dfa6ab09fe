// Task groups: the parts of a graph whose tasks may get other arguments between replays.

#include "emulator/task_group.h"

#include <cstring>

#include "emulator/error.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

bool do_the_same(const Task& a, const Task& b) {
  TaskFacts one;
  TaskFacts other;
  a.describe(one);
  b.describe(other);
  if (one.kind != TaskKind::Copy && one.kind != TaskKind::ValueWrite && one.kind != TaskKind::ValueWait) {
    return false;  // facts do not tell all there is to know about the others
  }
  return one.kind == other.kind && one.reads == other.reads && one.writes == other.writes &&
         one.word == other.word && one.value == other.value && one.mode == other.mode;
}

}  // namespace

void Graph::begin_group(Stream& stream) {
  std::lock_guard lock(mutex_);
  Lane& lane = lane_of(stream);
  if (lane.open_group != nullptr) {
    fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "stream %d has a task group open already; end it first",
         stream.id);
  }
  lane.open_group = std::make_shared<TaskGroup>(weak_from_this());
  lane.open_group->handle = Runtime::get().task_groups.add(lane.open_group);
}

aclrtTaskGrp Graph::end_group(Stream& stream) {
  std::lock_guard lock(mutex_);
  Lane& lane = lane_of(stream);
  if (lane.open_group == nullptr) {
    fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "no task group was begun on stream %d", stream.id);
  }
  groups_.push_back(std::move(lane.open_group));
  lane.open_group = nullptr;
  return groups_.back()->handle;
}

void Graph::check_groups_ended() const {
  for (const Lane& lane : lanes_) {
    if (lane.open_group == nullptr) continue;
    fail(ACL_ERROR_STREAM_TASK_GROUP_INTR,
         "the capture ended inside a task group, which has %zu tasks so far", lane.open_group->tasks.size());
  }
}

void GroupUpdate::add(const Stream& stream, std::shared_ptr<Task> task) {
  std::lock_guard lock(mutex_);
  const size_t index = given_.size();
  try {
    if (index == group_->tasks.size()) {
      fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS,
           "%s on stream %d: the task group has %zu tasks, this is one more", task->what, stream.id, index);
    }
    const auto old = group_->tasks[index]->current();
    if (std::strcmp(old->what, task->what) != 0) {
      fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS,
           "task %zu of the group is %s, the update on stream %d gives %s", index, old->what, stream.id,
           task->what);
    }
    if (!old->may_be_updated() && !do_the_same(*old, *task)) {
      fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS,
           "task %zu of the group, %s, is frozen: only the arguments of kernels and host functions change",
           index, task->what);
    }
  } catch (const Error&) {
    refused_ = true;
    throw;
  }
  given_.push_back(std::move(task));
}

std::shared_ptr<Task> GroupUpdate::finish() const {
  std::lock_guard lock(mutex_);
  if (refused_) {
    fail(ACL_ERROR_STREAM_TASK_GROUP_INTR, "a task of the update was refused, so nothing is updated");
  }
  if (given_.size() != group_->tasks.size()) {
    fail(ACL_ERROR_STREAM_TASK_GROUP_INTR,
         "the task group has %zu tasks and the update gave %zu, so nothing is updated", group_->tasks.size(),
         given_.size());
  }
  return make_task("aclmdlRICaptureTaskUpdate", [group = group_, given = given_](Stream&) -> aclError {
    for (size_t i = 0; i < given.size(); ++i) group->tasks[i]->replace(given[i]);
    return ACL_SUCCESS;
  });
}

}  // namespace emu
