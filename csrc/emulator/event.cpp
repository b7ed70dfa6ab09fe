#include "emulator/event.h"

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/graph.h"
#include "emulator/ipc_event.h"
#include "emulator/lazy.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

uint64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count();
}

class RecordTask final : public Task {
 public:
  explicit RecordTask(std::shared_ptr<Record> record)
      : Task("aclrtRecordEvent"), record_(std::move(record)) {}

  aclError run(Stream&) override {
    record_->time_us.store(now_us());
    record_->settle(Record::kDone);
    return ACL_SUCCESS;
  }
  void dropped(aclError code) override {
    record_->lost_code.store(code);
    record_->settle(Record::kLost);
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::EventRecord;
    facts.sync = record_.get();
  }
  bool is_brief() const override { return true; }

 private:
  const std::shared_ptr<Record> record_;
};

}  // namespace

void Record::settle(uint32_t how) {
  if (how == kDone) times_done.fetch_add(1);
  state.store(how);
  changes.fetch_add(1);
  if (waiters.load() != 0) futex_wake_all(&changes);
}

void Record::queued(Stream& stream, uint64_t number) {
  if (!lazy::is_on()) return;
  std::lock_guard lock(mutex_);
  stream_ = stream.weak_from_this();
  number_ = number;
}

void Record::need() {
  if (!lazy::is_on()) [[likely]]
    return;
  std::lock_guard lock(mutex_);
  if (const auto stream = stream_.lock()) stream->need(number_ + 1);
}

bool Record::wait_on(Stream& stream, Deadline deadline) {
  const uint32_t before = times_done.load();
  if (state.load() == kDone) return true;
  need();
  waiters.fetch_add(1);
  bool done = true;
  for (;;) {
    const uint32_t seen = changes.load();
    // A lost record never comes: the device would wait, so this does.
    if (state.load() == kDone || times_done.load() != before) break;
    if (stream.stopping() || (deadline && Clock::now() >= *deadline)) {
      done = false;
      break;
    }
    stream.park(&changes, seen, std::chrono::milliseconds(5));
  }
  waiters.fetch_sub(1);
  return done;
}

bool Record::wait_on_host(Deadline deadline) {
  const uint32_t before = times_done.load();
  need();
  waiters.fetch_add(1);
  bool settled = true;
  for (;;) {
    const uint32_t seen = changes.load();
    if (state.load() != kPending || times_done.load() != before) break;
    if (!deadline) {
      futex_wait(&changes, seen);
      continue;
    }
    const auto left = *deadline - Clock::now();
    if (left.count() <= 0) {
      settled = false;
      break;
    }
    futex_wait(&changes, seen, left);
  }
  waiters.fetch_sub(1);
  if (auto* watching = observer(); watching != nullptr && state.load() == kDone) watching->host_saw(*this);
  return settled;
}

Event::Event(Device& device, bool ex, uint32_t flags, std::shared_ptr<IpcEvent> ipc)
    : device(device),
      ex(ex),
      flags(flags),
      id(Runtime::get().next_event_id.fetch_add(1)),
      ipc(std::move(ipc)),
      waits_finished_(std::make_shared<std::atomic<uint64_t>>(0)) {
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->take("events", 1, ACL_ERROR_RT_NO_EVENT_RESOURCE);
  if (ex) return;
  if (device.events.fetch_add(1) >= Device::kMaxEvents) {
    device.events.fetch_sub(1);
    fail(ACL_ERROR_RT_NO_EVENT_RESOURCE,
         "EE1023: device %d has its %d hardware events in use, some perhaps by graphs", device.id,
         Device::kMaxEvents);
  }
  latest_ = std::make_shared<Record>();
}

Event::~Event() {
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->give_back("events", 1);
  if (!ex && latest_ != nullptr) device.events.fetch_sub(1);
}

std::shared_ptr<Record> Event::latest() const {
  std::lock_guard lock(mutex_);
  return latest_;
}

std::shared_ptr<Record> Event::captured_record() const {
  std::lock_guard lock(mutex_);
  return captured_;
}

std::shared_ptr<Graph> Event::open_capture() const {
  std::lock_guard lock(mutex_);
  auto graph = captured_in_.lock();
  return graph != nullptr && graph->is_captured_now() ? graph : nullptr;
}

void Event::refuse_while_captured() const {
  const auto graph = open_capture();
  if (graph == nullptr) return;
  graph->invalidate();
  fail(ACL_ERROR_RT_EVENT_CAPTURED, "the event was recorded in a capture that is still open");
}

void Event::record(Stream& stream) {
  if (ipc != nullptr) return ipc->record(stream);
  if (const auto graph = stream.capture(); graph != nullptr && !is_external()) {
    auto edge = graph->record(stream, *this);
    std::lock_guard lock(mutex_);
    captured_in_ = graph;
    captured_ = std::move(edge);
    return;
  }
  auto record = ex ? std::make_shared<Record>() : latest();
  record->queued(stream, stream.submit(std::make_shared<RecordTask>(record)));
  std::lock_guard lock(mutex_);
  captured_in_.reset();
  captured_ = nullptr;
  if (ex) latest_ = std::move(record);
}

void Event::reset(Stream& stream) {
  if (const auto graph = stream.capture(); graph != nullptr && !is_external()) {
    if (open_capture() != graph) refuse_outside_of(*graph, stream);
    // The records inside a graph are the graph's, and a replay starts with all of them cleared.
    graph->add(stream, make_task(
                           "aclrtResetEvent", [](Stream&) -> aclError { return ACL_SUCCESS; },
                           of_kind(TaskKind::EventReset)));
    return;
  }
  auto clear = [record = latest()](Stream&) -> aclError {
    record->settle(Record::kPending);
    return ACL_SUCCESS;
  };
  stream.submit(make_task("aclrtResetEvent", std::move(clear), of_kind(TaskKind::EventReset)));
}

void Event::refuse_outside_of(Graph& graph, const Stream& stream) const {
  graph.invalidate();
  fail(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "the event was recorded outside of the capture of stream %d",
       stream.id);
}

void Event::make_wait(Stream& stream, uint32_t timeout_s) {
  if (ipc != nullptr) return ipc->make_wait(stream, timeout_s);
  if (const auto graph = open_capture()) {
    const auto captured = captured_record();  // another thread may record anew meanwhile
    if (captured != nullptr) return graph->wait(stream.shared_from_this(), captured, *this);
  }
  auto record = latest();
  if (record == nullptr) return;  // an Ex event that was never recorded holds nobody up
  const auto graph = stream.capture();
  if (graph != nullptr && !is_external()) refuse_outside_of(*graph, stream);
  // A captured wait runs any number of times, so it is not among those that QueryEventWaitStatus counts.
  const auto counted = graph == nullptr ? waits_finished_ : std::make_shared<std::atomic<uint64_t>>(0);
  auto wait = [record, finished = counted, timeout_s](Stream& waiter) -> aclError {
    Deadline deadline;
    if (timeout_s != 0) deadline = Clock::now() + std::chrono::seconds(timeout_s);
    const bool done = record->wait_on(waiter, deadline);
    finished->fetch_add(1);
    return done ? ACL_SUCCESS : ACL_ERROR_RT_WAIT_TIMEOUT;
  };
  stream.submit(make_task("aclrtStreamWaitEvent", std::move(wait), [record](TaskFacts& facts) {
    facts.kind = TaskKind::EventWait;
    facts.sync = record.get();
  }));
  if (graph == nullptr) waits_queued_.fetch_add(1);
}

}  // namespace emu
