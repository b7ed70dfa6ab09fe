#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/event.h"
#include "emulator/ipc_event.h"
#include "emulator/lazy.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/simulated_time.h"
#include "emulator/stream.h"

namespace emu {
namespace {

Context& current() { return *Thread::self().context; }

constexpr uint32_t kOldFlags = Event::kAllFlags | ACL_EVENT_DEVICE_USE_ONLY | ACL_EVENT_EXTERNAL;
constexpr uint32_t kExFlags = Event::kAllFlags | ACL_EVENT_IPC;

void check_ipc() {
  const Profile& profile = Runtime::get().config.profile;
  if (profile.has_ipc_sync()) return;
  fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s has no IPC events", profile.soc_name());
}

aclError create(aclrtEvent* out, bool ex, uint32_t flags, uint32_t allowed) {
  not_null(out, "event");
  if (flags == 0 || (flags & ~allowed) != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x is not a combination of 0x%x", flags, allowed);
  }
  if ((flags & (ACL_EVENT_EXTERNAL | ACL_EVENT_IPC)) != 0 && (flags & (flags - 1)) != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%x: EXTERNAL and IPC stand alone", flags);
  }
  std::shared_ptr<IpcEvent> ipc;
  if ((flags & ACL_EVENT_IPC) != 0) {
    check_ipc();
    ipc = Runtime::get().ipc_events->make();
  }
  auto event = std::make_shared<Event>(current().device, ex, flags, std::move(ipc));
  event->handle = Runtime::get().events.add(event);
  *out = event->handle;
  return ACL_SUCCESS;
}

std::shared_ptr<Event> event_of(aclrtEvent handle) { return Runtime::get().events.get(handle); }

void check_same_device(const Event& event, const Stream& stream) {
  const int32_t on = stream.context().device.id;
  if (event.device.id == on) return;
  fail(ACL_ERROR_RT_PARAM_INVALID, "the event is of device %d, stream %d of device %d", event.device.id,
       stream.id, on);
}

void check_flag(const Event& event, uint32_t flag, const char* name) {
  if ((event.flags & flag) != 0) return;
  fail(ACL_ERROR_RT_PARAM_INVALID, "the event was made with flags 0x%x, without %s", event.flags, name);
}

aclError wait_event(aclrtStream stream_handle, aclrtEvent handle, uint32_t timeout_s) {
  auto stream = current().stream(stream_handle);
  auto event = event_of(handle);
  // Ex events cross devices: torch_npu's own copies between devices wait for each other that way.
  if (!event->ex) check_same_device(*event, *stream);
  check_flag(*event, ACL_EVENT_SYNC | ACL_EVENT_EXTERNAL | ACL_EVENT_IPC, "ACL_EVENT_SYNC");
  event->make_wait(*stream, timeout_s);
  return ACL_SUCCESS;
}

void check_in_time(bool in_time, int32_t timeout_ms) {
  if (!in_time) fail(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, "the event was not reached in %d ms", timeout_ms);
}

aclError synchronize(aclrtEvent handle, int32_t timeout_ms) {
  auto event = event_of(handle);
  if (event->ipc != nullptr) {
    check_in_time(event->ipc->wait_on_host(deadline_in_ms(timeout_ms)), timeout_ms);
    return ACL_SUCCESS;
  }
  event->refuse_while_captured();
  auto record = event->latest();
  if (record == nullptr) return ACL_SUCCESS;
  check_in_time(record->wait_on_host(deadline_in_ms(timeout_ms)), timeout_ms);
  if (record->state.load() == Record::kLost) {
    fail(record->lost_code.load(), "the stream that recorded the event was stopped before it got there");
  }
  return ACL_SUCCESS;
}

bool is_recorded(const Event& event) {
  if (event.ipc != nullptr) return event.ipc->is_done();
  event.refuse_while_captured();
  auto record = event.latest();
  if (record == nullptr) return true;
  record->need();
  if (record->state.load() == Record::kLost) {
    fail(record->lost_code.load(), "the stream that recorded the event was stopped before it got there");
  }
  if (record->state.load() != Record::kDone) return false;
  if (auto* watching = observer()) watching->host_saw(*record);
  return true;
}

// In nanoseconds.
uint64_t timestamp_of(const Event& event) {
  event.refuse_while_captured();
  check_flag(event, ACL_EVENT_TIME_LINE, "ACL_EVENT_TIME_LINE");
  auto record = event.latest();
  if (record == nullptr || record->state.load() != Record::kDone) {
    fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "the event was not recorded yet");
  }
  return SimulatedTime::get() != nullptr ? record->simulated_ns.load() : record->time_us.load() * 1000;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtCreateEvent(aclrtEvent* event) {
  return ENTER(aclrtCreateEvent, { return create(event, false, Event::kAllFlags, kOldFlags); });
}

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flag) {
  return ENTER(aclrtCreateEventWithFlag, { return create(event, false, flag, kOldFlags); });
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flag) {
  return ENTER(aclrtCreateEventExWithFlag, { return create(event, true, flag, kExFlags); });
}

aclError aclrtDestroyEvent(aclrtEvent event) {
  return ENTER(aclrtDestroyEvent, {
    if (const auto shared = event_of(event)->ipc; shared != nullptr) shared->close();
    Runtime::get().events.remove(event);
    return ACL_SUCCESS;
  });
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  return ENTER(aclrtRecordEvent, {
    auto on = current().stream(stream);
    auto recorded = event_of(event);
    check_same_device(*recorded, *on);
    recorded->record(*on);
    return ACL_SUCCESS;
  });
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  return ENTER(aclrtResetEvent, {
    auto on = current().stream(stream);
    auto cleared = event_of(event);
    if (cleared->ex) {
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
           "events of aclrtCreateEventExWithFlag are recorded again, not reset");
    }
    check_same_device(*cleared, *on);
    cleared->reset(*on);
    return ACL_SUCCESS;
  });
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  return ENTER(aclrtStreamWaitEvent,
               { return wait_event(stream, event, Runtime::get().wait_timeout_s.load()); });
}

aclError aclrtStreamWaitEventWithTimeout(aclrtStream stream, aclrtEvent event, int32_t timeout) {
  return ENTER(aclrtStreamWaitEventWithTimeout, {
    if (timeout < 0) fail(ACL_ERROR_RT_PARAM_INVALID, "timeout %d is negative", timeout);
    return wait_event(stream, event, static_cast<uint32_t>(timeout));
  });
}

aclError aclrtQueryEvent(aclrtEvent event, aclrtEventStatus* status) {
  return ENTER(aclrtQueryEvent, {
    not_null(status, "status");
    auto asked = event_of(event);
    if (asked->ex) fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "not for events of aclrtCreateEventExWithFlag");
    *status = is_recorded(*asked) ? ACL_EVENT_STATUS_COMPLETE : ACL_EVENT_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return ENTER(aclrtQueryEventStatus, {
    not_null(status, "status");
    *status = is_recorded(*event_of(event)) ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                            : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus* status) {
  return ENTER(aclrtQueryEventWaitStatus, {
    not_null(status, "status");
    auto asked = event_of(event);
    if (asked->ex) fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "not for events of aclrtCreateEventExWithFlag");
    asked->refuse_while_captured();
    if (lazy::is_on()) lazy::need_everything();  // the waits may be anywhere
    *status = asked->waits_are_done() ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return ENTER(aclrtSynchronizeEvent, { return synchronize(event, -1); });
}

aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t timeout) {
  return ENTER(aclrtSynchronizeEventWithTimeout, { return synchronize(event, timeout); });
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  return ENTER(aclrtEventElapsedTime, {
    not_null(ms, "ms");
    const uint64_t start = timestamp_of(*event_of(startEvent));
    const uint64_t end = timestamp_of(*event_of(endEvent));
    if (end < start)
      fail(ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL, "the end event was reached before the start event");
    *ms = static_cast<float>(static_cast<double>(end - start) / 1e6);
    return ACL_SUCCESS;
  });
}

aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* timestamp) {
  return ENTER(aclrtEventGetTimestamp, {
    *not_null(timestamp, "timestamp") = timestamp_of(*event_of(event)) / 1000;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetEventId(aclrtEvent event, uint32_t* eventId) {
  return ENTER(aclrtGetEventId, {
    auto asked = event_of(event);
    if (asked->ex) fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "an Ex event has no hardware id");
    *not_null(eventId, "eventId") = asked->id;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetEventAvailNum(uint32_t* eventCount) {
  return ENTER(aclrtGetEventAvailNum, {
    *not_null(eventCount, "eventCount") =
        static_cast<uint32_t>(Device::kMaxEvents - current().device.events.load());
    return ACL_SUCCESS;
  });
}

aclError aclrtIpcGetEventHandle(aclrtEvent event, aclrtIpcEventHandle* handle) {
  return ENTER(aclrtIpcGetEventHandle, {
    not_null(handle, "handle");
    auto shared = event_of(event);
    if (shared->ipc == nullptr) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "the event was made with flags 0x%x, without ACL_EVENT_IPC",
           shared->flags);
    }
    export_ipc_event(*shared->ipc, *handle);
    return ACL_SUCCESS;
  });
}

aclError aclrtIpcOpenEventHandle(aclrtIpcEventHandle handle, aclrtEvent* event) {
  return ENTER(aclrtIpcOpenEventHandle, {
    not_null(event, "event");
    check_ipc();
    auto opened = std::make_shared<Event>(current().device, true, ACL_EVENT_IPC, open_ipc_event(handle));
    opened->handle = Runtime::get().events.add(opened);
    *event = opened->handle;
    return ACL_SUCCESS;
  });
}
