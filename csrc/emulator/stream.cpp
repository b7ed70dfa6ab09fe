#include "emulator/stream.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "emulator/context.h"
#include "emulator/copy_row.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/exception_info.h"
#include "emulator/faults.h"
#include "emulator/graph.h"
#include "emulator/interleaving.h"
#include "emulator/lazy.h"
#include "emulator/observer.h"
#include "emulator/pollers.h"
#include "emulator/runtime.h"
#include "emulator/task_group.h"
#include "emulator/thread.h"

namespace emu {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// An idle worker looks for work this often before it sleeps: a wake-up costs microseconds, a task does not.
constexpr int kSpins = 400;
// A task that is told to end between its last look and its sleep is seen after this long.
constexpr nanoseconds kLongestPark = milliseconds(5);
// Brief tasks that the thread of host functions takes along on its way to the next function: to hand them
// over, and back, would cost more than they do.
constexpr uint64_t kMostBetween = 8;

thread_local Stream* running_here = nullptr;

}  // namespace

Stream::Stream(std::shared_ptr<Context> context, uint32_t priority, uint32_t flags)
    : priority(priority),
      flags(flags),
      id(Runtime::get().next_stream_id.fetch_add(1)),
      core_limits{Device::kCubeCores, Device::kVectorCores},
      context_(std::move(context)),
      needed_(lazy::is_on() ? 0 : UINT64_MAX),
      interleaving_(Interleaving::make(context_->device.physical_id, id)) {}

Stream::~Stream() {
  if (auto* watching = observer()) watching->stream_gone(*this);
}

Stream* Stream::running() { return running_here; }

void Stream::set_running(Stream* stream) { running_here = stream; }

void Stream::check_takes_work() const {
  if (closed_.load()) fail(ACL_ERROR_RT_INVALID_HANDLE, "stream %d is destroyed", id);
  if ((flags & ACL_STREAM_DEVICE_USE_ONLY) != 0) [[unlikely]] {
    fail(ACL_ERROR_RT_STREAM_NOT_SUPPORT_OPERA, "stream %d is ACL_STREAM_DEVICE_USE_ONLY", id);
  }
  if (const aclError code = context_->refusal(); code != ACL_SUCCESS) [[unlikely]] {
    fail(code, "stream %d is stopped: %s", id, context_->failure_message().c_str());
  }
}

std::shared_ptr<Graph> Stream::capture() const {
  if (!is_capturing()) return nullptr;
  std::lock_guard lock(capture_mutex_);
  return capture_;
}

void Stream::set_capture(std::shared_ptr<Graph> graph) {
  std::lock_guard lock(capture_mutex_);
  capturing_.store(graph != nullptr);
  capture_ = std::move(graph);
  diverted_.store(capture_ != nullptr || update_ != nullptr);
}

std::shared_ptr<GroupUpdate> Stream::update() const {
  std::lock_guard lock(capture_mutex_);
  return update_;
}

void Stream::set_update(std::shared_ptr<GroupUpdate> update) {
  std::lock_guard lock(capture_mutex_);
  update_ = std::move(update);
  diverted_.store(capture_ != nullptr || update_ != nullptr);
}

bool Stream::divert(const std::shared_ptr<Task>& task) {
  if (const auto graph = capture()) {
    graph->add(*this, task);
    return true;
  }
  if (const auto changes = update()) {
    changes->add(*this, task);
    return true;
  }
  return false;
}

void Stream::refuse_while_capturing() const {
  const auto graph = capture();
  if (graph == nullptr) return;
  graph->invalidate();
  fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d is being captured", id);
}

bool Stream::note_writer(const Task& task, uint64_t number) {
  TaskFacts facts;
  task.describe(facts);
  const bool is_for_peers = lazy::is_for_peers(facts);
  if (facts.kind == TaskKind::ValueWrite) facts.writes.push_back({facts.word, sizeof(uint64_t)});
  std::lock_guard lock(writers_mutex_);
  while (!writers_.empty() && writers_.front().number < finished_.load()) writers_.pop_front();
  if (!facts.writes.empty()) writers_.push_back({number, std::move(facts.writes)});
  return is_for_peers;
}

bool Stream::need_writers_of(uintptr_t word) {
  auto covers = [word](const Range& range) {
    const size_t span = range.rows == 0 ? 0 : (range.rows - 1) * range.pitch + range.width;
    return word < range.address + span && range.address < word + sizeof(uint64_t);
  };
  bool is_queued = false;
  std::lock_guard lock(writers_mutex_);
  for (const Writer& writer : writers_) {
    if (writer.number < finished_.load() || std::none_of(writer.ranges.begin(), writer.ranges.end(), covers))
      continue;
    need(writer.number + 1);
    is_queued = true;
  }
  return is_queued;
}

uint64_t Stream::submit(std::shared_ptr<Task> task) {
  if (diverted_.load(std::memory_order_acquire) && divert(task)) [[unlikely]]
    return 0;
  std::lock_guard lock(submit_mutex_);
  check_takes_work();
  const uint64_t number = submitted_.load(std::memory_order_relaxed);
  if (number - finished_.load(std::memory_order_acquire) >= kDepth) [[unlikely]] {
    need(number);
    for (int i = 0; i < kSpins && number - finished_.load() >= kDepth; ++i) cpu_relax();
    auto is_stopped = [&] { return closed_.load() || halted_.load() || context_->failure() != ACL_SUCCESS; };
    progress_.wait([&] { return is_done(number + 1 - kDepth) || is_stopped(); }, std::nullopt);
    check_takes_work();
    if (!is_done(number + 1 - kDepth)) {  // and will not be before an abort
      fail(ACL_ERROR_RT_STREAM_ABORT, "stream %d is stopped, and its queue of %lu tasks is full", id, kDepth);
    }
  }
  if (!worker_started_) [[unlikely]]
    start_worker();
  if (auto* watching = observer()) [[unlikely]]
    watching->submitted(*this, *task, number);
  const bool is_needed = lazy::is_on() && note_writer(*task, number);
  ring_[number % kDepth] = std::move(task);
  submitted_.store(number + 1);
  if (asleep_.load() != 0 && asleep_.exchange(0) != 0) futex_wake_all(&asleep_);
  if (is_needed) need(number + 1);
  return number;
}

void Stream::need(uint64_t below) {
  uint64_t now = needed_.load();
  while (now < below && !needed_.compare_exchange_weak(now, below)) {
  }
  if (now < below && asleep_.exchange(0) != 0) futex_wake_all(&asleep_);
}

void Stream::start_worker() {
  slow_down_pollers();
  worker_runs_.store(true);
  try {
    start_thread(text("npu-stream-%d", id), [self = shared_from_this()] { self->work(); });
  } catch (const std::system_error& error) {
    worker_runs_.store(false);
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "no thread for stream %d: %s", id, error.what());
  }
  worker_started_ = true;
}

void Stream::sleep_until_work() {
  const uint64_t next = finished_.load(std::memory_order_relaxed);
  auto must_drop = [&] { return next < drop_before_.load() || context_->failure() != ACL_SUCCESS; };
  auto must_wake = [&] {
    if (closed_.load()) return true;
    if (submitted_.load() == next || halted_.load()) return false;
    return next < needed_.load() || must_drop();
  };
  for (int i = 0; i < kSpins; ++i) {
    if (must_wake()) return;
    cpu_relax();
  }
  for (;;) {
    asleep_.store(1);
    if (must_wake()) break;
    futex_wait(&asleep_, 1);
  }
  asleep_.store(0);
}

std::shared_ptr<Task> Stream::next() {
  for (;;) {
    const uint64_t number = finished_.load(std::memory_order_relaxed);
    if (submitted_.load(std::memory_order_acquire) == number || (halted_.load() && !closed_.load())) {
      if (closed_.load()) return nullptr;
      sleep_until_work();
      continue;
    }
    aclError drop = ACL_SUCCESS;
    if (closed_.load() || number < drop_before_.load()) drop = ACL_ERROR_RT_STREAM_ABORT;
    if (const aclError code = context_->failure(); code != ACL_SUCCESS) drop = code;
    if (drop == ACL_SUCCESS && number >= needed_.load()) [[unlikely]] {
      sleep_until_work();
      continue;
    }
    auto task = std::move(ring_[number % kDepth]);
    if (drop == ACL_SUCCESS) return task;
    task->dropped(drop);
    if (auto* watching = observer()) watching->dropped(*this, *task, number);
    task = nullptr;
    finish(1);
  }
}

aclError Stream::run_now(Task& task) {
  parked_since_.reset();
  Runtime& runtime = Runtime::get();
  aclError code = ACL_SUCCESS;
  if (is_armed(kTaskFaults)) [[unlikely]]
    code = runtime.faults->before_task(*this, task);
  if (interleaving_ != nullptr) [[unlikely]] {
    if (const auto held = interleaving_->hold(); held.count() != 0) pass_time(held);
  }
  if (stopping()) return ACL_ERROR_RT_STREAM_ABORT;
  if (code == ACL_SUCCESS) code = observer() == nullptr ? task.run(*this) : run_watched(task);
  if (is_armed(bit(Fault::Freeze))) [[unlikely]]
    runtime.faults->hold_while_frozen(*this);
  runtime.tasks_run.fetch_add(1, std::memory_order_relaxed);
  return code;
}

aclError Stream::run_watched(Task& task) {
  Observer* const watching = observer();
  TaskFacts facts;
  task.describe(facts);
  watching->begun(*this, task, facts);
  const aclError code = task.run(*this);
  watching->ended(*this, task, facts, code);
  return code;
}

void Stream::run(Task& task) {
  if (auto* watching = observer()) [[unlikely]]
    watching->taken(*this, task, finished_.load(std::memory_order_relaxed));
  taken_ = &task;
  const aclError code = run_now(task);
  taken_ = nullptr;
  if (code == ACL_SUCCESS) [[likely]]
    return;
  if (stopping()) {  // it did not fail, it was ended
    task.dropped(code);
    return;
  }
  context_->device.error.note(code, task);
  std::string why;
  {
    std::lock_guard lock(why_mutex_);
    why = text("%s on stream %d of device %d failed with %d (%s)%s%s", task.what, id, context_->device.id,
               code, meaning(code), why_.empty() ? "" : ": ", why_.c_str());
    why_ = why;
  }
  tell_of_failed_task({static_cast<uint32_t>(finished_.load()), static_cast<uint32_t>(id),
                       static_cast<uint32_t>(gettid()), static_cast<uint32_t>(context_->device.id),
                       static_cast<uint32_t>(code)});
  // Who aborts a graph on purpose ends that replay, and no more.
  if (failure_mode.load() == ACL_STOP_ON_FAILURE && code != ACL_ERROR_RT_MODEL_ABORT_NORMAL) {
    context_->stop(code, why);
    task.dropped(code);
  } else {
    untold_failure_.store(code);
  }
}

void Stream::work() {
  running_here = this;
  CopyRow row;
  while (auto task = next()) {
    if (const size_t moved = move_row(*task, row); moved > 0) {
      task = nullptr;
      const uint64_t first = finished_.load(std::memory_order_relaxed);
      for (size_t i = 1; i < moved; ++i) ring_[(first + i) % kDepth] = nullptr;
      finish(moved);
      continue;
    }
    if (is_armed(bit(Fault::Overtake)) && task->is_copy() && !task->writes_flag()) [[unlikely]]
      let_flag_overtake();
    run(*task);
    // Gone before the task counts as finished: who synchronises may free what it held.
    task = nullptr;
    finish(1);
  }
  worker_runs_.store(false);
  progress_.raise();
}

// Somebody looks at tasks one by one, or tells single ones how to behave.
bool Stream::shows_single_tasks() const {
  return observer() != nullptr || is_armed(~uint32_t{0}) || interleaving_ != nullptr;
}

// How many tasks moved together, the taken one and those behind it; 0: it is to run by itself.
size_t Stream::move_row(const Task& first, CopyRow& row) {
  const Copy* copy = first.as_copy();
  if (copy == nullptr || shows_single_tasks()) return 0;
  const uint64_t begin = finished_.load(std::memory_order_relaxed);
  const uint64_t end = std::min(submitted_.load(std::memory_order_acquire), needed_.load());
  if (end - begin < 2 || ring_[(begin + 1) % kDepth]->as_copy() == nullptr) return 0;
  for (uint64_t number = begin + 1; copy != nullptr && row.add(*copy, context_->device); ++number)
    copy = number < end ? ring_[number % kDepth]->as_copy() : nullptr;
  const size_t moved = row.size() > 1 ? row.size() : 0;
  if (moved > 0) {
    row.move(has_behind(kRow + moved));
    Runtime::get().tasks_run.fetch_add(moved, std::memory_order_relaxed);
  }
  row.clear();
  return moved;
}

// A host that is to be frozen stops in its functions, and runs no task of the device meanwhile.
std::shared_ptr<Task> Stream::go_on_with_host_function() {
  constexpr uint32_t kLookedAt = kTaskFaults | kCopyFaults | bits(Fault::Overtake, Fault::HoldHost);
  auto is_looked_at = [&] { return observer() != nullptr || is_armed(kLookedAt) || stopping(); };
  if (is_looked_at() || interleaving_ != nullptr) return nullptr;
  const uint64_t next = finished_.load(std::memory_order_relaxed) + 1;
  const uint64_t most = std::min({submitted_.load(std::memory_order_acquire), needed_.load(),
                                  next + (lazy::is_on() ? 1 : kMostBetween + 1)});
  uint64_t function = next;
  while (function < most && !ring_[function % kDepth]->is_host_function()) {
    if (!ring_[function % kDepth]->is_brief()) return nullptr;
    ++function;
  }
  if (function >= most) return nullptr;
  for (uint64_t number = next;; ++number) {
    auto taken = std::move(ring_[number % kDepth]);
    finish(1);
    if (number == function) {
      Runtime::get().tasks_run.fetch_add(1, std::memory_order_relaxed);
      return taken;
    }
    run(*taken);
    if (is_looked_at()) return nullptr;
  }
}

// What a checker of flags must notice: the flag behind copies is written before their bytes are.
void Stream::let_flag_overtake() {
  const uint64_t running = finished_.load(std::memory_order_relaxed);
  auto& faults = *Runtime::get().faults;
  const auto rule = faults.standing(Fault::Overtake, Faults::subject_of(*this, ""));
  if (!rule) return;
  const auto late = nanoseconds(rule->amount);
  const auto deadline = Clock::now() + late;
  for (uint64_t number = running + 1; !stopping(); ++number) {
    while (submitted_.load(std::memory_order_acquire) == number) {
      if (stopping() || Clock::now() >= deadline) return;
      nap(std::min<nanoseconds>(late, milliseconds(1)));
    }
    auto& behind = ring_[number % kDepth];
    if (!behind->writes_flag()) {
      if (behind->is_copy()) continue;
      return;
    }
    if (!faults.fires(Fault::Overtake, Faults::subject_of(*this, ""))) return;
    // How it ended is told when its turn comes.
    const aclError code = run_now(*behind);
    behind = make_task(behind->what, [code](Stream&) -> aclError { return code; });
    pass_time(late);
    return;
  }
}

void Stream::finish(uint64_t tasks) {
  const uint64_t done = finished_.load(std::memory_order_relaxed) + tasks;
  finished_.store(done);
  // Who waits for a later task sleeps on: a wake-up per task would cost more than the tasks.
  if (done < wake_at_.load()) [[likely]]
    return;
  wake_at_.store(UINT64_MAX);
  progress_.raise();
}

bool Stream::is_done(uint64_t target) {
  if (finished_.load() >= target) return true;
  uint64_t least = wake_at_.load();
  while (target < least && !wake_at_.compare_exchange_weak(least, target)) {
  }
  return finished_.load() >= target;
}

void Stream::synchronize(Deadline deadline) {
  const uint64_t target = submitted_.load();
  need(target);
  const uint32_t aborts = aborts_.load();
  auto cut_short = [&] {
    return closed_.load() || halted_.load() || aborts_.load() != aborts || context_->failure() != ACL_SUCCESS;
  };
  const bool in_time = progress_.wait([&] { return is_done(target) || cut_short(); }, deadline);
  if (auto* watching = observer(); watching != nullptr && in_time) watching->host_waited(*this);
  if (const aclError code = context_->failure(); code != ACL_SUCCESS) {
    fail(code, "%s", context_->failure_message().c_str());
  }
  if (closed_.load()) fail(ACL_ERROR_RT_INVALID_HANDLE, "stream %d was destroyed", id);
  if (halted_.load()) fail(ACL_ERROR_RT_STREAM_ABORT, "stream %d was stopped meanwhile", id);
  if (aborts_.load() != aborts) fail(abort_code_.load(), "stream %d was aborted meanwhile", id);
  if (!in_time) fail(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "stream %d still has work", id);
  if (const aclError code = untold_failure_.exchange(ACL_SUCCESS); code != ACL_SUCCESS) {
    std::lock_guard lock(why_mutex_);
    const std::string why = std::move(why_);
    why_.clear();
    fail(code, "%s", why.c_str());
  }
}

bool Stream::idle() {
  if (const aclError code = context_->failure(); code != ACL_SUCCESS) {
    fail(code, "%s", context_->failure_message().c_str());
  }
  if (const aclError code = untold_failure_.load(); code != ACL_SUCCESS) {
    std::lock_guard lock(why_mutex_);
    fail(code, "%s", why_.c_str());
  }
  need_all();
  if (finished_.load() < submitted_.load()) return false;
  if (auto* watching = observer()) watching->host_waited(*this);
  return true;
}

void Stream::interrupt() {
  if (const auto* word = parked_on_.load()) futex_wake_all(word);
  if (asleep_.exchange(0) != 0) futex_wake_all(&asleep_);
  progress_.raise();
}

void Stream::abort(aclError told) {
  const uint64_t target = submitted_.load();
  abort_code_.store(told);
  // Of two aborts at once the later one counts.
  for (uint64_t before = drop_before_.load();
       before < target && !drop_before_.compare_exchange_weak(before, target);) {
  }
  aborts_.fetch_add(1);
  halted_.store(false);
  interrupt();
  progress_.wait([&] { return is_done(target) || closed_.load(); }, std::nullopt);
  if (auto* watching = observer()) watching->host_waited(*this);
}

void Stream::wait_for_worker(Deadline deadline) {
  const bool ended = progress_.wait([&] { return !worker_runs_.load(); }, deadline);
  if (auto* watching = observer(); watching != nullptr && ended) watching->host_waited(*this);
}

void Stream::halt() {
  halted_.store(true);
  interrupt();
}

void Stream::cut() {
  cuts_.fetch_add(1);
  interrupt();
}

void Stream::mend() { cuts_.fetch_sub(1); }

void Stream::close() {
  closed_.store(true);
  interrupt();
}

bool Stream::stopping() const {
  return closed_.load(std::memory_order_relaxed) || halted_.load(std::memory_order_relaxed) ||
         drop_before_.load(std::memory_order_relaxed) > finished_.load(std::memory_order_relaxed) ||
         cuts_.load(std::memory_order_relaxed) != 0 || context_->failure() != ACL_SUCCESS;
}

void Stream::park(const std::atomic<uint32_t>* word, uint32_t expected, nanoseconds timeout,
                  nanoseconds grace) {
  if (lazy::is_on()) [[unlikely]] {
    const auto now = Clock::now();
    if (!parked_since_) parked_since_ = now;
    if (now - *parked_since_ >= grace) lazy::need_everything();
  }
  nap(word, expected, timeout);
}

void Stream::nap(const std::atomic<uint32_t>* word, uint32_t expected, nanoseconds timeout) {
  parked_on_.store(word);
  if (!stopping()) futex_wait(word, expected, std::min(timeout, kLongestPark));
  parked_on_.store(nullptr);
}

bool Stream::pass_time(nanoseconds duration) {
  const auto end = Clock::now() + duration;
  while (!stopping()) {
    const auto left = end - Clock::now();
    if (left.count() <= 0) return true;
    if (left > std::chrono::microseconds(100)) {
      nap(&clock_word_, 0, left - std::chrono::microseconds(60));  // timers wake up late
    } else {
      cpu_relax();
    }
  }
  return false;
}

std::string Stream::take_explanation() {
  std::lock_guard lock(why_mutex_);
  return std::exchange(why_, {});
}

Interleaving& Stream::interleaving_of(uint64_t seed) {
  if (set_interleaving_ == nullptr || set_seed_ != seed) {
    set_interleaving_ = std::make_unique<Interleaving>(seed, context_->device.physical_id, id);
    set_seed_ = seed;
  }
  return *set_interleaving_;
}

void Stream::nap(nanoseconds duration) { nap(&clock_word_, 0, duration); }

void Stream::explain(std::string why) {
  std::lock_guard lock(why_mutex_);
  why_ = std::move(why);
}

}  // namespace emu
