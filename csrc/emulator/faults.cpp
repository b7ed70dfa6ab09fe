#include "emulator/faults.h"

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/event.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {

void Faults::fail_copy(aclrtStream stream, int direction, int nth, aclError code) {
  std::lock_guard lock(mutex_);
  stream_ = stream;
  direction_ = direction;
  until_ = nth;
  code_ = code;
  armed_.store(nth > 0);
}

aclError Faults::check(const Stream& stream, Direction direction, std::string& why) {
  std::lock_guard lock(mutex_);
  if (direction_ != -1 && direction_ != static_cast<int>(direction)) return ACL_SUCCESS;
  if (until_ == 0 || (stream_ != nullptr && stream_ != stream.handle)) return ACL_SUCCESS;
  if (--until_ > 0) return ACL_SUCCESS;
  armed_.store(false);
  why = "fault injected by a test";
  return code_;
}

}  // namespace emu

using namespace emu;

void emuSetTaskDelay(uint64_t us) { Runtime::get().task_delay_us.store(us); }

int emuStreamDelay(void* stream, uint64_t us) {
  Thread& self = Thread::self();
  try {
    if (self.context == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
    auto body = [us](Stream& on) -> aclError {
      on.pass_time(std::chrono::microseconds(us));
      return ACL_SUCCESS;
    };
    self.context->stream(stream)->submit(make_task("emuStreamDelay", body, of_kind(TaskKind::Delay)));
    return ACL_SUCCESS;
  } catch (const Error& error) {
    self.message = error.message;
    return error.code;
  }
}

int emuSetBandwidth(int direction, uint64_t bytes_per_s) {
  if (direction < EMU_H2D || direction > EMU_PEER) return ACL_ERROR_INVALID_PARAM;
  Runtime::get().bandwidth[direction].store(bytes_per_s);
  return ACL_SUCCESS;
}

int emuFailNext(const char* function, int nth, int code) {
  const Entry entry = entry_named(function);
  if (entry == Entry::kCount || nth < 0) return ACL_ERROR_INVALID_PARAM;
  EntryState& state = Runtime::get().entry(entry);
  state.fault_code.store(code);
  state.calls_until_fault.store(nth);
  return ACL_SUCCESS;
}

int emuFailTask(void* stream, int nth, int code) {
  if (nth < 0) return ACL_ERROR_INVALID_PARAM;
  Runtime::get().faults->fail_copy(stream, -1, nth, code);
  return ACL_SUCCESS;
}

int emuFailCopy(int direction, int nth, int code) {
  if (nth < 0 || direction < EMU_H2D || direction > EMU_PEER) return ACL_ERROR_INVALID_PARAM;
  Runtime::get().faults->fail_copy(nullptr, direction, nth, code);
  return ACL_SUCCESS;
}

int64_t emuCalls(const char* function) {
  const Entry entry = entry_named(function);
  return entry == Entry::kCount ? -1 : static_cast<int64_t>(Runtime::get().entry(entry).calls.load());
}

void emuStats(EmuStats* out) {
  Runtime& runtime = Runtime::get();
  *out = {};
  for (const auto& device : runtime.devices) out->device_bytes += device->used.load();
  out->live_allocations = runtime.memory.live_blocks();
  out->live_contexts = runtime.contexts.live();
  out->live_streams = runtime.streams.live();
  out->live_events = runtime.events.live();
  out->tasks_run = runtime.tasks_run.load();
  out->bytes_copied = runtime.bytes_copied.load();
  out->words_woken = runtime.words_woken.load();
}
