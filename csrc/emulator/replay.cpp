// What a replay does: the first lane runs on the stream that the replay was queued on, each other lane on a
// thread of the crew, since a value wait in one lane may depend on a task of another.

#include <cstdint>

#include "emulator/condition.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/futex.h"
#include "emulator/graph.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr auto kLookAgain = std::chrono::milliseconds(5);

}  // namespace

void Graph::replay(Stream& on) {
  {
    std::lock_guard lock(mutex_);
    if (state() != kReady) fail(ACL_ERROR_RT_INVALID_HANDLE, "graph %u was destroyed", id);
    replays_.fetch_add(1);
  }
  // Counted down when the task goes, run or not.
  std::shared_ptr<void> queued(nullptr, [self = shared_from_this()](void*) { self->replays_.fetch_sub(1); });
  auto body = [self = shared_from_this(), queued](Stream& stream) -> aclError { return self->run(stream); };
  on.submit(make_task("aclmdlRIExecuteAsync", std::move(body), of_kind(TaskKind::Replay)));
}

bool Graph::take_turn(Stream& on) {
  for (uint32_t free = 0; !turn_.compare_exchange_weak(free, 1); free = 0) {
    if (on.stopping()) return false;
    if (turn_.load() != 0) on.park(&turn_, 1, kLookAgain);
  }
  return true;
}

void Graph::give_turn() {
  turn_.store(0);
  futex_wake_all(&turn_);
}

aclError Graph::run(Stream& on) {
  if (lanes_.empty()) return ACL_SUCCESS;  // a branch without work
  if (!take_turn(on)) return ACL_ERROR_RT_STREAM_ABORT;
  {
    std::lock_guard lock(cut_mutex_);
    on_ = &on;
    cut_code_ = ACL_SUCCESS;
  }
  for (const auto& [_, edge] : edges_) edge.record->settle(Record::kPending);
  for (const auto& condition : conditions_) condition->restart();
  run_lanes(on);
  const aclError code = mend(on);
  give_turn();
  return code;
}

void Graph::run_lanes(Stream& on) {
  const size_t others = lanes_.size() - 1;
  lanes_left_.store(static_cast<uint32_t>(others));
  if (auto* watching = observer(); watching != nullptr && others != 0) {
    watching->restarted(start_);
    watching->restarted(end_);
    watching->released(start_, on);
  }
  for (size_t i = 1; i <= others; ++i) {
    try {
      Runtime::get().crew->run({&lane_job, &lane_finished, this, i}, lanes_[i].member);
    } catch (const Error& error) {
      cut_short(error.code, error.message);
      lanes_left_.fetch_sub(static_cast<uint32_t>(others - i + 1));
      break;
    }
  }
  run_lane(0, on);
  for (uint32_t left = lanes_left_.load(); left != 0; left = lanes_left_.load()) {
    if (on.stopping()) {
      cut_short(ACL_ERROR_RT_STREAM_ABORT, "");
      futex_wait(&lanes_left_,
                 left);  // a stream that stops does not park, and a long kernel ends when it ends
    } else {
      on.park(&lanes_left_, left, kLookAgain);
    }
  }
  if (auto* watching = observer(); watching != nullptr && others != 0) watching->acquired(end_, on);
}

void Graph::lane_job(void* graph, size_t lane) {
  auto* self = static_cast<Graph*>(graph);
  Stream& on = *self->lanes_[lane].own;
  Stream::set_running(&on);
  if (auto* watching = observer()) watching->acquired(self->start_, on);
  self->run_lane(lane, on);
  if (auto* watching = observer()) watching->released(self->end_, on);
  Stream::set_running(nullptr);
}

void Graph::lane_finished(void* graph, size_t) {
  // With the last lane the graph may go: only the word's address is used after that.
  auto& left = static_cast<Graph*>(graph)->lanes_left_;
  if (left.fetch_sub(1) == 1) futex_wake_all(&left);
}

void Graph::run_lane(size_t lane, Stream& on) {
  for (const Node& node : lanes_[lane].nodes) {
    const aclError code = on.run_now(*node.task);
    if (code == ACL_SUCCESS) [[likely]]
      continue;
    const std::string why = on.take_explanation();
    // A task that was ended did not fail: who ended it has said why.
    if (on.stopping()) return cut_short(ACL_ERROR_RT_STREAM_ABORT, "");
    on.context().device.error.note(code, *node.task);
    return cut_short(ACL_ERROR_RT_MODEL_EXECUTE,
                     text("task %u of graph %u (%s) failed with %d (%s)%s%s", node.sequence, id,
                          node.task->what, code, meaning(code), why.empty() ? "" : ": ", why.c_str()));
  }
}

// The first reason counts. Ends what runs in the other lanes.
void Graph::cut_short(aclError code, std::string why) {
  std::lock_guard lock(cut_mutex_);
  if (cut_code_ != ACL_SUCCESS || on_ == nullptr) return;
  cut_code_ = code;
  cut_why_ = std::move(why);
  on_->cut();
  for (size_t i = 1; i < lanes_.size(); ++i) lanes_[i].own->cut();
}

aclError Graph::mend(Stream& on) {
  std::lock_guard lock(cut_mutex_);
  on_ = nullptr;
  if (cut_code_ == ACL_SUCCESS) return ACL_SUCCESS;
  on.mend();
  for (size_t i = 1; i < lanes_.size(); ++i) lanes_[i].own->mend();
  on.explain(std::move(cut_why_));
  return cut_code_;
}

void Graph::abort() { cut_short(ACL_ERROR_RT_MODEL_ABORT_NORMAL, text("graph %u was aborted", id)); }

}  // namespace emu
