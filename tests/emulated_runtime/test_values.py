"""Value writes, value waits and host functions."""

from __future__ import annotations

import ctypes
import threading

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, MIB, Gate, HostFunction, joined, until_asleep, worker_of

# --- value write and value wait ---


@pytest.mark.parametrize(
    ("mode", "value", "holds", "holds_not"),
    [
        (c.GEQ, 5, 5, 4),
        (c.GEQ, 5, 6, 0),
        (c.GEQ, 0, 1, -1),  # signed: -1 is less than 0
        (c.GEQ, 2**64 - 2, 3, 2**64 - 3),  # wraps around
        (c.GEQ, 7, 7 + 2**62, 7 - 2**62),
        (c.EQ, 5, 5, 6),
        (c.EQ, 2**40, 2**40, 0),  # only the high half differs
        (c.AND, 0b110, 0b010, 0b001),
        (c.NOR, 0, 0, 2**64 - 1),
        (c.NOR, 2**64 - 2, 4, 1),  # bit 0 alone is asked about
    ],
)
def test_value_wait_modes(acl: Acl, mode: int, value: int, holds: int, holds_not: int) -> None:
    stream, writing = acl.stream(), acl.stream()
    word = acl.malloc(64)
    acl.write_word(word, holds_not)

    acl.aclrtValueWait(word, value, mode, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 10) == c.STREAM_TIMEOUT
    acl.aclrtValueWrite(word, holds, 0, writing)
    acl.synchronize(stream)


@pytest.mark.parametrize("writer", ["value write", "copy", "memset", "host copy"])
def test_value_wait_sees_every_kind_of_write(acl: Acl, writer: str) -> None:
    stream, writing = acl.stream(), acl.stream()
    word, other = acl.malloc(64), acl.malloc(64, fill=1)
    acl.aclrtValueWait(word, 0x0101010101010101, c.EQ, stream)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 5) == c.STREAM_TIMEOUT

    if writer == "value write":
        acl.aclrtValueWrite(word, 0x0101010101010101, 0, writing)
    elif writer == "copy":
        acl.copy(word, other, 64, writing)
    elif writer == "memset":
        acl.aclrtMemsetAsync(word, 64, 1, 64, writing)
    else:
        acl.write(word, b"\x01" * 8)

    acl.synchronize(stream)


def test_value_operations_check_their_arguments(acl: Acl) -> None:
    stream = acl.stream()
    word, pinned = acl.malloc(64), acl.malloc_host(64)
    ordinary = ctypes.create_string_buffer(64)

    for address in (None, word + 4, pinned, ctypes.addressof(ordinary) // 8 * 8, word + 64 * MIB):
        assert acl.code.aclrtValueWrite(address, 1, 0, stream) == c.INVALID_PARAM
        assert acl.code.aclrtValueWait(address, 1, 0, stream) == c.INVALID_PARAM
    assert acl.code.aclrtValueWrite(word, 1, 1, stream) == c.INVALID_PARAM
    assert acl.code.aclrtValueWait(word, 1, 4, stream) == c.INVALID_PARAM


def test_memory_freed_under_a_value_wait_is_a_task_error(acl: Acl) -> None:
    stream = acl.stream()
    gate = Gate(acl, stream)
    until_asleep(worker_of(acl, stream))

    acl.aclrtFree(gate.word)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == c.COPY_ENGINE
    assert "was freed while the stream waited for it" in acl.message()


# --- host functions ---


def test_host_function_runs_in_stream_order_on_another_thread(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    seen: list[object] = []
    function = HostFunction(lambda arg: seen.extend([arg, threading.get_native_id()]))
    gate = Gate(acl, stream)

    acl.aclrtLaunchHostFunc(stream, function, 77)
    acl.aclrtValueWrite(word, 1, 0, stream)
    assert seen == []
    gate.open()
    acl.synchronize(stream)

    assert seen[0] == 77
    assert seen[1] != threading.get_native_id()


def test_host_functions_of_a_context_run_one_at_a_time(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    inside, release = threading.Event(), threading.Event()
    ran: list[str] = []
    holds = HostFunction(lambda _: (inside.set(), release.wait(DEADLINE_S), ran.append("first"))[0])
    follows = HostFunction(lambda _: ran.append("second"))

    acl.aclrtLaunchHostFunc(one, holds, None)
    assert inside.wait(DEADLINE_S)
    acl.aclrtLaunchHostFunc(two, follows, None)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(two, FEW_MS) == c.STREAM_TIMEOUT
    release.set()
    acl.synchronize(two)

    assert ran == ["first", "second"]


def test_host_function_must_not_submit_wait_or_allocate(acl: Acl) -> None:
    stream = acl.stream()
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []

    def body(_: object) -> None:
        out = ctypes.c_void_p()
        acl.aclrtSetCurrentContext(context)
        codes.append(acl.code.aclrtMalloc(ctypes.byref(out), 64, 0))
        codes.append(acl.sync_code(None))
        codes.append(acl.code.aclrtLaunchHostFunc(stream, None, None))

    function = HostFunction(body)
    acl.aclrtLaunchHostFunc(stream, function, None)
    acl.synchronize(stream)

    assert codes == [c.UNSUPPORTED] * 3


def test_host_function_can_fail_its_task(acl: Acl) -> None:
    stream = acl.stream(stop_on_failure=True)
    function = HostFunction(lambda _: acl.library.emuFailRunningTask(507035))

    acl.aclrtLaunchHostFunc(stream, function, None)

    assert acl.sync_code(stream) == 507035
    assert acl.code.emuFailRunningTask(507035) == 100000


def test_callback_runs_on_the_thread_that_subscribed(acl: Acl) -> None:
    stream = acl.stream()
    seen: list[int] = []
    function = HostFunction(lambda _: seen.append(threading.get_ident()))
    assert acl.code.aclrtLaunchCallback(function, None, 1, stream) == 107015
    started, codes = threading.Event(), []

    def serve() -> None:
        started.set()
        codes.append(acl.code.aclrtProcessReport(DEADLINE_S * 1000))

    thread = threading.Thread(target=lambda: (ready.wait(DEADLINE_S), serve())[1], daemon=True)
    ready = threading.Event()
    thread.start()
    assert thread.ident is not None
    acl.aclrtSubscribeReport(thread.ident, stream)  # pthread_self() of that thread
    assert acl.code.aclrtSubscribeReport(thread.ident, stream) == 107011
    ready.set()
    acl.aclrtLaunchCallback(function, None, 1, stream)
    acl.synchronize(stream)
    joined(thread)

    assert codes == [0]
    assert seen == [thread.ident]
    acl.aclrtUnSubscribeReport(thread.ident, stream)
    assert acl.code.aclrtUnSubscribeReport(thread.ident, stream) == 107012


def test_process_report_without_subscription_is_107012(acl: Acl) -> None:
    assert acl.code.aclrtProcessReport(1) == 107012


def test_value_write_writes_eight_bytes_and_no_more(acl: Acl) -> None:
    stream, memory = acl.stream(), acl.malloc(64, fill=0xEE)

    acl.aclrtValueWrite(memory + 8, 0x0102030405060708, 0, stream)
    acl.synchronize(stream)

    expected = b"\xee" * 8 + (0x0102030405060708).to_bytes(8, "little") + b"\xee" * 48
    assert acl.read(memory, 64) == expected


def test_null_stream_takes_value_operations_as_the_default_stream(acl: Acl) -> None:
    word = acl.malloc(64)

    acl.aclrtValueWait(word, 1, c.EQ, None)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(None, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclrtValueWrite(word, 1, 0, acl.stream())

    acl.synchronize(None)


def test_host_functions_of_two_contexts_run_side_by_side(acl: Acl) -> None:
    mine, one = acl.out("aclrtGetCurrentContext"), acl.stream()
    both = threading.Barrier(2)
    meet = HostFunction(lambda _: both.wait(DEADLINE_S) and None)

    acl.aclrtLaunchHostFunc(one, meet, None)
    other = acl.context(0)
    two = acl.stream()
    acl.aclrtLaunchHostFunc(two, meet, None)  # they wait for each other
    acl.synchronize(two)
    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(mine)
    acl.synchronize(one)

    assert not both.broken


def test_callback_must_not_submit_wait_or_allocate(acl: Acl) -> None:
    stream, me, codes = acl.stream(), threading.get_ident(), []

    def body(_: object) -> None:
        codes.append(acl.code.aclrtMalloc(ctypes.byref(ctypes.c_void_p()), 64, 0))
        codes.append(acl.sync_code(None))
        codes.append(acl.code.aclrtMemsetAsync(None, 0, 0, 0, None))

    function = HostFunction(body)
    acl.aclrtSubscribeReport(me, stream)
    acl.aclrtLaunchCallback(function, None, 1, stream)
    acl.aclrtProcessReport(DEADLINE_S * 1000)
    acl.synchronize(stream)

    assert codes == [c.UNSUPPORTED] * 3
    assert acl.code.aclrtMalloc(ctypes.byref(ctypes.c_void_p()), 64, 0) == 0  # afterwards it may
    acl.aclrtUnSubscribeReport(me, stream)


def test_process_report_without_a_callback_in_time_says_so(acl: Acl) -> None:
    stream, me = acl.stream(), threading.get_ident()
    acl.aclrtSubscribeReport(me, stream)

    assert acl.code.aclrtProcessReport(1) == 507012
    assert acl.code.aclrtProcessReport(0) == c.INVALID_PARAM
    acl.aclrtUnSubscribeReport(me, stream)
