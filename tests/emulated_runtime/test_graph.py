"""Graph capture and replay: one test per rule."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, HostFunction, in_thread, joined

GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALIDATED = range(3)

DEPENDENCY = 107024
UNJOINED = 107025
STREAM_CAPTURED = 107027
EVENT_CAPTURED = 107028
NOT_CAPTURED = 107029
NOT_IN_THIS_MODE = 107030
DEFAULT_STREAM = 107031
WRONG_STREAM = 107036
RUNNING = 107037
WRONG_THREAD = 107038
WOULD_BLOCK = 107041
GRAPH_FAILED = 507011
SPOILED = 507903


def begin(acl: Acl, stream: int, mode: int = GLOBAL) -> None:
    acl.aclmdlRICaptureBegin(stream, mode)


def end(acl: Acl, stream: int) -> int:
    return acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)


def end_code(acl: Acl, stream: int) -> int:
    out = ctypes.c_void_p()
    return acl.code.aclmdlRICaptureEnd(stream, ctypes.byref(out))


def status(acl: Acl, stream: int) -> int:
    found, graph = ctypes.c_int32(), ctypes.c_void_p()
    acl.aclmdlRICaptureGetInfo(stream, ctypes.byref(found), ctypes.byref(graph))
    assert (graph.value is None) == (found.value == NONE)
    return found.value


def replay(acl: Acl, graph: int, stream: int) -> None:
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.synchronize(stream)


def test_captured_tasks_run_at_each_replay_and_not_before(acl: Acl) -> None:
    stream = acl.stream()
    a, b = acl.malloc(64), acl.malloc(64)
    ran: list[int] = []
    function = HostFunction(lambda n: ran.append(n or 0))

    begin(acl, stream)
    assert status(acl, stream) == ACTIVE
    acl.aclrtMemsetAsync(a, 64, 3, 64, stream)
    acl.copy(b, a, 64, stream)
    acl.aclrtLaunchHostFunc(stream, function, 5)
    graph = end(acl, stream)

    acl.synchronize(stream)
    assert status(acl, stream) == NONE
    assert (acl.read(b, 64), ran) == (bytes(64), [])
    replay(acl, graph, stream)
    assert (acl.read(b, 64), ran) == (b"\x03" * 64, [5])
    acl.aclrtMemset(b, 64, 0, 64)
    replay(acl, graph, stream)
    assert (acl.read(b, 64), ran) == (b"\x03" * 64, [5, 5])
    acl.aclmdlRIDestroy(graph)
    assert acl.code.aclmdlRIExecuteAsync(graph, stream) == c.BAD_HANDLE


def test_event_pulls_another_stream_into_the_capture(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    fork, join = acl.event(), acl.event()
    words = acl.malloc(64)

    begin(acl, stream)
    acl.aclrtRecordEvent(fork, stream)
    acl.aclrtStreamWaitEvent(side, fork)
    assert status(acl, side) == ACTIVE
    acl.aclrtValueWrite(words, 1, 0, side)
    acl.aclrtRecordEvent(join, side)
    acl.aclrtStreamWaitEvent(stream, join)
    acl.copy(words + 8, words, 8, stream)
    graph = end(acl, stream)

    assert status(acl, side) == NONE
    for _ in range(3):
        acl.aclrtMemset(words, 64, 0, 64)
        replay(acl, graph, stream)
        assert acl.read_word(words + 8) == 1
    acl.aclmdlRIDestroy(graph)


def test_each_captured_stream_has_a_thread_at_replay(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    fork, join = acl.event(), acl.event()
    word = acl.malloc(64)

    begin(acl, stream)
    acl.aclrtRecordEvent(fork, stream)
    acl.aclrtStreamWaitEvent(side, fork)
    acl.aclrtValueWait(word, 1, c.EQ, side)
    acl.aclrtRecordEvent(join, side)
    acl.aclrtValueWrite(word, 1, 0, stream)  # what the side stream waits for
    acl.aclrtStreamWaitEvent(stream, join)
    graph = end(acl, stream)

    replay(acl, graph, stream)
    acl.aclmdlRIDestroy(graph)


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


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("what", ["sync", "query", "device sync", "destroy"])
def test_waiting_for_or_asking_about_a_capturing_stream_is_107027_and_spoils_the_capture(
    acl: Acl, mode: int, what: str
) -> None:
    stream, out = acl.stream(), ctypes.c_int32()
    calls: dict[str, Callable[[], int]] = {
        "sync": lambda: acl.sync_code(stream),
        "query": lambda: acl.code.aclrtStreamQuery(stream, ctypes.byref(out)),
        "device sync": lambda: acl.code.aclrtSynchronizeDevice(),
        "destroy": lambda: acl.code.aclrtDestroyStream(stream),
    }
    begin(acl, stream, mode)

    assert calls[what]() == STREAM_CAPTURED

    assert status(acl, stream) == INVALIDATED
    assert end_code(acl, stream) == SPOILED
    assert status(acl, stream) == NONE
    acl.synchronize(stream)


def test_waiting_for_or_asking_about_a_captured_event_is_107028(acl: Acl) -> None:
    for call in ("aclrtSynchronizeEvent", "aclrtQueryEventStatus"):
        stream, event, out = acl.stream(), acl.event(), ctypes.c_int32()
        begin(acl, stream)
        acl.aclrtRecordEvent(event, stream)

        arguments = [event, ctypes.byref(out)] if "Query" in call else [event]
        assert getattr(acl.code, call)(*arguments) == EVENT_CAPTURED

        assert end_code(acl, stream) == SPOILED


@pytest.mark.parametrize(
    ("mode", "from_thread", "refused"),
    [
        (GLOBAL, False, True),
        (GLOBAL, True, True),
        (THREAD_LOCAL, False, True),
        (THREAD_LOCAL, True, False),
        (RELAXED, False, False),
        (RELAXED, True, False),
    ],
)
@pytest.mark.parametrize("what", ["memcpy", "memset", "2-D", "pageable"])
def test_unsafe_calls_are_refused_by_mode_and_thread(
    acl: Acl, mode: int, from_thread: bool, refused: bool, what: str
) -> None:
    stream, other = acl.stream(), acl.stream()
    a, b = acl.malloc(64), acl.malloc(64)
    host = ctypes.create_string_buffer(64)
    pageable = ctypes.addressof(host)
    context = acl.out("aclrtGetCurrentContext")
    calls: dict[str, Callable[[], int]] = {
        "memcpy": lambda: acl.code.aclrtMemcpy(a, 64, b, 64, c.DEVICE_TO_DEVICE),
        "memset": lambda: acl.code.aclrtMemset(a, 64, 0, 64),
        "2-D": lambda: acl.code.aclrtMemcpy2d(a, 8, b, 8, 8, 8, c.DEVICE_TO_DEVICE),
        "pageable": lambda: acl.code.aclrtMemcpyAsync(a, 64, pageable, 64, c.HOST_TO_DEVICE, other),
    }
    codes: list[int] = []

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        codes.append(calls[what]())

    begin(acl, stream, mode)
    if from_thread:
        joined(in_thread(body))
    else:
        body()

    expected = WOULD_BLOCK if what == "pageable" else NOT_IN_THIS_MODE
    assert codes == [expected if refused else 0]
    assert end_code(acl, stream) == (SPOILED if refused else 0)


def test_thread_lifts_the_ban_for_itself_by_exchanging_its_mode(acl: Acl) -> None:
    stream, address = acl.stream(), acl.malloc(64)
    mode = ctypes.c_int32(RELAXED)
    begin(acl, stream)

    acl.aclmdlRICaptureThreadExchangeMode(ctypes.byref(mode))
    assert mode.value == GLOBAL
    acl.aclrtMemset(address, 64, 0, 64)
    acl.aclmdlRICaptureThreadExchangeMode(ctypes.byref(mode))
    assert mode.value == RELAXED

    assert acl.code.aclrtMemset(address, 64, 0, 64) == NOT_IN_THIS_MODE
    assert end_code(acl, stream) == SPOILED


def test_pageable_copy_on_a_relaxed_capturing_stream_is_refused(acl: Acl) -> None:
    stream, address = acl.stream(), acl.malloc(64)
    host = ctypes.create_string_buffer(64)
    begin(acl, stream, RELAXED)

    code = acl.code.aclrtMemcpyAsync(address, 64, ctypes.addressof(host), 64, c.HOST_TO_DEVICE, stream)

    assert code == c.INVALID_PARAM
    end_code(acl, stream)


def test_allocating_and_creating_is_allowed_while_capturing(acl: Acl) -> None:
    stream = acl.stream()
    begin(acl, stream)

    acl.malloc(64, fill=None)
    acl.stream()
    acl.event()

    acl.aclmdlRIDestroy(end(acl, stream))


def test_default_stream_is_not_captured(acl: Acl) -> None:
    assert acl.code.aclmdlRICaptureBegin(None, GLOBAL) == DEFAULT_STREAM


def test_wait_for_an_event_recorded_outside_is_107024(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    acl.aclrtRecordEvent(event, acl.stream())
    begin(acl, stream)

    assert acl.code.aclrtStreamWaitEvent(stream, event) == DEPENDENCY

    assert end_code(acl, stream) == SPOILED


@pytest.mark.parametrize("work_after_join", [False, True])
def test_side_stream_must_be_joined(acl: Acl, work_after_join: bool) -> None:
    stream, side = acl.stream(), acl.stream()
    fork, join, word = acl.event(), acl.event(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtRecordEvent(fork, stream)
    acl.aclrtStreamWaitEvent(side, fork)
    if work_after_join:
        acl.aclrtRecordEvent(join, side)
        acl.aclrtStreamWaitEvent(stream, join)
        acl.aclrtValueWrite(word, 1, 0, side)

    assert end_code(acl, stream) == UNJOINED

    assert status(acl, side) == NONE
    acl.aclrtValueWrite(word, 2, 0, side)
    acl.synchronize(side)
    assert acl.read_word(word) == 2


def test_capture_ends_on_its_stream_and_thread(acl: Acl) -> None:
    stream, side, event = acl.stream(), acl.stream(), acl.event()
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []
    assert end_code(acl, stream) == NOT_CAPTURED
    begin(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(side, event)

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        codes.append(end_code(acl, stream))

    joined(in_thread(body))
    assert codes == [WRONG_THREAD]
    assert end_code(acl, side) == WRONG_STREAM
    assert acl.code.aclmdlRICaptureBegin(stream, GLOBAL) == STREAM_CAPTURED
    assert end_code(acl, stream) == UNJOINED


def test_relaxed_capture_may_end_on_another_thread(acl: Acl) -> None:
    stream = acl.stream()
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []
    begin(acl, stream, RELAXED)

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        codes.append(end_code(acl, stream))

    joined(in_thread(body))
    assert codes == [0]


def test_failing_task_in_a_graph_stops_what_follows(acl: Acl) -> None:
    stream = acl.stream(stop_on_failure=True)
    a, word = acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    acl.copy(a, a + 32, 32, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    graph = end(acl, stream)
    acl.emuFailTask(None, 1, c.LINK_ERROR)

    acl.aclmdlRIExecuteAsync(graph, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == GRAPH_FAILED
    assert f"aclrtMemcpyAsync) failed with {c.LINK_ERROR}" in acl.message()
    assert acl.read_word(word) == 0


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


def test_graph_is_printed_as_json(acl: Acl, tmp_path: Path) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWrite(word, 7, 0, stream)
    graph = end(acl, stream)

    acl.aclmdlRIDebugJsonPrint(graph, str(tmp_path / "graph.json").encode(), 0)

    (task,) = json.loads((tmp_path / "graph.json").read_text())
    assert task["name"] == f"MEM_WRITE_VALUE_{word}"
    assert task["args"]["Value"] == 7
