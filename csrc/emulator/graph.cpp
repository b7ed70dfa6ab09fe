#include "emulator/graph.h"

#include <algorithm>

#include "emulator/context.h"
#include "emulator/error.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/thread.h"

namespace emu {
namespace {

class EdgeRecord final : public Task {
 public:
  explicit EdgeRecord(std::shared_ptr<Record> record)
      : Task("aclrtRecordEvent"), record_(std::move(record)) {}
  aclError run(Stream&) override {
    record_->settle(Record::kDone);
    return ACL_SUCCESS;
  }

 private:
  const std::shared_ptr<Record> record_;
};

class EdgeWait final : public Task {
 public:
  EdgeWait(std::shared_ptr<Record> record, const std::atomic<bool>& failed)
      : Task("aclrtStreamWaitEvent"), record_(std::move(record)), failed_(failed) {}
  aclError run(Stream& stream) override {
    while (record_->state.load() != Record::kDone) {
      if (failed_.load()) return ACL_ERROR_RT_MODEL_EXECUTE;
      if (stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
      record_->wait_on(stream, Clock::now() + std::chrono::milliseconds(5));
    }
    return ACL_SUCCESS;
  }

 private:
  const std::shared_ptr<Record> record_;
  const std::atomic<bool>& failed_;
};

}  // namespace

Graph::Graph(std::shared_ptr<Context> context, std::shared_ptr<Stream> first, aclmdlRICaptureMode mode)
    : origin(std::move(first)),
      mode(mode),
      thread(Thread::self().id),
      id(Runtime::get().next_graph_id.fetch_add(1)),
      context_(std::move(context)) {
  lanes_.push_back({origin, nullptr, {}, {}});
}

Graph::~Graph() {
  for (const Lane& lane : lanes_) {
    if (lane.runs_on == nullptr) continue;
    lane.runs_on->close();
    context_->remove_stream(lane.runs_on);
  }
}

Graph::Lane& Graph::lane_of(Stream& stream) {
  for (Lane& lane : lanes_) {
    if (lane.captured.get() == &stream) return lane;
  }
  fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not part of the capture", stream.id);
}

void Graph::add(Stream& stream, std::shared_ptr<Task> task) {
  std::lock_guard lock(mutex_);
  if (state_ == kInvalid)
    fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture of stream %d is spoiled", stream.id);
  lane_of(stream).tasks.push_back(std::move(task));
}

std::shared_ptr<Record> Graph::record(Stream& stream) {
  auto record = std::make_shared<Record>();
  add(stream, std::make_shared<EdgeRecord>(record));
  std::lock_guard lock(mutex_);
  const Lane& lane = lane_of(stream);
  edges_[record.get()] = {record, static_cast<size_t>(&lane - lanes_.data()), lane.tasks.size()};
  return record;
}

void Graph::wait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Record>& record) {
  if (!stream->is_capturing()) {
    if (stream->is_default()) {
      fail(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream cannot take part in a capture");
    }
    std::lock_guard lock(mutex_);
    lanes_.push_back({stream, nullptr, {}, {}});
    stream->set_capture(shared_from_this());
  } else if (stream->capture().get() != this) {
    fail(ACL_ERROR_STREAM_CAPTURE_CONFLICT, "stream %d is part of another capture", stream->id);
  }
  std::lock_guard lock(mutex_);
  Lane& lane = lane_of(*stream);
  lane.tasks.push_back(std::make_shared<EdgeWait>(record, lane_failed_));
  lane.waits.push_back({lane.tasks.size(), record.get()});
}

void Graph::invalidate() {
  State capturing = kCapturing;
  state_.compare_exchange_strong(capturing, kInvalid);
}

void Graph::check_joined() const {
  // How far into each lane the first one has waited, directly or through other lanes.
  std::vector<size_t> reached(lanes_.size(), 0);
  reached[0] = lanes_[0].tasks.size();
  for (bool grew = true; grew;) {
    grew = false;
    for (size_t i = 0; i < lanes_.size(); ++i) {
      for (const Wait& wait : lanes_[i].waits) {
        if (wait.position > reached[i]) continue;
        const Edge& edge = edges_.at(wait.record);
        if (reached[edge.lane] >= edge.position) continue;
        reached[edge.lane] = edge.position;
        grew = true;
      }
    }
  }
  for (size_t i = 1; i < lanes_.size(); ++i) {
    if (reached[i] == lanes_[i].tasks.size()) continue;
    fail(ACL_ERROR_RT_STREAM_UNJOINED,
         "a side stream has %zu captured tasks, and the stream that began the capture waits for the first "
         "%zu only",
         lanes_[i].tasks.size(), reached[i]);
  }
}

void Graph::finish() {
  std::lock_guard lock(mutex_);
  for (Lane& lane : lanes_) {
    lane.captured->set_capture(nullptr);
  }
  Runtime::get().captures->close(*this);
  if (state_ == kInvalid)
    fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "a forbidden call spoiled the capture");
  state_ = kInvalid;
  check_joined();
  for (size_t i = 1; i < lanes_.size(); ++i) lanes_[i].runs_on = context_->add_stream(0, 0);
  for (Lane& lane : lanes_) lane.captured = nullptr;
  state_ = kReady;
}

aclError Graph::run_lane(const Lane& lane, Stream& on) {
  for (const auto& task : lane.tasks) {
    if (on.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
    if (const aclError code = on.run_now(*task); code != ACL_SUCCESS) {
      lane_failed_.store(true);
      return code;
    }
  }
  return ACL_SUCCESS;
}

// A replay in progress, shared with the lanes that run beside the first.
class Graph::Replay {
 public:
  explicit Replay(uint32_t lanes) : left_(lanes) {}

  void done(aclError code) {
    aclError none = ACL_SUCCESS;
    code_.compare_exchange_strong(none, code);
    left_.fetch_sub(1);
    futex_wake_all(&left_);
  }
  aclError wait(Stream& stream) {
    for (uint32_t left = left_.load(); left != 0; left = left_.load()) {
      if (stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
      stream.park(&left_, left, std::chrono::milliseconds(5));
    }
    return code_.load();
  }

 private:
  std::atomic<uint32_t> left_;
  std::atomic<aclError> code_{ACL_SUCCESS};
};

aclError Graph::run(Stream& on) {
  std::lock_guard one_at_a_time(replay_mutex_);
  lane_failed_.store(false);
  for (const auto& [_, edge] : edges_) edge.record->settle(Record::kPending);
  const auto replay = std::make_shared<Replay>(static_cast<uint32_t>(lanes_.size() - 1));
  // Each lane has a thread: a value wait in one may depend on a task of another.
  for (size_t i = 1; i < lanes_.size(); ++i) {
    lanes_[i].runs_on->submit(
        make_task("graph lane", [self = shared_from_this(), i, replay](Stream& side) -> aclError {
          replay->done(self->run_lane(self->lanes_[i], side));
          return ACL_SUCCESS;
        }));
  }
  const aclError own = run_lane(lanes_[0], on);
  const aclError others = replay->wait(on);
  if (on.stopping() || own != ACL_SUCCESS) {
    for (size_t i = 1; i < lanes_.size(); ++i) lanes_[i].runs_on->abort();
  }
  return own != ACL_SUCCESS ? own : others;
}

void Graph::replay(Stream& on) {
  replays_.fetch_add(1);
  // Counted down when the task goes, run or not.
  std::shared_ptr<void> queued(nullptr, [self = shared_from_this()](void*) { self->replays_.fetch_sub(1); });
  on.submit(make_task(
      "aclmdlRIExecuteAsync",
      [self = shared_from_this(), queued](Stream& stream) -> aclError { return self->run(stream); }));
}

void Graph::release() {
  if (replays_.load() != 0) fail(ACL_ERROR_RT_MODEL_RUNNING, "a replay of the graph is queued or runs");
  if (state_ == kCapturing) fail(ACL_ERROR_RT_MODEL_CAPTURED, "the graph is being captured");
}

std::string Graph::describe() const {
  std::lock_guard lock(mutex_);
  std::string out = text("{\"graph\": %u, \"streams\": [", id);
  for (size_t i = 0; i < lanes_.size(); ++i) {
    out += i == 0 ? "\n  [" : ",\n  [";
    for (size_t t = 0; t < lanes_[i].tasks.size(); ++t) {
      out += text("%s\"%s\"", t == 0 ? "" : ", ", lanes_[i].tasks[t]->what);
    }
    out += "]";
  }
  return out + "\n]}\n";
}

void Captures::open(const std::shared_ptr<Graph>& graph) {
  std::lock_guard lock(mutex_);
  open_.push_back(graph);
  count_.store(static_cast<int>(open_.size()));
}

void Captures::close(const Graph& graph) {
  std::lock_guard lock(mutex_);
  std::erase_if(open_, [&](const auto& open) { return open.get() == &graph; });
  count_.store(static_cast<int>(open_.size()));
}

bool Captures::any_in(const Context& context) const {
  std::lock_guard lock(mutex_);
  return std::any_of(open_.begin(), open_.end(),
                     [&](const auto& graph) { return &graph->origin->context() == &context; });
}

void Captures::check_unsafe(aclError code) const {
  if (!any()) return;
  const Thread& self = Thread::self();
  std::lock_guard lock(mutex_);
  for (const auto& graph : open_) {
    if (graph->mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) continue;
    if (self.capture_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) continue;
    if (graph->mode == ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL && graph->thread != self.id) continue;
    graph->invalidate();
    fail(code, "not while stream %d is captured in mode %s", graph->origin->id,
         graph->mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL ? "GLOBAL" : "THREAD_LOCAL");
  }
}

}  // namespace emu
