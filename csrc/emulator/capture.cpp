// What happens between aclmdlRICaptureBegin and aclmdlRICaptureEnd.

#include "emulator/capture.h"

#include <algorithm>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/task_group.h"
#include "emulator/thread.h"

namespace emu {
namespace {

class EdgeRecord final : public Task {
 public:
  EdgeRecord(std::shared_ptr<Record> record, const Event& event)
      : Task("aclrtRecordEvent"), record_(std::move(record)), event_(event.handle), flags_(event.flags) {}
  aclError run(Stream&) override {
    record_->settle(Record::kDone);
    return ACL_SUCCESS;
  }
  void read_parameters(aclmdlRITaskParams& out) const override {
    out.type = ACL_MODEL_RI_TASK_EVENT_RECORD;
    out.eventRecordTaskParams = {event_, flags_, 0};
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::EventRecord;
    facts.sync = record_.get();
  }

 private:
  const std::shared_ptr<Record> record_;
  const aclrtEvent event_;
  const uint32_t flags_;
};

class EdgeWait final : public Task {
 public:
  EdgeWait(std::shared_ptr<Record> record, const Event& event)
      : Task("aclrtStreamWaitEvent"), record_(std::move(record)), event_(event.handle), flags_(event.flags) {}
  aclError run(Stream& stream) override {
    return record_->wait_on(stream, std::nullopt) ? ACL_SUCCESS : ACL_ERROR_RT_STREAM_ABORT;
  }
  void read_parameters(aclmdlRITaskParams& out) const override {
    out.type = ACL_MODEL_RI_TASK_EVENT_WAIT;
    out.eventWaitTaskParams = {event_, flags_, 0};
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::EventWait;
    facts.sync = record_.get();
  }

 private:
  const std::shared_ptr<Record> record_;
  const aclrtEvent event_;
  const uint32_t flags_;
};

const char* word(aclmdlRICaptureMode mode) {
  return mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL         ? "GLOBAL"
         : mode == ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL ? "THREAD_LOCAL"
                                                          : "RELAXED";
}

}  // namespace

void Graph::begin(const std::shared_ptr<Stream>& first, aclmdlRICaptureMode mode) {
  {
    std::lock_guard lock(mutex_);
    add_lane(first);
    origin_ = first;
    mode_ = mode;
    thread_ = Thread::self().id;
    state_ = kCapturing;
  }
  first->set_capture(shared_from_this());
  Runtime::get().captures->open(shared_from_this());
}

Graph::Lane& Graph::add_lane(const std::shared_ptr<Stream>& stream) {
  auto own = stream->context().add_stream(stream->priority, 0);
  own->set_owner(weak_from_this());
  lanes_.push_back({.captured = stream, .own = std::move(own)});
  return lanes_.back();
}

Graph::Lane& Graph::lane_of(const Stream& stream) {
  for (Lane& lane : lanes_) {
    if (lane.captured.get() == &stream) return lane;
  }
  fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not part of the capture", stream.id);
}

size_t Graph::push(Lane& lane, std::shared_ptr<Task> task) {
  if (is_armed(bit(Fault::SpoilCapture)) && Runtime::get().faults->fires(Fault::SpoilCapture, {}))
    invalidate();
  lane.nodes.push_back({.task = std::move(task), .sequence = tasks_++});
  return lane.nodes.size();
}

void Graph::add(Stream& stream, std::shared_ptr<Task> task) {
  std::lock_guard lock(mutex_);
  if (state_ == kInvalid)
    fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture of stream %d is spoiled", stream.id);
  Lane& lane = lane_of(stream);
  if (lane.open_group == nullptr) {
    push(lane, std::move(task));
    return;
  }
  auto grouped = std::make_shared<GroupedTask>(std::move(task));
  lane.open_group->tasks.push_back(grouped);
  push(lane, std::move(grouped));
  lane.nodes.back().group = lane.open_group->handle;
}

std::shared_ptr<Record> Graph::record(Stream& stream, const Event& event) {
  auto record = std::make_shared<Record>();
  std::lock_guard lock(mutex_);
  if (state_ == kInvalid)
    fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture of stream %d is spoiled", stream.id);
  Lane& lane = lane_of(stream);
  const size_t position = push(lane, std::make_shared<EdgeRecord>(record, event));
  edges_[record.get()] = {record, static_cast<size_t>(&lane - lanes_.data()), position};
  return record;
}

void Graph::wait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Record>& record,
                 const Event& event) {
  const auto other = stream->capture();
  if (other != nullptr && other.get() != this) {
    invalidate();
    other->invalidate();
    fail(ACL_ERROR_STREAM_CAPTURE_CONFLICT,
         "stream %d is part of another capture than the event's; both are spoiled", stream->id);
  }
  if (stream->context().device.id != origin_->context().device.id) {
    invalidate();
    fail(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "stream %d is of another device than the capture", stream->id);
  }
  if (stream->is_default()) {
    invalidate();
    fail(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream cannot take part in a capture");
  }
  bool joins = false;
  {
    std::lock_guard lock(mutex_);
    if (state_ == kInvalid)
      fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture that recorded the event is spoiled");
    if (other == nullptr) {
      add_lane(stream);
      joins = true;
    }
    Lane& lane = lane_of(*stream);
    Edge& edge = edges_.at(record.get());
    if (&lane != &lanes_[edge.lane] && !edge.crosses) {
      hold_event();
      edge.crosses = true;
    }
    const size_t position = push(lane, std::make_shared<EdgeWait>(record, event));
    lane.waits.push_back({position, record.get()});
  }
  if (joins) stream->set_capture(shared_from_this());
}

// A record that another stream of the graph waits for is an event of the device for as long as the graph
// lives.
void Graph::hold_event() {
  Device& device = origin_->context().device;
  if (device.events.fetch_add(1) >= Device::kMaxEvents) {
    device.events.fetch_sub(1);
    fail(ACL_ERROR_RT_NO_EVENT_RESOURCE, "EE1023: device %d has its %d events in use, some by graphs",
         device.id, Device::kMaxEvents);
  }
  ++events_;
}

void Graph::invalidate() {
  State capturing = kCapturing;
  state_.compare_exchange_strong(capturing, kInvalid);
}

void Graph::check_joined() const {
  // How far into each lane the first one has waited, directly or through other lanes.
  std::vector<size_t> reached(lanes_.size(), 0);
  reached[0] = lanes_[0].nodes.size();
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
    if (reached[i] == lanes_[i].nodes.size()) continue;
    fail(ACL_ERROR_RT_STREAM_UNJOINED,
         "a side stream has %zu captured tasks, and the stream that began the capture waits for the first "
         "%zu only",
         lanes_[i].nodes.size(), reached[i]);
  }
}

void Graph::let_streams_go() {
  for (Lane& lane : lanes_) {
    if (lane.captured != nullptr) lane.captured->set_capture(nullptr);
    lane.captured = nullptr;
  }
  Runtime::get().captures->close(*this);
}

void Graph::finish() {
  std::lock_guard lock(mutex_);
  let_streams_go();
  const State was = state_.exchange(kDead);
  if (was == kInvalid) fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "a forbidden call spoiled the capture");
  check_groups_ended();
  check_joined();
  state_ = kReady;
}

void Graph::abandon() {
  std::lock_guard lock(mutex_);
  state_ = kDead;
  let_streams_go();
}

void Captures::open(const std::shared_ptr<Graph>& graph) {
  std::lock_guard lock(mutex_);
  open_.push_back(graph);
  count_.store(open_.size());
}

void Captures::close(const Graph& graph) {
  std::lock_guard lock(mutex_);
  std::erase_if(open_, [&](const auto& open) { return open.get() == &graph; });
  count_.store(open_.size());
}

std::vector<std::shared_ptr<Graph>> Captures::all() const {
  if (count_.load(std::memory_order_relaxed) == 0) return {};
  std::lock_guard lock(mutex_);
  return open_;
}

void Captures::abandon(const Context& context) {
  for (const auto& graph : all()) {
    if (&graph->origin()->context() == &context) graph->abandon();
  }
}

void Captures::check_unsafe(aclError code) const {
  const Thread& self = Thread::self();
  if (self.capture_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return;
  std::shared_ptr<Graph> forbids;
  for (const auto& graph : all()) {
    if (graph->mode() == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) continue;
    if (graph->mode() == ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL && graph->thread() != self.id) continue;
    graph->invalidate();
    forbids = graph;
  }
  if (forbids == nullptr) return;
  fail(code, "not while stream %d is captured in mode %s", forbids->origin()->id, word(forbids->mode()));
}

void Captures::check_device_wait(const Device& device) const {
  std::shared_ptr<Graph> forbids;
  for (const auto& graph : all()) {
    if (&graph->origin()->context().device != &device) continue;
    graph->invalidate();
    forbids = graph;
  }
  if (forbids == nullptr) return;
  fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d of device %d is being captured", forbids->origin()->id,
       device.id);
}

}  // namespace emu
