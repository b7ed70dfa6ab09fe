"""Replays: threads, order, failures, aborts, and what a graph holds."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, Gate, HostFunction, until_asleep, worker_of
from .graph_harness import (
    CONTEXT_OF_MODEL,
    GRAPH_ABORTED,
    GRAPH_FAILED,
    MODEL_CAPTURED,
    NO_EVENT,
    NO_STREAM,
    OF_A_GRAPH,
    RUNNING,
    begin,
    captured,
    elsewhere,
    end,
    end_code,
    events_left,
    fork,
    info,
    join,
    replay,
    streams_left,
)

LANES = 3
KEPT: list[object] = []


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def thread_recorder(acl: Acl) -> tuple[Callable[[int], None], list[int]]:
    """Queues compute, which runs on the stream's own thread, and collects which thread that was."""
    ids: list[int] = []
    function = HostFunction(lambda _: ids.append(threading.get_native_id()))
    KEPT.append(function)
    return lambda stream: acl.emuLaunchCompute(stream, b"who", function, None, None, None), ids


def lanes_that_meet(acl: Acl, stream: int) -> tuple[int, int]:
    """A graph whose lanes each wait for a task of the one after, so that all must run at the same time."""
    words = acl.malloc(64)
    sides = [acl.stream() for _ in range(LANES - 1)]
    begin(acl, stream)
    for side in sides:
        fork(acl, stream, side)
    lanes = [stream, *sides]
    for i, lane in enumerate(lanes[:-1]):
        acl.aclrtValueWait(words + 8 * (i + 1), 1, c.EQ, lane)
        acl.aclrtValueWrite(words + 8 * i, 1, 0, lane)
    acl.aclrtValueWrite(words + 8 * (LANES - 1), 1, 0, lanes[-1])
    for side in sides:
        join(acl, stream, side)
    return end(acl, stream), words


def test_all_lanes_run_at_the_same_time(acl: Acl) -> None:
    stream = acl.stream()
    graph, words = lanes_that_meet(acl, stream)

    for _ in range(3):
        acl.aclrtMemset(words, 64, 0, 64)
        replay(acl, graph, stream)
        assert [acl.read_word(words + 8 * i) for i in range(LANES)] == [1] * LANES


def test_threads_outlive_replays_and_graphs(acl: Acl) -> None:
    stream = acl.stream()
    first, _ = lanes_that_meet(acl, stream)
    replay(acl, first, stream)
    before = threads()

    for _ in range(100):
        replay(acl, first, stream)
    acl.aclmdlRIDestroy(first)
    for _ in range(5):
        another, _ = lanes_that_meet(acl, stream)
        replay(acl, another, stream)
        acl.aclmdlRIDestroy(another)

    assert threads() <= before  # one of a test before may have ended meanwhile


def test_lane_keeps_its_thread(acl: Acl) -> None:
    stream, sides = acl.stream(), [acl.stream() for _ in range(LANES)]
    recorders = [thread_recorder(acl) for _ in sides]
    begin(acl, stream)
    for side, (record, _) in zip(sides, recorders, strict=True):
        fork(acl, stream, side)
        record(side)
        join(acl, stream, side)
    graph = end(acl, stream)

    for _ in range(20):
        replay(acl, graph, stream)

    assert [len(set(ids)) for _, ids in recorders] == [1] * LANES


def test_first_lane_runs_on_the_thread_of_the_replaying_stream(acl: Acl) -> None:
    stream, (record, ids) = acl.stream(), thread_recorder(acl)
    graph = captured(acl, stream, lambda: record(stream))

    acl.aclmdlRIExecuteAsync(graph, stream)
    record(stream)
    acl.synchronize(stream)

    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_replay_is_a_task_of_its_stream(acl: Acl) -> None:
    stream, word, out = acl.stream(), acl.malloc(64), acl.malloc(64)
    graph = captured(acl, stream, lambda: acl.copy(out, word, 8, stream))

    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 5, 0, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.aclrtValueWrite(word, 6, 0, stream)
    gate.open()
    acl.synchronize(stream)

    assert (acl.read_word(word), acl.read_word(out)) == (6, 5)


def test_value_wait_in_a_graph_holds_the_replay(acl: Acl) -> None:
    stream = acl.stream()
    word, out = acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    acl.aclrtValueWrite(word, 0, 0, stream)
    acl.aclrtValueWrite(out, 7, 0, stream)
    graph = end(acl, stream)

    for _ in range(2):
        acl.aclmdlRIExecuteAsync(graph, stream)
        assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT
        assert acl.code.aclmdlRIDestroy(graph) == RUNNING
        acl.write_word(word, 1)
        acl.synchronize(stream)
        assert (acl.read_word(word), acl.read_word(out)) == (0, 7)
    acl.aclmdlRIDestroy(graph)


def test_replays_from_two_streams_take_turns(acl: Acl) -> None:
    first, second, entered = acl.stream(), acl.stream(), []
    go_on = threading.Semaphore(0)
    holds = HostFunction(lambda _: (entered.append(True), go_on.acquire(timeout=DEADLINE_S))[0])
    graph = captured(acl, first, lambda: acl.emuLaunchCompute(first, b"holds", holds, None, None, None))

    acl.aclmdlRIExecuteAsync(graph, first)
    acl.aclmdlRIExecuteAsync(graph, second)
    until_asleep(worker_of(acl, first), worker_of(acl, second))
    assert len(entered) == 1

    go_on.release(2)
    acl.synchronize(first)
    acl.synchronize(second)
    assert len(entered) == 2


def test_replay_that_waits_for_its_turn_can_be_aborted(acl: Acl) -> None:
    first, second, word = acl.stream(), acl.stream(), acl.malloc(64)
    graph = captured(acl, first, lambda: acl.aclrtValueWait(word, 1, c.EQ, first))
    acl.aclmdlRIExecuteAsync(graph, first)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(first, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclmdlRIExecuteAsync(graph, second)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(second, FEW_MS) == c.STREAM_TIMEOUT

    acl.aclrtStreamAbort(second)

    acl.synchronize(second)
    acl.write_word(word, 1)
    acl.synchronize(first)
    acl.aclmdlRIDestroy(graph)


def test_synchronous_execution_waits_and_times_out(acl: Acl) -> None:
    stream, word, out = acl.stream(), acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    acl.aclrtValueWrite(out, 1, 0, stream)
    graph = end(acl, stream)

    assert acl.code.aclmdlRIExecute(graph, FEW_MS) == c.STREAM_TIMEOUT
    assert acl.code.aclmdlRIDestroy(graph) == RUNNING
    assert acl.code.aclmdlRIExecute(graph, -2) == c.INVALID_PARAM
    acl.write_word(word, 1)
    acl.aclmdlRIExecute(graph, -1)

    assert acl.read_word(out) == 1
    acl.aclmdlRIDestroy(graph)


def test_synchronous_execution_starts_no_thread_after_the_first(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    graph = captured(acl, stream, lambda: acl.aclrtValueWrite(word, 1, 0, stream))
    acl.aclmdlRIExecute(graph, -1)
    before = threads()

    for _ in range(20):
        acl.aclmdlRIExecute(graph, -1)

    assert threads() <= before


# Failures.


@pytest.mark.parametrize("failing_lane", [0, 1])
@pytest.mark.parametrize("stop_on_failure", [False, True])
def test_failing_task_ends_all_lanes_and_the_replay_fails_with_507011(
    acl: Acl, failing_lane: int, stop_on_failure: bool
) -> None:
    stream, side = acl.stream(stop_on_failure), acl.stream()
    a, never, out = acl.malloc(64), acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    fork(acl, stream, side)
    lanes = [stream, side]
    acl.copy(a, a + 32, 32, lanes[failing_lane])
    acl.aclrtValueWrite(out, 1, 0, lanes[failing_lane])
    acl.aclrtValueWait(never, 1, c.EQ, lanes[1 - failing_lane])
    join(acl, stream, side)
    graph = end(acl, stream)
    acl.emuFailTask(None, 1, c.LINK_ERROR)

    gate = Gate(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.aclrtValueWrite(out + 8, 1, 0, stream)
    gate.open()

    assert acl.sync_code(stream) == GRAPH_FAILED
    assert f"(aclrtMemcpyAsync) failed with {c.LINK_ERROR}" in acl.message()
    words = acl.library.emuHostAlias(ctypes.c_void_p(out))  # a stopped context copies nothing any more
    carried_on = 0 if stop_on_failure else 1
    assert [ctypes.c_uint64.from_address(words + 8 * i).value for i in range(2)] == [0, carried_on]
    refusal = GRAPH_FAILED if stop_on_failure else 0
    assert acl.code.aclrtValueWrite(out, 1, 0, side) == refusal


def test_graph_runs_again_after_a_failed_replay(acl: Acl) -> None:
    stream, a, out = acl.stream(), acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    acl.copy(a, a + 32, 32, stream)
    acl.aclrtValueWrite(out, 1, 0, stream)
    graph = end(acl, stream)
    acl.emuFailTask(None, 1, c.LINK_ERROR)
    acl.aclmdlRIExecuteAsync(graph, stream)
    assert acl.sync_code(stream) == GRAPH_FAILED

    replay(acl, graph, stream)

    assert acl.read_word(out) == 1


def test_memory_of_a_graph_must_live_until_its_last_replay(acl: Acl) -> None:
    stream, a, b = acl.stream(), acl.malloc(64), acl.malloc(64)
    graph = captured(acl, stream, lambda: acl.copy(a, b, 64, stream))
    acl.aclrtFree(b)

    acl.aclmdlRIExecuteAsync(graph, stream)

    assert acl.sync_code(stream) == GRAPH_FAILED
    message = acl.message()
    assert f"failed with {c.COPY_ENGINE}" in message
    assert hex(b) in message


def test_abort_ends_a_replay(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    fork, join, word = acl.event(), acl.event(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtRecordEvent(fork, stream)
    acl.aclrtStreamWaitEvent(side, fork)
    acl.aclrtValueWait(word, 1, c.EQ, side)
    acl.aclrtRecordEvent(join, side)
    acl.aclrtStreamWaitEvent(stream, join)
    graph = end(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)

    acl.aclrtStreamAbort(stream)

    acl.synchronize(stream)
    acl.write_word(word, 1)
    replay(acl, graph, stream)
    acl.aclmdlRIDestroy(graph)


@pytest.mark.parametrize("stop_on_failure", [False, True])
def test_aborted_graph_ends_its_replay_alone(acl: Acl, stop_on_failure: bool) -> None:
    stream, side = acl.stream(stop_on_failure), acl.stream()
    word, out = acl.malloc(64), acl.malloc(64)
    begun = threading.Event()

    @HostFunction
    def tell(_: int) -> None:
        begun.set()

    begin(acl, stream)
    fork(acl, stream, side)
    acl.aclrtLaunchHostFunc(side, tell, None)
    acl.aclrtValueWait(word, 1, c.EQ, side)
    join(acl, stream, side)
    graph = end(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.aclrtValueWrite(out, 1, 0, stream)
    assert begun.wait(DEADLINE_S)  # an abort ends what has begun
    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT

    acl.aclmdlRIAbort(graph)

    assert acl.sync_code(stream) == GRAPH_ABORTED
    assert acl.read_word(out) == 1
    acl.write_word(word, 1)
    replay(acl, graph, stream)


def test_stopped_replay_sleeps_until_a_long_task_of_another_lane_ends(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    begun, may_end = threading.Event(), threading.Event()

    @HostFunction
    def long(_: int) -> None:
        begun.set()
        may_end.wait(DEADLINE_S)

    begin(acl, stream)
    fork(acl, stream, side)
    acl.aclrtLaunchHostFunc(side, long, None)
    join(acl, stream, side)
    graph = end(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)
    assert begun.wait(DEADLINE_S)

    acl.aclrtStreamStop(stream)

    # Processor time of the process: one that spins takes all of a window, unless others take the processor.
    shares = []
    for _ in range(10):
        used, passed = time.process_time(), time.monotonic()
        time.sleep(FEW_MS / 1000)
        shares.append((time.process_time() - used) / (time.monotonic() - passed))
    may_end.set()
    acl.aclrtStreamAbort(stream)
    assert min(shares) < 0.1
    replay(acl, graph, stream)


# Resources.


def test_graph_holds_a_stream_per_lane_and_an_event_per_edge_until_it_is_destroyed(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    streams, events = streams_left(acl), events_left(acl)
    begin(acl, stream)
    fork(acl, stream, side)
    join(acl, stream, side)
    acl.aclrtRecordEvent(acl.event(), stream)  # nobody waits for it: no event of the device

    graph = end(acl, stream)

    assert (streams - streams_left(acl), events - events_left(acl)) == (2, 2)
    acl.aclmdlRIDestroy(graph)
    assert (streams_left(acl), events_left(acl)) == (streams, events)


def test_capture_that_fails_gives_back_what_it_held(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    streams, events = streams_left(acl), events_left(acl)
    begin(acl, stream)
    fork(acl, stream, side)

    end_code(acl, stream)

    assert (streams_left(acl), events_left(acl)) == (streams, events)


def test_no_stream_is_left_for_a_capture(acl: Acl) -> None:
    stream, side, event = acl.stream(), acl.stream(), acl.event()
    graph = captured(acl, stream, lambda: None)
    rest = [acl.stream() for _ in range(streams_left(acl))]

    assert acl.code.aclmdlRICaptureBegin(stream, 0) == NO_STREAM
    acl.aclmdlRIDestroy(graph)
    begin(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    assert acl.code.aclrtStreamWaitEvent(side, event) == NO_STREAM
    assert info(acl, side) == (0, None)

    acl.aclmdlRIDestroy(end(acl, stream))
    for one in rest:
        acl.aclrtDestroyStreamForce(one)


def test_no_event_is_left_for_an_edge(acl: Acl) -> None:
    stream, side, event = acl.stream(), acl.stream(), acl.event()
    taken = [acl.hardware_event() for _ in range(events_left(acl))]
    begin(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtStreamWaitEvent(side, event) == NO_EVENT

    end_code(acl, stream)
    for one in taken:
        acl.aclrtDestroyEvent(one)


def test_graph_is_destroyed_neither_while_captured_nor_while_it_runs(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    _, graph = info(acl, stream)
    assert acl.code.aclmdlRIDestroy(graph) == MODEL_CAPTURED
    assert acl.code.aclmdlRIExecuteAsync(graph, acl.stream()) == MODEL_CAPTURED
    assert acl.code.aclmdlRIExecute(graph, 1) == MODEL_CAPTURED
    assert end(acl, stream) == graph

    acl.aclmdlRIExecuteAsync(graph, stream)
    assert acl.code.aclmdlRIDestroy(graph) == RUNNING
    acl.write_word(word, 1)
    acl.synchronize(stream)
    acl.aclmdlRIDestroy(graph)
    assert acl.code.aclmdlRIDestroy(graph) == c.BAD_HANDLE


def test_graph_runs_in_its_own_context_only(acl: Acl) -> None:
    mine = acl.out("aclrtGetCurrentContext")
    graph = captured(acl, acl.stream(), lambda: None)
    other = acl.context(0)

    assert acl.code.aclmdlRIExecuteAsync(graph, acl.stream()) == CONTEXT_OF_MODEL
    assert acl.code.aclmdlRIExecute(graph, -1) == CONTEXT_OF_MODEL

    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(mine)


def test_streams_of_a_graph_are_the_graphs(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    graph = captured(acl, stream, lambda: None)
    count = ctypes.c_uint32(1)
    own = (ctypes.c_void_p * 1)()
    acl.aclmdlRIGetStreams(graph, own, ctypes.byref(count))
    handle = own[0] or 0

    assert acl.code.aclrtValueWrite(word, 1, 0, handle) == OF_A_GRAPH
    assert acl.code.aclrtSynchronizeStream(handle) == OF_A_GRAPH
    assert acl.code.aclrtDestroyStream(handle) == OF_A_GRAPH
    assert acl.code.aclrtStreamAbort(handle) == OF_A_GRAPH


def test_callbacks_hear_of_the_end_of_a_graph(acl: Acl) -> None:
    stream, heard = acl.stream(), []
    kept, cancelled = HostFunction(lambda n: heard.append(n or 0)), HostFunction(lambda n: heard.append(-1))
    graph = captured(acl, stream, lambda: None)
    acl.aclmdlRIDestroyRegisterCallback(graph, kept, 1)
    acl.aclmdlRIDestroyRegisterCallback(graph, cancelled, 2)
    acl.aclmdlRIDestroyUnregisterCallback(graph, cancelled)
    assert acl.code.aclmdlRIDestroyUnregisterCallback(graph, cancelled) == c.INVALID_PARAM
    assert heard == []

    acl.aclmdlRIDestroy(graph)

    assert heard == [1]


def test_compute_of_a_graph_is_given_back_with_it(acl: Acl) -> None:
    stream, calls = acl.stream(), []
    run = HostFunction(lambda n: calls.append(("run", n)))
    release = HostFunction(lambda n: calls.append(("release", n)))
    acl.emuLaunchCompute(stream, b"once", run, None, 1, release)
    acl.synchronize(stream)
    assert calls == [("run", 1), ("release", 1)]
    calls.clear()
    graph = captured(acl, stream, lambda: acl.emuLaunchCompute(stream, b"often", run, None, 2, release))

    for _ in range(2):
        replay(acl, graph, stream)
    assert calls == [("run", 2), ("run", 2)]
    acl.aclmdlRIDestroy(graph)

    assert calls[2:] == [("release", 2)]


def test_refused_compute_is_given_back(acl: Acl) -> None:
    calls: list[int] = []
    run, release = HostFunction(lambda n: None), HostFunction(lambda n: calls.append(n or 0))

    code = elsewhere(acl, lambda: acl.code.emuLaunchCompute(12345, b"never", run, None, 3, release))

    assert (code, calls) == (c.BAD_HANDLE, [3])


def test_name_of_a_graph(acl: Acl, tmp_path: Path) -> None:
    graph = captured(acl, acl.stream(), lambda: None)
    name = ctypes.create_string_buffer(8)
    acl.aclmdlRISetName(graph, b"decode")

    acl.aclmdlRIGetName(graph, 8, name)

    assert name.value == b"decode"
    assert acl.code.aclmdlRIGetName(graph, 6, name) == c.INVALID_PARAM


def test_graph_ids_differ(acl: Acl) -> None:
    graphs = [captured(acl, acl.stream(), lambda: None) for _ in range(3)]

    assert len({acl.last_out("aclmdlRIGetId", graph, kind=ctypes.c_uint32) for graph in graphs}) == 3


def test_replay_ends_with_its_last_lane(acl: Acl) -> None:
    stream, side, word, out = acl.stream(), acl.stream(), acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    fork(acl, stream, side)
    acl.aclrtValueWait(word, 1, c.GEQ, side)
    join(acl, stream, side)
    fork(acl, stream, side)
    acl.aclrtValueWait(word, 2, c.GEQ, side)
    acl.aclrtValueWrite(out, 1, 0, side)
    join(acl, stream, side)
    graph = end(acl, stream)

    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.aclrtValueWrite(out + 8, 1, 0, stream)
    for value in (1, 2):
        assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT
        assert acl.read_word(out + 8) == 0
        acl.write_word(word, value)

    acl.synchronize(stream)
    assert (acl.read_word(out), acl.read_word(out + 8)) == (1, 1)


def test_each_replay_waits_for_its_own_records(acl: Acl) -> None:
    stream, side, words = acl.stream(), acl.stream(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWait(words, 1, c.EQ, stream)
    fork(acl, stream, side)
    acl.aclrtValueWrite(words + 8, 1, 0, side)
    join(acl, stream, side)
    graph = end(acl, stream)

    for _ in range(2):
        acl.aclrtMemset(words, 64, 0, 64)
        acl.aclmdlRIExecuteAsync(graph, stream)
        assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT
        assert acl.read_word(words + 8) == 0  # not by the record of the replay before
        acl.write_word(words, 1)
        acl.synchronize(stream)
        assert acl.read_word(words + 8) == 1
