"""What may be called while a capture is open: the rules as tables, each cell a test with its code."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import Gate, HostFunction
from .graph_harness import (
    ACTIVE,
    CONFLICT,
    DEFAULT_STREAM,
    DEPENDENCY,
    EVENT_CAPTURED,
    GLOBAL,
    INVALIDATED,
    NONE,
    NOT_CAPTURED,
    NOT_IN_THIS_MODE,
    RELAXED,
    SPOILED,
    STREAM_CAPTURED,
    THREAD_LOCAL,
    UNJOINED,
    WOULD_BLOCK,
    WRONG_STREAM,
    WRONG_THREAD,
    begin,
    captured,
    elsewhere,
    end,
    end_code,
    exchange,
    fork,
    join,
    replay,
    status,
)

MODES = pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["GLOBAL", "LOCAL", "RELAXED"])
THREADS = pytest.mark.parametrize("other_thread", [False, True], ids=["same thread", "other thread"])
TIMING = c.EVENT_SYNC | c.EVENT_TIME_LINE
EVENT_EXTERNAL = 0x20

# Whoever waits for what is captured, or asks about it, hears one of these, in every mode and on every thread.


class Capture:
    """An open capture of two streams, and events of all kinds recorded in it."""

    def __init__(self, acl: Acl, mode: int) -> None:
        self.acl = acl
        self.stream, self.side = acl.stream(), acl.stream()
        self.event, self.hardware_event = acl.event(TIMING), acl.hardware_event()
        self.memory, self.host = acl.malloc(64), acl.malloc_host(64)
        begin(acl, self.stream, mode)
        fork(acl, self.stream, self.side)
        acl.aclrtRecordEvent(self.event, self.stream)
        acl.aclrtRecordEvent(self.hardware_event, self.side)


def asking(name: str, *arguments: str) -> Callable[[Capture], int]:
    def call(capture: Capture) -> int:
        values = [ctypes.byref(ctypes.c_uint64()) if a == "out" else getattr(capture, a) for a in arguments]
        return getattr(capture.acl.code, name)(*values)

    return call


def with_timeout(name: str, *arguments: str) -> Callable[[Capture], int]:
    return lambda capture: getattr(capture.acl.code, name)(*(getattr(capture, a) for a in arguments), 20_000)


WAITS: dict[str, tuple[Callable[[Capture], int], int]] = {
    "stream": (asking("aclrtSynchronizeStream", "stream"), STREAM_CAPTURED),
    "stream, timeout": (with_timeout("aclrtSynchronizeStreamWithTimeout", "stream"), STREAM_CAPTURED),
    "side stream": (asking("aclrtSynchronizeStream", "side"), STREAM_CAPTURED),
    "stream query": (asking("aclrtStreamQuery", "stream", "out"), STREAM_CAPTURED),
    "side stream query": (asking("aclrtStreamQuery", "side", "out"), STREAM_CAPTURED),
    "device": (asking("aclrtSynchronizeDevice"), STREAM_CAPTURED),
    "device, timeout": (with_timeout("aclrtSynchronizeDeviceWithTimeout"), STREAM_CAPTURED),
    "free with sync": (asking("aclrtFreeWithDevSync", "memory"), STREAM_CAPTURED),
    "stream destroy": (asking("aclrtDestroyStream", "side"), STREAM_CAPTURED),
    "stream destroy, force": (asking("aclrtDestroyStreamForce", "side"), STREAM_CAPTURED),
    "stream abort": (asking("aclrtStreamAbort", "stream"), STREAM_CAPTURED),
    "stream stop": (asking("aclrtStreamStop", "stream"), STREAM_CAPTURED),
    "event": (asking("aclrtSynchronizeEvent", "event"), EVENT_CAPTURED),
    "event, timeout": (with_timeout("aclrtSynchronizeEventWithTimeout", "event"), EVENT_CAPTURED),
    "event status": (asking("aclrtQueryEventStatus", "event", "out"), EVENT_CAPTURED),
    "event timestamp": (asking("aclrtEventGetTimestamp", "event", "out"), EVENT_CAPTURED),
    "hardware event": (asking("aclrtSynchronizeEvent", "hardware_event"), EVENT_CAPTURED),
    "hardware event query": (asking("aclrtQueryEvent", "hardware_event", "out"), EVENT_CAPTURED),
    "hardware event waits": (asking("aclrtQueryEventWaitStatus", "hardware_event", "out"), EVENT_CAPTURED),
}


@MODES
@THREADS
@pytest.mark.parametrize("what", WAITS)
def test_waiting_for_or_asking_about_what_is_captured_is_refused_in_every_mode(
    acl: Acl, what: str, mode: int, other_thread: bool
) -> None:
    capture = Capture(acl, mode)
    call, expected = WAITS[what]

    code = elsewhere(acl, lambda: call(capture)) if other_thread else call(capture)

    assert code == expected
    assert (status(acl, capture.stream), status(acl, capture.side)) == (INVALIDATED, INVALIDATED)
    assert acl.code.aclrtValueWrite(capture.memory, 1, 0, capture.stream) == SPOILED
    assert end_code(acl, capture.stream) == SPOILED
    assert (status(acl, capture.stream), status(acl, capture.side)) == (NONE, NONE)


@pytest.mark.parametrize("what", ["stream", "device", "event"])
def test_refused_wait_is_no_matter_of_the_threads_own_mode(acl: Acl, what: str) -> None:
    capture = Capture(acl, GLOBAL)
    call, expected = WAITS[what]
    exchange(acl, RELAXED)

    code = call(capture)

    exchange(acl, GLOBAL)
    assert code == expected
    end_code(acl, capture.stream)


def test_device_may_not_be_waited_for_in_any_of_its_contexts(acl: Acl) -> None:
    capturing = acl.out("aclrtGetCurrentContext")
    stream = acl.stream()
    begin(acl, stream, RELAXED)
    other = acl.context(0)

    code = acl.code.aclrtSynchronizeDevice()

    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(capturing)
    assert code == STREAM_CAPTURED
    assert end_code(acl, stream) == SPOILED


def test_other_devices_may_be_waited_for(acl: Acl) -> None:
    capturing = acl.out("aclrtGetCurrentContext")
    stream = acl.stream()
    begin(acl, stream)
    other = acl.context(1)

    acl.aclrtSynchronizeDevice()

    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(capturing)
    acl.aclmdlRIDestroy(end(acl, stream))


# Unsafe calls: refused by the mode of the capture, the thread, and the mode that the thread gave itself.

Unsafe = Callable[[Acl, int, int, int], int]


def host(size: int = 64) -> int:
    buffer = ctypes.create_string_buffer(size)
    KEPT.append(buffer)
    return ctypes.addressof(buffer)


KEPT: list[object] = []

UNSAFE: dict[str, tuple[Unsafe, int]] = {
    "memcpy": (lambda acl, a, b, s: acl.code.aclrtMemcpy(a, 64, b, 64, c.DEVICE_TO_DEVICE), NOT_IN_THIS_MODE),
    "memcpy to device": (
        lambda acl, a, b, s: acl.code.aclrtMemcpy(a, 64, host(), 64, c.HOST_TO_DEVICE),
        NOT_IN_THIS_MODE,
    ),
    "memset": (lambda acl, a, b, s: acl.code.aclrtMemset(a, 64, 0, 64), NOT_IN_THIS_MODE),
    "2-D": (
        lambda acl, a, b, s: acl.code.aclrtMemcpy2d(a, 8, b, 8, 8, 8, c.DEVICE_TO_DEVICE),
        NOT_IN_THIS_MODE,
    ),
    "async from pageable": (
        lambda acl, a, b, s: acl.code.aclrtMemcpyAsync(a, 64, host(), 64, c.HOST_TO_DEVICE, s),
        WOULD_BLOCK,
    ),
    "async to pageable": (
        lambda acl, a, b, s: acl.code.aclrtMemcpyAsync(host(), 64, a, 64, c.DEVICE_TO_HOST, s),
        WOULD_BLOCK,
    ),
    "async 2-D from pageable": (
        lambda acl, a, b, s: acl.code.aclrtMemcpy2dAsync(a, 8, host(), 8, 8, 8, c.HOST_TO_DEVICE, s),
        WOULD_BLOCK,
    ),
    "async with condition": (
        lambda acl, a, b, s: acl.code.aclrtMemcpyAsyncWithCondition(a, 64, host(), 64, c.HOST_TO_DEVICE, s),
        WOULD_BLOCK,
    ),
}


def is_refused(mode: int, other_thread: bool, own_mode: int) -> bool:
    if mode == RELAXED or own_mode == RELAXED:
        return False
    return mode == GLOBAL or not other_thread


@MODES
@THREADS
@pytest.mark.parametrize("own_mode", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["G", "L", "R"])
@pytest.mark.parametrize("what", UNSAFE)
def test_unsafe_call_is_refused_by_mode_thread_and_exchanged_mode(
    acl: Acl, what: str, mode: int, other_thread: bool, own_mode: int
) -> None:
    stream, uncaptured = acl.stream(), acl.stream()
    a, b = acl.malloc(64), acl.malloc(64)
    call, refusal = UNSAFE[what]

    def body() -> int:
        before = exchange(acl, own_mode)
        code = call(acl, a, b, uncaptured)
        assert exchange(acl, before) == own_mode
        return code

    begin(acl, stream, mode)
    code = elsewhere(acl, body) if other_thread else body()

    refused = is_refused(mode, other_thread, own_mode)
    assert code == (refusal if refused else 0)
    assert status(acl, stream) == (INVALIDATED if refused else ACTIVE)
    assert end_code(acl, stream) == (SPOILED if refused else 0)


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
def test_unsafe_call_spoils_all_captures_that_forbid_it(acl: Acl, mode: int) -> None:
    forbidding, permitting, too = acl.stream(), acl.stream(), acl.stream()
    address = acl.malloc(64)
    begin(acl, forbidding, mode)
    begin(acl, permitting, RELAXED)
    begin(acl, too, GLOBAL)

    assert acl.code.aclrtMemset(address, 64, 0, 64) == NOT_IN_THIS_MODE

    assert end_code(acl, too) == SPOILED
    assert end_code(acl, permitting) == 0
    assert end_code(acl, forbidding) == SPOILED


@pytest.mark.parametrize("own_mode", [GLOBAL, RELAXED])
@pytest.mark.parametrize("mode", [GLOBAL, RELAXED])
def test_pageable_copy_on_the_captured_stream_itself_never_works(acl: Acl, mode: int, own_mode: int) -> None:
    stream, address = acl.stream(), acl.malloc(64)
    begin(acl, stream, mode)
    exchange(acl, own_mode)

    code = acl.code.aclrtMemcpyAsync(address, 64, host(), 64, c.HOST_TO_DEVICE, stream)

    exchange(acl, GLOBAL)
    assert code == (WOULD_BLOCK if (mode, own_mode) == (GLOBAL, GLOBAL) else c.INVALID_PARAM)
    end_code(acl, stream)


def test_exchange_refuses_modes_that_do_not_exist(acl: Acl) -> None:
    for mode in (-1, 3):
        out = ctypes.c_int32(mode)
        assert acl.code.aclmdlRICaptureThreadExchangeMode(ctypes.byref(out)) == c.INVALID_PARAM
        assert acl.code.aclmdlRICaptureBegin(acl.stream(), mode) == c.INVALID_PARAM


# What stays allowed.


def wait_for_other_stream(acl: Acl, stream: int) -> None:
    other, event = acl.stream(), acl.event()
    acl.aclrtRecordEvent(event, other)
    acl.synchronize(other)
    acl.aclrtSynchronizeEvent(event)
    assert acl.is_idle(other)


def copy_on_other_stream(acl: Acl, stream: int) -> None:
    other = acl.stream()
    acl.copy(acl.malloc(64, fill=None), acl.malloc_host(64), 64, other, c.HOST_TO_DEVICE)
    acl.synchronize(other)


def export_memory(acl: Acl, stream: int) -> None:
    address = acl.malloc(2**21, fill=None)
    acl.export(address, 2**21)


ALLOWED: dict[str, Callable[[Acl, int], object]] = {
    "malloc": lambda acl, stream: acl.aclrtFree(acl.malloc(64, fill=None)),
    "malloc host": lambda acl, stream: acl.aclrtFreeHost(acl.malloc_host(64)),
    "stream creation": lambda acl, stream: acl.aclrtDestroyStream(acl.stream()),
    "event creation": lambda acl, stream: acl.aclrtDestroyEvent(acl.event()),
    "export": export_memory,
    "waits for what is not captured": wait_for_other_stream,
    "copies on another stream": copy_on_other_stream,
    "capture info": lambda acl, stream: status(acl, stream),
    "wait for an event that was never recorded": lambda acl, stream: acl.aclrtStreamWaitEvent(
        stream, acl.event()
    ),
}


@MODES
@pytest.mark.parametrize("what", ALLOWED)
def test_allowed_while_a_capture_is_open(acl: Acl, what: str, mode: int) -> None:
    stream = acl.stream()
    begin(acl, stream, mode)

    ALLOWED[what](acl, stream)

    assert status(acl, stream) == ACTIVE
    acl.aclmdlRIDestroy(end(acl, stream))


# Streams and events that take part.


def test_default_stream_is_neither_captured_nor_pulled_in(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    assert acl.code.aclmdlRICaptureBegin(None, GLOBAL) == DEFAULT_STREAM
    begin(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtStreamWaitEvent(None, event) == DEFAULT_STREAM

    assert end_code(acl, stream) == SPOILED


def test_stream_of_another_device_cannot_join_a_capture(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    begin(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    mine = acl.out("aclrtGetCurrentContext")
    theirs = acl.context(1)

    code = acl.code.aclrtStreamWaitEvent(acl.stream(), event)

    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)
    assert code == DEPENDENCY
    assert end_code(acl, stream) == SPOILED


@MODES
@pytest.mark.parametrize("hardware", [False, True], ids=["Ex", "hardware"])
def test_wait_for_an_event_recorded_outside_is_107024(acl: Acl, mode: int, hardware: bool) -> None:
    stream, other = acl.stream(), acl.stream()
    event = acl.hardware_event() if hardware else acl.event()
    acl.aclrtRecordEvent(event, other)
    begin(acl, stream, mode)

    assert acl.code.aclrtStreamWaitEvent(stream, event) == DEPENDENCY

    assert end_code(acl, stream) == SPOILED


def test_reset_of_an_event_recorded_outside_is_107024(acl: Acl) -> None:
    stream, event = acl.stream(), acl.hardware_event()
    begin(acl, stream)

    assert acl.code.aclrtResetEvent(event, stream) == DEPENDENCY

    assert end_code(acl, stream) == SPOILED


def test_hardware_event_is_recorded_waited_for_and_reset_inside(acl: Acl) -> None:
    stream, side, event = acl.stream(), acl.stream(), acl.hardware_event()
    back, words = acl.hardware_event(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWrite(words, 3, 0, stream)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(side, event)
    acl.aclrtResetEvent(event, side)
    acl.copy(words + 8, words, 8, side)
    acl.aclrtRecordEvent(back, side)
    acl.aclrtStreamWaitEvent(stream, back)
    graph = end(acl, stream)

    for _ in range(2):
        acl.aclrtMemset(words, 64, 0, 64)
        replay(acl, graph, stream)
        assert acl.read_word(words + 8) == 3


def test_external_event_gates_a_replay_from_outside(acl: Acl) -> None:
    stream, other = acl.stream(), acl.stream()
    event, word = acl.out("aclrtCreateEventWithFlag", EVENT_EXTERNAL), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtStreamWaitEvent(stream, event)
    acl.aclrtResetEvent(event, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    graph = end(acl, stream)

    for _ in range(2):
        acl.aclrtMemset(word, 64, 0, 64)
        acl.aclmdlRIExecuteAsync(graph, stream)
        assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 20) == c.STREAM_TIMEOUT
        assert acl.read_word(word) == 0
        acl.aclrtRecordEvent(event, other)
        acl.synchronize(stream)
        assert acl.read_word(word) == 1


def test_stream_of_another_capture_is_a_conflict_that_spoils_both(acl: Acl) -> None:
    first, second, event = acl.stream(), acl.stream(), acl.event()
    begin(acl, first)
    begin(acl, second)
    acl.aclrtRecordEvent(event, first)

    assert acl.code.aclrtStreamWaitEvent(second, event) == CONFLICT

    assert end_code(acl, first) == SPOILED
    assert end_code(acl, second) == SPOILED


def test_stream_in_a_capture_begins_no_other(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    begin(acl, stream)
    fork(acl, stream, side)

    assert acl.code.aclmdlRICaptureBegin(stream, GLOBAL) == STREAM_CAPTURED
    assert acl.code.aclmdlRICaptureBegin(side, GLOBAL) == STREAM_CAPTURED
    assert acl.code.aclmdlRIExecuteAsync(1, side) == STREAM_CAPTURED

    join(acl, stream, side)
    acl.aclmdlRIDestroy(end(acl, stream))


def test_event_of_a_finished_capture_is_free_again(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    graph = captured(acl, stream, lambda: acl.aclrtRecordEvent(event, stream))

    acl.aclrtSynchronizeEvent(event)  # as if it was never recorded: a record in a graph is the graph's
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtSynchronizeEvent(event)

    acl.aclmdlRIDestroy(graph)


def test_event_may_be_destroyed_before_the_graph_runs(acl: Acl) -> None:
    stream, side, word = acl.stream(), acl.stream(), acl.malloc(64)
    events = [acl.event(), acl.event()]
    begin(acl, stream)
    acl.aclrtRecordEvent(events[0], stream)
    acl.aclrtStreamWaitEvent(side, events[0])
    acl.aclrtValueWrite(word, 1, 0, side)
    acl.aclrtRecordEvent(events[1], side)
    acl.aclrtStreamWaitEvent(stream, events[1])
    graph = end(acl, stream)
    for event in events:
        acl.aclrtDestroyEvent(event)

    replay(acl, graph, stream)

    assert acl.read_word(word) == 1


# How a capture ends.


@MODES
def test_capture_ends_on_the_thread_that_began_it_unless_relaxed(acl: Acl, mode: int) -> None:
    stream = acl.stream()
    begin(acl, stream, mode)

    code = elsewhere(acl, lambda: end_code(acl, stream))

    assert code == (0 if mode == RELAXED else WRONG_THREAD)
    assert end_code(acl, stream) == (NOT_CAPTURED if mode == RELAXED else 0)


def test_capture_ends_on_the_stream_that_began_it(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    begin(acl, stream)
    fork(acl, stream, side)
    join(acl, stream, side)

    assert end_code(acl, side) == WRONG_STREAM
    assert end_code(acl, acl.stream()) == NOT_CAPTURED

    assert end_code(acl, stream) == 0


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


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_stream_joined_through_another_is_joined(acl: Acl, order: tuple[int, ...]) -> None:
    """Each side stream is joined to the next one, in whatever order they came in."""
    stream, sides = acl.stream(), [acl.stream() for _ in range(3)]
    begin(acl, stream)
    for i in order:
        fork(acl, stream, sides[i])
    join(acl, sides[1], sides[0])
    join(acl, sides[2], sides[1])
    join(acl, stream, sides[2])

    acl.aclmdlRIDestroy(end(acl, stream))


def test_stream_joined_to_a_stream_that_is_not_joined_is_unjoined(acl: Acl) -> None:
    stream, side, third = acl.stream(), acl.stream(), acl.stream()
    begin(acl, stream)
    fork(acl, stream, side)
    join(acl, stream, side)
    fork(acl, side, third)
    join(acl, side, third)

    assert end_code(acl, stream) == UNJOINED


def test_captures_end_with_their_context(acl: Acl) -> None:
    kept = acl.out("aclrtGetCurrentContext")
    address = acl.malloc(64)
    lost = acl.context(0)
    begin(acl, acl.stream())

    acl.aclrtDestroyContext(lost)

    acl.aclrtSetCurrentContext(kept)
    acl.aclrtMemset(address, 64, 0, 64)  # no GLOBAL capture is open any more


# What is captured, each kind by its effect at a replay.


def test_copies_fills_values_and_host_functions_are_captured(acl: Acl) -> None:
    stream = acl.stream()
    a, b, pinned, words = acl.malloc(64), acl.malloc(64), acl.malloc_host(64), acl.malloc(64)
    ran: list[int] = []
    function = HostFunction(lambda n: ran.append(n or 0))
    begin(acl, stream)
    acl.aclrtMemsetAsync(a, 64, 7, 64, stream)
    acl.copy(b, a, 64, stream)
    acl.copy(pinned, b, 64, stream, c.DEVICE_TO_HOST)
    acl.copy(words, pinned, 8, stream, c.HOST_TO_DEVICE)
    acl.aclrtMemcpy2dAsync(words + 8, 8, a, 8, 8, 2, c.DEVICE_TO_DEVICE, stream)
    acl.aclrtValueWait(words, 0x0707070707070707, c.EQ, stream)
    acl.aclrtValueWrite(words, 5, 0, stream)
    acl.aclrtLaunchHostFunc(stream, function, 9)
    graph = end(acl, stream)
    assert (acl.read(b, 64), ran, acl.is_idle(stream)) == (bytes(64), [], True)

    replay(acl, graph, stream)

    assert ctypes.string_at(pinned, 64) == b"\x07" * 64
    assert [acl.read_word(words + 8 * i) for i in range(4)] == [5, 0x0707070707070707, 0x0707070707070707, 0]
    assert ran == [9]


def test_callbacks_of_a_graph_go_to_the_subscriber_of_the_captured_stream(acl: Acl) -> None:
    stream, ran = acl.stream(), []
    function = HostFunction(lambda n: ran.append(n or 0))
    acl.library.pthread_self.restype = ctypes.c_uint64
    me = acl.library.pthread_self()
    acl.aclrtSubscribeReport(me, stream)
    graph = captured(acl, stream, lambda: acl.aclrtLaunchCallback(function, 4, 1, stream))

    for _ in range(2):
        acl.aclmdlRIExecuteAsync(graph, stream)
        acl.aclrtProcessReport(20_000)
        acl.synchronize(stream)

    assert ran == [4, 4]
    acl.aclrtUnSubscribeReport(me, stream)


def test_notify_is_recorded_and_waited_for_in_a_graph(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    notify = acl.out("aclrtCreateNotify", 0)
    begin(acl, stream)
    acl.aclrtRecordNotify(notify, stream)
    acl.aclrtWaitAndResetNotify(notify, stream, 0)
    acl.aclrtValueWrite(word, 1, 0, stream)
    graph = end(acl, stream)

    replay(acl, graph, stream)

    assert acl.read_word(word) == 1
    acl.aclmdlRIDestroy(graph)
    acl.aclrtDestroyNotify(notify)


def test_pinned_source_is_read_at_the_replay(acl: Acl) -> None:
    stream, pinned, address = acl.stream(), acl.malloc_host(64), acl.malloc(64)
    ctypes.memset(pinned, 1, 64)
    graph = captured(acl, stream, lambda: acl.copy(address, pinned, 64, stream, c.HOST_TO_DEVICE))
    ctypes.memset(pinned, 2, 64)

    replay(acl, graph, stream)

    assert acl.read(address, 64) == b"\x02" * 64


def test_capture_begins_on_a_stream_with_work_and_does_not_wait_for_it(acl: Acl) -> None:
    stream = acl.stream()
    gate = Gate(acl, stream)

    graph = captured(acl, stream, lambda: None)

    gate.open()
    acl.synchronize(stream)
    acl.aclmdlRIDestroy(graph)


def test_join_counts_only_what_came_before_it(acl: Acl) -> None:
    """What a side stream waits for after it was joined is not joined with it."""
    stream, side, third = acl.stream(), acl.stream(), acl.stream()
    joins, late, word = acl.event(), acl.event(), acl.malloc(64)
    begin(acl, stream)
    fork(acl, stream, third)
    fork(acl, stream, side)
    acl.aclrtValueWrite(word, 1, 0, third)
    acl.aclrtRecordEvent(joins, side)
    acl.aclrtRecordEvent(late, third)
    acl.aclrtStreamWaitEvent(stream, joins)
    acl.aclrtStreamWaitEvent(side, late)

    assert end_code(acl, stream) == UNJOINED
    message = acl.message()  # about the third stream, of which nothing is joined
    assert "3 captured tasks" in message
    assert "first 0 only" in message
