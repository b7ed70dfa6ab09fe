"""Streams: asynchronous, in order, bounded, and what a failing task stops."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, Gate, HostFunction, in_thread, joined, peer, until_asleep

# --- streams ---


def test_submit_returns_before_the_work_runs(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)

    acl.aclrtValueWrite(word, 5, 0, stream)

    assert not acl.is_idle(stream)
    assert acl.read_word(word) == 0
    gate.open()
    acl.synchronize(stream)
    assert acl.read_word(word) == 5
    assert acl.is_idle(stream)


def test_stream_runs_in_order(acl: Acl) -> None:
    stream = acl.stream()
    count = 500
    ran: list[int] = []
    note = HostFunction(lambda n: ran.append(n or 0))

    for i in range(count):
        acl.aclrtLaunchHostFunc(stream, note, i)
    acl.synchronize(stream)

    assert ran == list(range(count))


def test_streams_run_side_by_side(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    words = acl.malloc(64)

    acl.aclrtValueWait(words, 1, c.EQ, one)
    acl.aclrtValueWrite(words + 8, 1, 0, one)
    acl.aclrtValueWrite(words, 1, 0, two)
    acl.aclrtValueWait(words + 8, 1, c.EQ, two)

    acl.synchronize(one)
    acl.synchronize(two)


def test_null_stream_is_the_default_stream_of_the_current_context(acl: Acl) -> None:
    word = acl.malloc(64)
    gate = Gate(acl, None)
    acl.aclrtValueWrite(word, 3, 0, None)

    assert not acl.is_idle(acl.out("aclrtCtxGetCurrentDefaultStream"))
    gate.open()
    acl.synchronize(None)
    assert acl.read_word(word) == 3


def test_sync_with_timeout_is_507046_and_cancels_nothing(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 1) == c.STREAM_TIMEOUT

    gate.open()
    acl.synchronize(stream)
    assert acl.read_word(word) == 1


def test_synchronize_device_waits_for_all_streams_of_the_context(acl: Acl) -> None:
    streams = [acl.stream() for _ in range(3)]
    gates = [Gate(acl, stream) for stream in streams]

    gates[0].open()
    gates[1].open()
    assert acl.code.aclrtSynchronizeDeviceWithTimeout(FEW_MS) == c.STREAM_TIMEOUT

    gates[2].open()
    acl.aclrtSynchronizeDeviceWithTimeout(DEADLINE_S * 1000)
    assert all(acl.is_idle(stream) for stream in streams)


def test_worker_threads_start_with_the_first_task(acl: Acl) -> None:
    def workers() -> set[str]:
        return {comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")} & names

    streams = [acl.stream() for _ in range(200)]
    names = {f"npu-stream-{acl.last_out('aclrtStreamGetId', stream)}" for stream in streams}
    unused = workers()
    word = acl.malloc(64)
    acl.aclrtValueWrite(word, 1, 0, streams[0])
    acl.synchronize(streams[0])

    assert unused == set()
    assert len(workers()) == 1


def test_submitter_blocks_when_2048_tasks_are_queued(acl: Acl) -> None:
    stream = acl.stream()
    gate = Gate(acl, stream)  # the running task counts
    word = acl.malloc(64)
    context = acl.out("aclrtGetCurrentContext")
    submitted: list[int] = []
    full = threading.Event()

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        for i in range(2047):
            acl.aclrtValueWrite(word, i, 0, stream)
            submitted.append(i)
        full.set()
        acl.aclrtValueWrite(word, 9999, 0, stream)
        submitted.append(9999)

    thread = in_thread(body)
    assert full.wait(DEADLINE_S)
    thread.join(FEW_MS / 1000)
    assert len(submitted) == 2047
    assert thread.is_alive()

    gate.open()
    joined(thread)
    acl.synchronize(stream)
    assert acl.read_word(word) == 9999


def test_stop_lets_a_submitter_go_that_waits_for_room_with_107023(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    Gate(acl, stream)
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []
    full = threading.Event()

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        for _ in range(2047):
            acl.aclrtValueWrite(word, 1, 0, stream)
        full.set()
        for _ in range(3):
            codes.append(acl.code.aclrtValueWrite(word, 2, 0, stream))

    thread = in_thread(body)
    assert full.wait(DEADLINE_S)
    thread.join(FEW_MS / 1000)
    acl.aclrtStreamStop(stream)
    joined(thread)

    # The gate's wait was ended, which made room for one.
    assert sorted(codes) in ([0, c.STREAM_ABORT, c.STREAM_ABORT], [c.STREAM_ABORT] * 3)
    acl.aclrtStreamAbort(stream)
    acl.aclrtValueWrite(word, 3, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 3


def test_abort_ends_what_runs_and_what_waits_and_syncs_get_107023(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        Path("/proc/thread-self/comm").write_text("waiter")
        codes.append(acl.sync_code(stream))

    thread = in_thread(body)
    until_asleep("waiter")
    acl.aclrtStreamAbort(stream)
    joined(thread)

    assert codes == [c.STREAM_ABORT]
    assert acl.read_word(word) == 0
    acl.aclrtValueWrite(word, 2, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 2


def test_stop_keeps_what_is_queued_from_running(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtStreamStop(stream)
    gate.open()

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_ABORT
    assert acl.read_word(word) == 0
    assert acl.code.aclrtStreamStop(None) == c.INVALID_PARAM


def test_stop_wakes_a_stream_that_waits_for_a_word(acl: Acl) -> None:
    stats = (ctypes.c_uint64 * 32)()

    def tasks_ended() -> int:
        acl.library.emuStats(stats)
        return stats[5]

    stream = acl.stream()
    Gate(acl, stream)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT  # it waits
    before = tasks_ended()

    acl.aclrtStreamStop(stream)

    deadline = time.monotonic() + DEADLINE_S
    while tasks_ended() == before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert tasks_ended() == before + 1


def test_destroy_stream_waits_for_queued_work(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    acl.emuStreamDelay(stream, 20_000)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtDestroyStream(stream)

    assert acl.read_word(word) == 1


def test_destroy_stream_force_ends_a_running_value_wait_and_drops_the_rest(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtDestroyStreamForce(stream)
    gate.open()
    acl.aclrtSynchronizeDevice()

    assert acl.read_word(word) == 0
    assert acl.sync_code(stream) == c.BAD_HANDLE


def test_freed_or_made_up_stream_is_107017(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    acl.aclrtDestroyStream(stream)

    assert acl.sync_code(stream) == c.BAD_HANDLE
    assert acl.sync_code(event) == c.BAD_HANDLE
    assert acl.sync_code(0xDEADBEEF) == c.BAD_HANDLE
    assert acl.code.aclrtDestroyStream(stream) == c.BAD_HANDLE


def test_device_has_1984_streams(library: Acl) -> None:
    context = library.context(6)
    free = library.out("aclrtGetStreamAvailableNum", kind=ctypes.c_uint32)
    streams = [library.stream() for _ in range(free)]
    out = ctypes.c_void_p()

    assert free == 1984 - 1  # the context's default stream is one
    assert library.code.aclrtCreateStream(ctypes.byref(out)) == 207008
    library.aclrtDestroyStream(streams.pop())
    library.stream()
    library.aclrtDestroyContext(context)


def test_waiting_streams_and_idle_streams_sleep(acl: Acl) -> None:
    streams = [acl.stream() for _ in range(20)]
    names = {f"(npu-stream-{acl.last_out('aclrtStreamGetId', stream)})" for stream in streams}
    gates = [Gate(acl, stream) for stream in streams]

    def share_running() -> float:
        states = []
        while len(states) < 50 * len(streams):
            for stat in Path("/proc/self/task").glob("*/stat"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    _, name, state, *_ = stat.read_text().split()
                    states += [state] if name in names else []
        return states.count("R") / len(states)

    def fall_asleep() -> None:
        deadline = time.monotonic() + DEADLINE_S  # on a busy machine a thread has to run before it can sleep
        while share_running() >= 0.25:
            assert time.monotonic() < deadline

    fall_asleep()
    for gate in gates:
        gate.open()
    acl.aclrtSynchronizeDevice()
    fall_asleep()


# --- failing tasks ---


def fail_a_copy(acl: Acl, stream: int, code: int = c.LINK_ERROR) -> None:
    acl.emuFailTask(stream, 1, code)
    a = acl.malloc(64)
    acl.copy(a, a + 32, 32, stream)


def test_failing_task_with_mode_1_stops_every_stream_of_its_context(acl: Acl) -> None:
    failing, other = acl.stream(stop_on_failure=True), acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, other)
    acl.aclrtValueWrite(word, 1, 0, other)

    fail_a_copy(acl, failing)
    acl.code.aclrtValueWrite(word, 2, 0, failing)

    status = ctypes.c_int32()
    out = ctypes.c_void_p()
    assert acl.sync_code(failing) == c.LINK_ERROR
    assert "fault injected" in acl.message()
    assert acl.sync_code(other) == c.LINK_ERROR
    assert acl.code.aclrtStreamQuery(other, ctypes.byref(status)) == c.LINK_ERROR
    assert acl.sync_code(None) == c.LINK_ERROR
    assert acl.code.aclrtValueWrite(word, 3, 0, other) == c.LINK_ERROR
    assert acl.code.aclrtCreateStream(ctypes.byref(out)) == c.LINK_ERROR
    gate.open()
    acl.aclrtDestroyStream(failing)
    acl.aclrtDestroyStream(other)
    assert acl.read_word(word) == 0


def test_failing_task_leaves_other_contexts_alone(acl: Acl) -> None:
    first = acl.out("aclrtGetCurrentContext")
    word = acl.malloc(64)
    second = acl.context(0)
    failing = acl.stream(stop_on_failure=True)

    fail_a_copy(acl, failing)
    assert acl.sync_code(failing) == c.LINK_ERROR

    acl.aclrtDestroyContext(second)
    acl.aclrtSetCurrentContext(first)
    stream = acl.stream(stop_on_failure=True)
    acl.aclrtValueWrite(word, 7, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 7


def test_failing_task_with_mode_0_is_told_once_and_the_stream_goes_on(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)

    fail_a_copy(acl, stream, c.COPY_ENGINE)
    acl.aclrtValueWrite(word, 4, 0, stream)

    assert acl.sync_code(stream) == c.COPY_ENGINE
    acl.synchronize(stream)
    assert acl.read_word(word) == 4


def test_query_tells_a_failure(acl: Acl) -> None:
    stream = acl.stream()
    fail_a_copy(acl, stream, c.COPY_ENGINE)
    event = acl.event(c.EVENT_PROGRESS)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtSynchronizeEvent(event)
    status = ctypes.c_int32()

    assert acl.code.aclrtStreamQuery(stream, ctypes.byref(status)) == c.COPY_ENGINE
    assert acl.code.aclrtStreamQuery(stream, ctypes.byref(status)) == c.COPY_ENGINE


def test_failure_mode_is_set_once(acl: Acl) -> None:
    stream = acl.stream(stop_on_failure=True)

    assert acl.code.aclrtSetStreamFailureMode(stream, 0) == c.INVALID_PARAM
    assert acl.code.aclrtSetStreamFailureMode(acl.stream(), 2) == c.INVALID_PARAM


def test_host_that_waits_for_an_event_of_a_stopped_stream_gets_the_code(acl: Acl) -> None:
    stream, event = acl.stream(stop_on_failure=True), acl.event()
    gate = Gate(acl, stream)
    fail_a_copy(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    gate.open()

    assert acl.code.aclrtSynchronizeEventWithTimeout(event, DEADLINE_S * 1000) == c.LINK_ERROR


def fill_queue(acl: Acl, stream: int) -> Gate:
    """As many tasks as fit; the next one blocks."""
    gate = Gate(acl, stream)
    for _ in range(2047):
        acl.aclrtValueWrite(gate.word + 8, 1, 0, stream)
    return gate


@pytest.mark.parametrize(
    ("released_by", "code"), [("stop of the context", c.LINK_ERROR), ("abort", 0), ("destroy", c.BAD_HANDLE)]
)
def test_submitter_that_blocks_is_released(acl: Acl, released_by: str, code: int) -> None:
    stream, failing = acl.stream(), acl.stream(stop_on_failure=True)
    gate, begun = fill_queue(acl, stream), threading.Event()
    context, codes = acl.out("aclrtGetCurrentContext"), []

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        begun.set()
        codes.append(acl.code.aclrtValueWrite(gate.word + 8, 2, 0, stream))

    blocked = in_thread(body)
    assert begun.wait(DEADLINE_S)
    blocked.join(FEW_MS / 1000)
    assert codes == []
    if released_by == "abort":
        acl.aclrtStreamAbort(stream)
    elif released_by == "destroy":
        acl.aclrtDestroyStreamForce(stream)
    else:
        fail_a_copy(acl, failing)
    joined(blocked)

    assert codes == [code]


def test_full_queue_of_one_stream_blocks_no_other(acl: Acl) -> None:
    full, other = acl.stream(), acl.stream()
    gate = fill_queue(acl, full)

    acl.aclrtValueWrite(gate.word + 16, 7, 0, other)
    acl.synchronize(other)

    assert acl.read_word(gate.word + 16) == 7
    gate.open()


def test_who_waits_for_an_event_of_an_aborted_stream_waits_on(acl: Acl) -> None:
    recording, waiting, event = acl.stream(), acl.stream(), acl.event()
    Gate(acl, recording)
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtStreamWaitEvent(waiting, event)

    acl.aclrtStreamAbort(recording)

    acl.synchronize(recording)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclrtStreamAbort(waiting)
    acl.synchronize(waiting)


def test_abort_of_a_device_ends_the_work_of_all_its_streams_with_107022() -> None:
    program = """
    from tests.emulated_runtime.acl_harness import until_asleep
    contexts = [acl.context(0), acl.context(0), acl.context(1)]
    def held(context):
        acl.aclrtSetCurrentContext(context)
        stream, word = acl.stream(), acl.malloc(64)
        acl.aclrtValueWait(word, 1, c.EQ, stream)
        return stream, word
    held_up = [held(context) for context in contexts]
    codes = {}
    def wait(i):
        acl.aclrtSetCurrentContext(contexts[i])
        open("/proc/thread-self/comm", "w").write(f"waiter{i}")
        codes[i] = acl.sync_code(held_up[i][0])
    threads = [threading.Thread(target=wait, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    until_asleep("waiter0", "waiter1")
    acl.aclrtDeviceTaskAbort(0, 1000)
    for thread in threads:
        thread.join()
    acl.aclrtSetCurrentContext(contexts[2])
    other = acl.code.aclrtSynchronizeStreamWithTimeout(held_up[2][0], 10)
    acl.aclrtSetCurrentContext(contexts[0])
    acl.aclrtValueWrite(held_up[0][1], 5, 0, held_up[0][0])
    say(codes[0], codes[1], other, acl.sync_code(held_up[0][0]), acl.code.aclrtDeviceTaskAbort(99, 0))
    """
    with peer(program) as other:
        assert other.hear() == f"107022 107022 {c.STREAM_TIMEOUT} 0 107001"


def test_timeouts_below_minus_one_are_refused(acl: Acl) -> None:
    assert acl.code.aclrtSynchronizeStreamWithTimeout(acl.stream(), -2) == c.INVALID_PARAM
    assert acl.code.aclrtSynchronizeDeviceWithTimeout(-2) == c.INVALID_PARAM
    acl.aclrtSynchronizeStreamWithTimeout(acl.stream(), -1)
