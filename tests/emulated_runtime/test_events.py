"""Both families of events and their traps."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, Gate, in_thread, joined, until_asleep, worker_of


def status_of(acl: Acl, event: int) -> int:
    return acl.last_out("aclrtQueryEventStatus", event)


def test_ex_event_wait_binds_to_the_latest_record_at_the_call(acl: Acl) -> None:
    first, second, waiting = acl.stream(), acl.stream(), acl.stream()
    event = acl.event()
    gate = Gate(acl, second)

    acl.aclrtRecordEvent(event, first)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.aclrtRecordEvent(event, second)  # held by the gate; the wait above is not about it

    acl.synchronize(waiting)
    assert not acl.is_idle(second)
    acl.aclrtStreamWaitEvent(waiting, event)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    gate.open()
    acl.synchronize(waiting)


def test_ex_event_wait_before_any_record_is_a_no_op(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()

    acl.aclrtStreamWaitEvent(stream, event)

    acl.synchronize(stream)
    assert status_of(acl, event) == 1
    acl.aclrtSynchronizeEvent(event)


def test_hardware_event_wait_before_record_waits(acl: Acl) -> None:
    recording, waiting = acl.stream(), acl.stream()
    event = acl.hardware_event()

    acl.aclrtStreamWaitEvent(waiting, event)
    assert status_of(acl, event) == 0
    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT

    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(waiting)
    assert status_of(acl, event) == 1


def test_hardware_event_stays_set_until_it_is_reset(acl: Acl) -> None:
    recording, waiting = acl.stream(), acl.stream()
    event = acl.hardware_event()
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.synchronize(waiting)

    acl.aclrtResetEvent(event, recording)
    acl.synchronize(recording)
    acl.aclrtStreamWaitEvent(waiting, event)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(waiting)


def test_status_enums_have_opposite_polarity(acl: Acl) -> None:
    stream, waiting, event = acl.stream(), acl.stream(), acl.hardware_event()
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(waiting, event)

    assert acl.last_out("aclrtQueryEventStatus", event) == 0
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 1
    assert acl.last_out("aclrtQueryEvent", event) == 1
    gate.open()
    acl.synchronize(waiting)
    assert acl.last_out("aclrtQueryEventStatus", event) == 1
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 0
    assert acl.last_out("aclrtQueryEvent", event) == 0


def test_ex_events_are_not_reset_nor_asked_in_the_old_ways(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    out = ctypes.c_int32()

    assert acl.code.aclrtResetEvent(event, stream) == c.UNSUPPORTED
    assert acl.code.aclrtQueryEvent(event, ctypes.byref(out)) == c.UNSUPPORTED
    assert acl.code.aclrtQueryEventWaitStatus(event, ctypes.byref(out)) == c.UNSUPPORTED


def test_event_without_sync_flag_cannot_be_waited_on(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event(c.EVENT_PROGRESS)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtStreamWaitEvent(stream, event) == c.INVALID_PARAM


def test_event_flags_are_checked(acl: Acl) -> None:
    out = ctypes.c_void_p()

    for flags in (0, 0x80, 0x40 | 0x1):
        assert acl.code.aclrtCreateEventExWithFlag(ctypes.byref(out), flags) == c.INVALID_PARAM
    assert acl.code.aclrtCreateEventWithFlag(ctypes.byref(out), 0x20 | 0x1) == c.INVALID_PARAM


def test_event_may_be_destroyed_right_after_a_wait_was_queued(acl: Acl) -> None:
    recording, waiting, event = acl.stream(), acl.stream(), acl.event()
    gate = Gate(acl, recording)
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtStreamWaitEvent(waiting, event)

    acl.aclrtDestroyEvent(event)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    gate.open()
    acl.synchronize(waiting)
    assert acl.code.aclrtDestroyEvent(event) == c.BAD_HANDLE


@pytest.mark.parametrize("kind", ["ex", "hardware"])
def test_event_is_recorded_on_its_own_device_only_and_ex_events_are_awaited_on_any(
    acl: Acl, kind: str
) -> None:
    event = acl.event() if kind == "ex" else acl.hardware_event()
    first = acl.stream()
    gate = Gate(acl, first)
    acl.aclrtRecordEvent(event, first)
    mine = acl.out("aclrtGetCurrentContext")
    theirs = acl.context(1)
    stream = acl.stream()

    codes = [acl.code.aclrtRecordEvent(event, stream), acl.code.aclrtStreamWaitEvent(stream, event)]
    waits = not acl.is_idle(stream)
    acl.aclrtSetCurrentContext(mine)
    gate.open()
    acl.aclrtSetCurrentContext(theirs)
    acl.synchronize(stream)
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)

    assert codes == [c.INVALID_PARAM, 0 if kind == "ex" else c.INVALID_PARAM]
    assert waits == (kind == "ex")


def test_event_sync_with_timeout_is_507047(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtSynchronizeEventWithTimeout(event, 1) == c.EVENT_TIMEOUT
    gate.open()
    acl.aclrtSynchronizeEventWithTimeout(event, DEADLINE_S * 1000)


def test_elapsed_time_is_the_time_between_the_records(acl: Acl) -> None:
    stream = acl.stream()
    start, end = acl.event(c.EVENT_TIME_LINE), acl.event(c.EVENT_TIME_LINE)
    ms = ctypes.c_float()
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), start, end) == 107006

    acl.aclrtRecordEvent(start, stream)
    acl.emuStreamDelay(stream, 20_000)
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)

    assert 20 <= ms.value < 2000
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), end, start) == 107007
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), acl.event(), end) == c.INVALID_PARAM


def test_event_wait_with_timeout_is_a_task_error(acl: Acl) -> None:
    stream, event = acl.stream(), acl.hardware_event()

    acl.aclrtStreamWaitEventWithTimeout(stream, event, 1)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == c.WAIT_TIMEOUT


def test_op_wait_timeout_is_for_events_and_not_for_words(acl: Acl) -> None:
    waiting, patient, told = acl.stream(), acl.stream(), acl.stream()
    gate = Gate(acl, patient)
    acl.aclrtSetOpWaitTimeout(1)
    try:
        acl.aclrtStreamWaitEventWithTimeout(told, acl.hardware_event(), 0)  # 0 is never, whatever the default
        acl.aclrtStreamWaitEvent(waiting, acl.hardware_event())

        assert acl.sync_code(waiting) == c.WAIT_TIMEOUT
        assert acl.code.aclrtSynchronizeStreamWithTimeout(told, FEW_MS) == c.STREAM_TIMEOUT
        assert acl.code.aclrtSynchronizeStreamWithTimeout(patient, FEW_MS) == c.STREAM_TIMEOUT
    finally:
        acl.aclrtSetOpWaitTimeout(0)
    gate.open()
    acl.synchronize(patient)


def test_op_wait_timeout_of_0_is_never(acl: Acl) -> None:
    recording, waiting, event = acl.stream(), acl.stream(), acl.hardware_event()
    acl.aclrtSetOpWaitTimeout(0)
    acl.aclrtStreamWaitEvent(waiting, event)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(waiting)


@pytest.mark.parametrize("round_number", range(5))
def test_record_releases_all_who_wait_by_then_also_when_a_reset_follows_at_once(
    acl: Acl, round_number: int
) -> None:
    recording, one, two = acl.stream(), acl.stream(), acl.stream()
    event, word = acl.hardware_event(), acl.malloc(64)
    acl.aclrtStreamWaitEvent(one, event)
    acl.aclrtStreamWaitEvent(two, event)
    acl.aclrtResetEvent(event, one)  # as its waiter does that is done first
    until_asleep(worker_of(acl, one), worker_of(acl, two))

    gate = Gate(acl, recording)  # so that the reset is there when the record runs
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtResetEvent(event, recording)
    gate.open()
    acl.synchronize(one)
    acl.synchronize(two)

    acl.aclrtStreamWaitEvent(two, event)  # too late for that record
    acl.aclrtValueWrite(word, 1, 0, two)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(two, 5) == c.STREAM_TIMEOUT
    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(two)


def test_host_that_waits_is_released_by_a_record_that_is_reset_at_once(acl: Acl) -> None:
    stream, event, codes = acl.stream(), acl.hardware_event(), []
    context = acl.out("aclrtGetCurrentContext")

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        Path("/proc/thread-self/comm").write_text("waiter")
        codes.append(acl.code.aclrtSynchronizeEventWithTimeout(event, 20_000))

    waiting = in_thread(body)
    until_asleep("waiter")
    gate = Gate(acl, stream)  # so that the reset is there when the record runs
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtResetEvent(event, stream)
    gate.open()
    acl.synchronize(stream)
    joined(waiting)

    assert codes == [0]
    assert status_of(acl, event) == 0


@pytest.mark.parametrize(
    ("create", "flags", "code"),
    [
        *(("aclrtCreateEventWithFlag", flags, 0) for flags in (0x1, 0x2, 0x8, 0xB, 0x10, 0x20)),
        ("aclrtCreateEventWithFlag", 0x40, c.INVALID_PARAM),  # IPC is for Ex events
        ("aclrtCreateEventWithFlag", 0x21, c.INVALID_PARAM),  # EXTERNAL stands alone
        *(("aclrtCreateEventExWithFlag", flags, 0) for flags in (0x1, 0x2, 0x8, 0xB, 0x40)),
        ("aclrtCreateEventExWithFlag", 0x10, c.INVALID_PARAM),  # for device code: hardware events only
        ("aclrtCreateEventExWithFlag", 0x20, c.INVALID_PARAM),
        ("aclrtCreateEventExWithFlag", 0x41, c.INVALID_PARAM),  # IPC stands alone
    ],
)
def test_each_family_has_its_flags(acl: Acl, create: str, flags: int, code: int) -> None:
    assert getattr(acl.code, create)(ctypes.byref(ctypes.c_void_p()), flags) == code


def test_event_for_progress_is_recorded_and_asked(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event(c.EVENT_PROGRESS)
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    assert status_of(acl, event) == 0

    gate.open()
    acl.aclrtSynchronizeEvent(event)

    assert status_of(acl, event) == 1


def test_timestamp_is_in_microseconds_of_events_with_a_time_line(acl: Acl) -> None:
    def stamp(event: int) -> int:
        return acl.last_out("aclrtEventGetTimestamp", event, kind=ctypes.c_uint64)

    stream, start, end = acl.stream(), acl.event(c.EVENT_TIME_LINE), acl.event(c.EVENT_TIME_LINE)
    out = ctypes.c_uint64()
    assert acl.code.aclrtEventGetTimestamp(start, ctypes.byref(out)) == 107006  # not recorded
    acl.aclrtRecordEvent(start, stream)
    acl.emuStreamDelay(stream, 10_000)
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)

    assert 10_000 <= stamp(end) - stamp(start) < 10_000_000
    assert acl.code.aclrtEventGetTimestamp(acl.event(), ctypes.byref(out)) == c.INVALID_PARAM


def test_ex_event_recorded_anew_is_not_complete_until_the_new_record(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    for _ in range(2):
        gate = Gate(acl, stream)
        acl.aclrtRecordEvent(event, stream)
        assert status_of(acl, event) == 0
        gate.open()
        acl.synchronize(stream)
        assert status_of(acl, event) == 1


def test_wait_status_is_about_the_waits_and_not_about_the_record(acl: Acl) -> None:
    stream, event = acl.stream(), acl.hardware_event()

    assert status_of(acl, event) == 0  # never recorded
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 0  # and nobody waits
    acl.aclrtStreamWaitEvent(stream, event)
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 1
    acl.aclrtStreamAbort(stream)
