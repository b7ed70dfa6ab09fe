#include "emulator/simulated_time.h"

#include <unistd.h>

#include <algorithm>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/wait_hints.h"

namespace emu {
namespace {

std::atomic<SimulatedTime*> the_one{nullptr};

thread_local uint64_t own_clock = 0;
bool is_main_thread() {
  static thread_local const bool is_main = getpid() == gettid();
  return is_main;
}

void stamp_word(uintptr_t word, uint64_t time) {
  const auto block = Runtime::get().memory.find(word);
  if (block == nullptr || block->place == Place::Pinned) return;
  if (WaitHints* hints = block->wait_hints()) hints->stamp(block->file_offset(word), time);
}

uint64_t stamp_of(uintptr_t word) {
  const auto block = Runtime::get().memory.find(word);
  if (block == nullptr || block->place == Place::Pinned) return 0;
  WaitHints* hints = block->wait_hints();
  return hints == nullptr ? 0 : hints->stamp_of(block->file_offset(word));
}

bool is_elsewhere(const std::vector<Range>& ranges, const Device& device) {
  if (ranges.empty()) return false;
  const auto block = Runtime::get().memory.find(ranges.front().address);
  return block != nullptr && block->device != device.id;
}

void raise_to(std::atomic<uint64_t>& clock, uint64_t time) {
  uint64_t now = clock.load();
  while (now < time && !clock.compare_exchange_weak(now, time)) {
  }
}

}  // namespace

SimulatedTime* SimulatedTime::get() { return the_one.load(std::memory_order_acquire); }

void SimulatedTime::start_if_wanted(const Config& config) {
  if (!config.simulated_time) return;
  auto made = std::make_unique<SimulatedTime>(CostModel::of(config.profile));
  the_one.store(made.get(), std::memory_order_release);
  add_observer(std::move(made));
}

uint64_t& SimulatedTime::host_clock() {
  if (is_main_thread()) return main_clock_;
  own_clock = std::max(own_clock, main_clock_);
  return own_clock;
}

uint64_t SimulatedTime::now() {
  std::lock_guard lock(mutex_);
  return host_clock() - origin_;
}

uint64_t SimulatedTime::stream_now(const Stream& stream) {
  std::lock_guard lock(mutex_);
  const auto lane = lanes_.find(&stream);
  return lane == lanes_.end() ? 0 : std::max(lane->second.clock, origin_) - origin_;
}

void SimulatedTime::reset() {
  std::lock_guard lock(mutex_);
  latest_ = std::max(latest_, main_clock_);
  for (auto& [_, lane] : lanes_) lane.clock = latest_;
  main_clock_ = latest_;
  origin_ = latest_;
}

void SimulatedTime::submitted(Stream& stream, const Task& task, uint64_t) {
  TaskFacts facts;
  task.describe(facts);
  std::lock_guard lock(mutex_);
  uint64_t& clock = host_clock();
  clock += model.submit_ns(facts);
  lanes_[&stream].submitted.push_back(clock);
}

void SimulatedTime::take_off(Stream& stream) {
  Lane& lane = lanes_[&stream];
  if (lane.submitted.empty()) return;  // it was queued before the clocks ran
  lane.clock = std::max(lane.clock, lane.submitted.front());
  lane.submitted.pop_front();
}

void SimulatedTime::taken(Stream& stream, const Task&, uint64_t) {
  std::lock_guard lock(mutex_);
  take_off(stream);
}

void SimulatedTime::dropped(Stream& stream, const Task&, uint64_t) {
  std::lock_guard lock(mutex_);
  Lane& lane = lanes_[&stream];
  if (!lane.submitted.empty()) lane.submitted.pop_front();
}

uint64_t SimulatedTime::end_of(const TaskFacts& facts, const Device& device, uint64_t earliest) {
  const bool reads_peer = is_elsewhere(facts.reads, device);
  Direction direction = facts.direction.value_or(Direction::D2D);
  // Memory of another process on the same device is as near as one's own.
  if (direction == Direction::Peer && !reads_peer && !is_elsewhere(facts.writes, device))
    direction = Direction::D2D;
  Link link = kMemory;
  if (direction == Direction::H2D) link = kHostToDevice;
  if (direction == Direction::D2H) link = kDeviceToHost;
  if (direction == Direction::Peer) link = reads_peer ? kPeerIn : kPeerOut;
  const CostModel::Cost cost = model.of_task(facts, direction, reads_peer);
  const uint64_t ready = earliest + cost.fixed_ns;
  if (cost.moving_ns == 0) return ready;
  return links_[device.physical_id][link].take(ready, cost.moving_ns) + cost.moving_ns;
}

// Its end is known before it runs, so that whoever sees what it did finds the time there.
void SimulatedTime::begun(Stream& stream, const Task&, const TaskFacts& facts) {
  uint64_t end = 0;
  {
    std::lock_guard lock(mutex_);
    Lane& lane = lanes_[&stream];
    lane.clock = end_of(facts, stream.context().device, lane.clock);
    latest_ = std::max(latest_, lane.clock);
    end = lane.clock;
  }
  if (facts.kind == TaskKind::EventRecord || facts.kind == TaskKind::NotifyRecord) {
    if (facts.sync != nullptr) facts.sync->simulated_ns.store(end);
  } else if (facts.kind == TaskKind::ValueWrite) {
    stamp_word(facts.word, end);
  } else if (facts.kind == TaskKind::Copy && facts.bytes == sizeof(uint64_t) && !facts.writes.empty()) {
    stamp_word(facts.writes.front().address, end);
  }
}

void SimulatedTime::ended(Stream& stream, const Task&, const TaskFacts& facts, aclError code) {
  if (code != ACL_SUCCESS) return;
  uint64_t reached = 0;
  if (facts.kind == TaskKind::EventWait || facts.kind == TaskKind::NotifyWait) {
    if (facts.sync != nullptr) reached = facts.sync->simulated_ns.load();
  } else if (facts.kind == TaskKind::ValueWait) {
    reached = stamp_of(facts.word);
  }
  if (reached == 0) return;
  std::lock_guard lock(mutex_);
  Lane& lane = lanes_[&stream];
  lane.clock = std::max(lane.clock, reached);
  latest_ = std::max(latest_, lane.clock);
}

void SimulatedTime::released(SyncPoint& point, Stream& stream) {
  std::lock_guard lock(mutex_);
  raise_to(point.simulated_ns, lanes_[&stream].clock);
}

void SimulatedTime::acquired(SyncPoint& point, Stream& stream) {
  std::lock_guard lock(mutex_);
  Lane& lane = lanes_[&stream];
  lane.clock = std::max(lane.clock, point.simulated_ns.load());
}

void SimulatedTime::host_waited(Stream& stream) {
  std::lock_guard lock(mutex_);
  uint64_t& clock = host_clock();
  if (const auto lane = lanes_.find(&stream); lane != lanes_.end())
    clock = std::max(clock, lane->second.clock);
}

void SimulatedTime::host_saw(SyncPoint& point) {
  std::lock_guard lock(mutex_);
  uint64_t& clock = host_clock();
  clock = std::max(clock, point.simulated_ns.load());
}

void SimulatedTime::host_begun(const TaskFacts& facts) {
  const auto& context = Thread::self().context;
  if (context == nullptr) return;
  uint64_t end = 0;
  {
    std::lock_guard lock(mutex_);
    uint64_t& clock = host_clock();
    clock = end_of(facts, context->device, clock + model.submit_ns(facts));
    latest_ = std::max(latest_, clock);
    end = clock;
  }
  if (facts.kind == TaskKind::Copy && facts.bytes == sizeof(uint64_t) && !facts.writes.empty())
    stamp_word(facts.writes.front().address, end);
}

void SimulatedTime::stream_gone(Stream& stream) {
  std::lock_guard lock(mutex_);
  lanes_.erase(&stream);
}

}  // namespace emu

using namespace emu;

int emuClockNow(void* stream, uint64_t* ns) {
  SimulatedTime* const time = SimulatedTime::get();
  if (time == nullptr) return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
  if (stream == nullptr) {
    *ns = time->now();
    return ACL_SUCCESS;
  }
  const auto asked = Runtime::get().streams.find(stream);
  if (asked == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  *ns = time->stream_now(*asked);
  return ACL_SUCCESS;
}

int emuClockReset() {
  SimulatedTime* const time = SimulatedTime::get();
  if (time == nullptr) return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
  time->reset();
  return ACL_SUCCESS;
}

int emuCost(int index, const char** name, double* value, const char** source) {
  if (index < 0 || index >= CostModel::kCount) return ACL_ERROR_INVALID_PARAM;
  const auto& number = CostModel::of(Runtime::get().config.profile).numbers[index];
  *name = number.name;
  *value = number.value;
  *source = number.source;
  return ACL_SUCCESS;
}
