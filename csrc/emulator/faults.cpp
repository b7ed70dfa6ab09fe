#include "emulator/faults.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/error.h"
#include "emulator/event.h"
#include "emulator/interleaving.h"
#include "emulator/runtime.h"
#include "emulator/simulated_time.h"
#include "emulator/stream.h"
#include "emulator/task.h"

namespace emu {
namespace {

// How often a frozen queue looks whether it may go on: whoever thaws it may be another process.
constexpr auto kNap = std::chrono::milliseconds(1);

bool within(uint64_t address, uintptr_t begin, size_t span) {
  return begin != 0 && address >= begin && address - begin < span;
}

bool matches(const FaultRule& rule, const Faults::Subject& subject) {
  if (subject.by_memory && rule.address == 0 && rule.bytes == 0) return false;
  if (subject.by_name && rule.function[0] == '\0') return false;
  if (rule.function[0] != '\0' && std::strcmp(rule.function, "*") != 0 &&
      std::strncmp(rule.function, subject.name, sizeof rule.function) != 0) {
    return false;
  }
  if (rule.stream != 0) {
    if (subject.stream == nullptr) return false;
    if (rule.stream != reinterpret_cast<uintptr_t>(subject.stream->handle)) return false;
  }
  if (rule.device >= 0 && rule.device != subject.device) return false;
  if (rule.direction >= 0 && rule.direction != subject.direction) return false;
  if (rule.address != 0 && !within(rule.address, subject.dst, subject.dst_span) &&
      !within(rule.address, subject.src, subject.src_span)) {
    return false;
  }
  return rule.bytes == 0 || rule.bytes == subject.bytes;
}

}  // namespace

Faults::Subject Faults::subject_of(const Stream& stream, const char* name) {
  return {.name = name, .stream = &stream, .device = stream.context().device.id};
}

bool touches_memory(Entry entry) {
  switch (entry) {
    case Entry::aclrtMemcpy:
    case Entry::aclrtMemcpyAsync:
    case Entry::aclrtMemcpyAsyncWithCondition:
    case Entry::aclrtMemcpy2d:
    case Entry::aclrtMemcpy2dAsync:
    case Entry::aclrtMemset:
    case Entry::aclrtMemsetAsync:
    case Entry::aclrtMalloc:
    case Entry::aclrtMallocAlign32:
    case Entry::aclrtFree:
    case Entry::aclrtMallocHost:
    case Entry::aclrtValueWrite:
    case Entry::aclrtValueWait:
    case Entry::aclrtIpcMemGetExportKey:
      return true;
    default:
      return false;
  }
}

template <class Body>
void Faults::for_each(Fault kind, const Subject& subject, Body&& body) const {
  for (uint32_t i = 0; i < FaultBlock::kSlots; ++i) {
    uint64_t generation = 0;
    const auto rule = read(i, &generation);
    if (!rule || rule->kind != static_cast<uint64_t>(kind) || !matches(*rule, subject)) continue;
    if (!body(i, *rule, generation)) return;
  }
}

bool Faults::count(FaultSlot& slot, const FaultRule& rule) {
  const uint64_t match = slot.hits.fetch_add(1) + 1;
  if (match < rule.nth || (rule.times != 0 && match >= rule.nth + rule.times)) return false;
  // A held copy takes effect when it has come as far as it may.
  if (rule.kind != static_cast<uint64_t>(Fault::HoldCopy)) slot.fired.fetch_add(1);
  return true;
}

std::optional<FiredRule> Faults::fires(Fault kind, const Subject& subject) {
  std::optional<FiredRule> first;
  for_each(kind, subject, [&](uint32_t i, const FaultRule& rule, uint64_t generation) {
    if (count(block_->slots[i], rule) && !first) first = FiredRule{rule, i, generation};
    return true;
  });
  return first;
}

bool Faults::is_still_armed(const FiredRule& fired) const {
  return block_->slots[fired.slot].generation.load(std::memory_order_acquire) == fired.generation;
}

uint64_t Faults::sum(Fault kind, const Subject& subject) const {
  uint64_t all = 0;
  for_each(kind, subject, [&](uint32_t, const FaultRule& rule, uint64_t) {
    all += rule.amount;
    return true;
  });
  return all;
}

uint64_t Faults::least(Fault kind, const Subject& subject) const {
  uint64_t least = 0;
  for_each(kind, subject, [&](uint32_t, const FaultRule& rule, uint64_t) {
    least = least == 0 ? rule.amount : std::min(least, rule.amount);
    return true;
  });
  return least;
}

std::optional<FaultRule> Faults::standing(Fault kind, const Subject& subject) const {
  std::optional<FaultRule> found;
  for_each(kind, subject, [&](uint32_t, const FaultRule& rule, uint64_t) {
    found = rule;
    return false;
  });
  return found;
}

void Faults::take(const char* resource, uint64_t wanted, aclError code) {
  for_each(Fault::Limit, {.name = resource}, [&](uint32_t i, const FaultRule& rule, uint64_t) {
    // Signed: what was there before the limit may come back without having been taken.
    auto& taken = block_->slots[i].hits;
    uint64_t before = taken.load();
    do {
      const auto left = static_cast<int64_t>(rule.amount - before);
      if (left >= 0 && static_cast<uint64_t>(left) >= wanted) continue;
      block_->slots[i].fired.fetch_add(1);
      fail(code, "a fault limits %s: %lld left, %llu wanted", resource, static_cast<long long>(left),
           static_cast<unsigned long long>(wanted));
    } while (!taken.compare_exchange_weak(before, before + wanted));
    return false;
  });
}

void Faults::give_back(const char* resource, uint64_t count) {
  for_each(Fault::Limit, {.name = resource}, [&](uint32_t i, const FaultRule&, uint64_t) {
    block_->slots[i].hits.fetch_sub(count);
    return false;
  });
}

void Faults::refuse_bad_text() const { fail(ACL_ERROR_INVALID_PARAM, "%s", problem_.c_str()); }

void Faults::hold_host() const {
  auto is_held = [&] {
    const auto rule = standing(Fault::HoldHost, {});
    return rule && kill(static_cast<pid_t>(rule->amount), 0) == 0;
  };
  wait_while(is_held, nullptr);
}

void Faults::begin_call(Entry entry, Thread& self) {
  const Subject subject{.name = name_of(entry)};
  if (const auto late = fires(Fault::LateCall, subject)) self.late.push_back(*late);
  if (const auto failing = fires(Fault::FailCall, subject)) {
    fail(static_cast<aclError>(failing->rule.code), "fault injected by a test (call %llu)",
         static_cast<unsigned long long>(Runtime::get().entry(entry).calls.load()));
  }
}

void Faults::begin_call(Entry entry, uintptr_t first, uintptr_t second, size_t bytes, Thread& self) {
  const Subject subject{.by_memory = true,
                        .name = name_of(entry),
                        .dst = first,
                        .src = second,
                        .bytes = bytes,
                        .dst_span = std::max<size_t>(bytes, 1),
                        .src_span = std::max<size_t>(bytes, 1)};
  if (const auto late = fires(Fault::LateCall, subject)) self.late.push_back(*late);
  if (const auto failing = fires(Fault::FailCall, subject)) {
    fail(static_cast<aclError>(failing->rule.code), "fault injected by a test (%zu bytes at 0x%zx)", bytes,
         first);
  }
}

void check_memory_faults(Entry entry, uintptr_t first, uintptr_t second, size_t bytes) {
  Runtime::get().faults->begin_call(entry, first, second, bytes, Thread::self());
}

void Faults::hold_up(const FiredRule& late) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(late.rule.amount);
  wait_while([&] { return std::chrono::steady_clock::now() < until && is_still_armed(late); }, nullptr);
}

aclError Faults::before_task(Stream& stream, const Task& task) {
  Subject subject = subject_of(stream, task.what);
  if (const uint64_t ns = sum(Fault::TaskDelay, subject); ns != 0) {
    stream.pass_time(std::chrono::nanoseconds(ns));
  }
  if (const auto rule = standing(Fault::Interleave, subject)) {
    stream.pass_time(stream.interleaving_of(rule->amount).hold());
  }
  hold_while_frozen(stream);
  if (task.is_copy() || !is_armed(bit(Fault::FailTask)))
    return ACL_SUCCESS;  // copies are asked for by move()
  subject.by_name = true;
  const auto failing = fires(Fault::FailTask, subject);
  if (!failing) return ACL_SUCCESS;
  stream.explain("fault injected by a test");
  return static_cast<aclError>(failing->rule.code);
}

void Faults::wait_while(const std::function<bool()>& holds, Stream* stream) const {
  while (holds()) {
    if (stream == nullptr) {
      std::this_thread::sleep_for(kNap);
    } else if (stream->stopping()) {
      return;
    } else {
      stream->nap(kNap);
    }
  }
}

bool Faults::is_frozen(int32_t device, const Stream* stream) const {
  bool frozen = false;
  for_each(Fault::Freeze, {.stream = stream, .device = device}, [&](uint32_t, const FaultRule&, uint64_t) {
    frozen = true;
    return false;
  });
  return frozen;
}

void Faults::hold_while_frozen(Stream& stream) const {
  if (!is_armed(bit(Fault::Freeze))) return;
  wait_while([&] { return is_frozen(stream.context().device.id, &stream); }, &stream);
}

aclError Faults::lost(int32_t device) const {
  aclError code = ACL_SUCCESS;
  for_each(Fault::Lose, {.device = device}, [&](uint32_t, const FaultRule& rule, uint64_t) {
    code = static_cast<aclError>(rule.code);
    return false;
  });
  return code;
}

void Faults::note_answer(Device& device, aclError code) const {
  if (code == lost(device.id)) device.loss_told.store(true);
}

void Faults::refuse_if_lost(const Device& device) const {
  if (!device.loss_told.load()) return;
  if (const aclError code = lost(device.id); code != ACL_SUCCESS) {
    fail(code, "device %d is lost (a fault says so); aclrtResetDevice gets it back", device.id);
  }
}

void Faults::find_again(int32_t device) {
  disarm([device](const FaultRule& rule) {
    return rule.kind == static_cast<uint64_t>(Fault::Lose) && (rule.device == device || rule.device < 0);
  });
}

bool Faults::counts_as_dead(int32_t pid) const {
  bool dead = false;
  for_each(Fault::DeadExporter, {}, [&](uint32_t, const FaultRule& rule, uint64_t) {
    dead = rule.amount == 0 || rule.amount == static_cast<uint64_t>(pid);
    return !dead;
  });
  return dead;
}

int32_t Faults::own_pid() const {
  const auto rule = standing(Fault::CountAsPid, {});
  return rule ? static_cast<int32_t>(rule->amount) : getpid();
}

size_t Faults::export_page(size_t otherwise) const {
  const auto rule = standing(Fault::ExportPage, {});
  return rule ? rule->amount : otherwise;
}

}  // namespace emu

using namespace emu;

namespace {

// What the C interface sets has one rule at a time for the same thing; 0 takes it away.
int set_or_clear(const FaultRule& rule, bool set) {
  try {
    Faults& faults = *Runtime::get().faults;
    if (set) {
      faults.arm(rule);
      return ACL_SUCCESS;
    }
    faults.disarm([&](const FaultRule& armed) {
      return armed.kind == rule.kind && std::strcmp(armed.function, rule.function) == 0 &&
             armed.stream == rule.stream && armed.direction == rule.direction;
    });
    return ACL_SUCCESS;
  } catch (const Error& error) {
    Thread::self().message = error.message;
    return error.code;
  }
}

FaultRule failing_task(void* stream, int direction, int nth, int code) {
  FaultRule rule;
  rule.kind = static_cast<uint64_t>(Fault::FailTask);
  rule.stream = reinterpret_cast<uintptr_t>(stream);
  rule.direction = direction;
  rule.nth = static_cast<uint64_t>(nth);
  rule.code = code;
  return rule;
}

}  // namespace

int emuFaults(const char* text) {
  Thread& self = Thread::self();
  try {
    Runtime::get().faults->arm(std::string(text == nullptr ? "" : text));
    return ACL_SUCCESS;
  } catch (const Error& error) {
    self.message = error.message;
    return error.code;
  }
}

void emuClearFaults() {
  Runtime::get().faults->disarm([](const FaultRule&) { return true; });
}

void emuSetTaskDelay(uint64_t us) {
  FaultRule rule;
  rule.kind = static_cast<uint64_t>(Fault::TaskDelay);
  rule.amount = us * 1000;
  set_or_clear(rule, us != 0);
}

int emuStreamDelay(void* stream, uint64_t us) {
  Thread& self = Thread::self();
  try {
    if (self.context == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
    auto body = [us](Stream& on) -> aclError {
      if (SimulatedTime::get() == nullptr) on.pass_time(std::chrono::microseconds(us));
      return ACL_SUCCESS;
    };
    auto facts = [us](TaskFacts& filled) {
      filled.kind = TaskKind::Delay;
      filled.value = us;
    };
    self.context->stream(stream)->submit(make_task("emuStreamDelay", body, facts));
    return ACL_SUCCESS;
  } catch (const Error& error) {
    self.message = error.message;
    return error.code;
  }
}

uint64_t emuDecisions(void* stream) {
  const auto asked = Runtime::get().streams.find(stream);
  return asked == nullptr || asked->interleaving() == nullptr ? 0 : asked->interleaving()->decisions();
}

int emuSetBandwidth(int direction, uint64_t bytes_per_s) {
  if (direction < EMU_H2D || direction > EMU_PEER) return ACL_ERROR_INVALID_PARAM;
  FaultRule rule;
  rule.kind = static_cast<uint64_t>(Fault::Bandwidth);
  rule.direction = direction;
  rule.amount = bytes_per_s;
  return set_or_clear(rule, bytes_per_s != 0);
}

int emuFailNext(const char* function, int nth, int code) {
  const Entry entry = entry_named(function);
  if (entry == Entry::kCount || nth < 0) return ACL_ERROR_INVALID_PARAM;
  FaultRule rule;
  rule.kind = static_cast<uint64_t>(Fault::FailCall);
  std::strncpy(rule.function, function, sizeof rule.function - 1);
  rule.nth = static_cast<uint64_t>(nth);
  rule.code = code;
  return set_or_clear(rule, nth != 0);
}

int emuFailTask(void* stream, int nth, int code) {
  if (nth < 0) return ACL_ERROR_INVALID_PARAM;
  return set_or_clear(failing_task(stream, -1, nth, code), nth != 0);
}

int emuFailCopy(int direction, int nth, int code) {
  if (nth < 0 || direction < EMU_H2D || direction > EMU_PEER) return ACL_ERROR_INVALID_PARAM;
  return set_or_clear(failing_task(nullptr, direction, nth, code), nth != 0);
}

int64_t emuCalls(const char* function) {
  const Entry entry = entry_named(function);
  return entry == Entry::kCount ? -1 : static_cast<int64_t>(Runtime::get().entry(entry).calls.load());
}

void emuStats(EmuStats* out) {
  Runtime& runtime = Runtime::get();
  *out = {};
  for (const auto& device : runtime.devices) out->device_bytes += device->in_use();
  out->live_allocations = runtime.memory.live_blocks();
  out->live_contexts = runtime.contexts.live();
  out->live_streams = runtime.streams.live();
  out->live_events = runtime.events.live();
  out->tasks_run = runtime.tasks_run.load();
  out->bytes_copied = runtime.bytes_copied.load();
  out->words_woken = runtime.words_woken.load();
}
