"""Faults in this process, by the C interface and by the Python face."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

import pytest

from torch_llm_datadist.emulator import faults as python_face
from torch_llm_datadist.emulator.faults import Faults

from . import acl_calls as c
from .acl_calls import Acl, AclError
from .acl_harness import (
    FEW_MS,
    MIB,
    Gate,
    HostFunction,
    code_of,
    in_thread,
    joined,
    until_asleep,
    worker_of,
)

HEARTBEAT, DRIVER, HOST_LINK = 507010, 507899, 507901


@pytest.fixture
def faults(acl: Acl) -> Iterator[Faults]:
    mine = python_face.of(os.getpid())
    yield mine
    mine.reset()


def armed_text(acl: Acl, text: str) -> int:
    return acl.library.emuFaults(text.encode())


# Calls.


def test_nth_call_and_the_following_ones_fail_with_the_code(acl: Acl, faults: Faults) -> None:
    fault = faults.fail_next("aclrtCreateStream", nth=2, code=207008, times=2)
    assert fault is not None

    acl.stream()
    assert code_of(acl.stream) == 207008
    assert code_of(acl.stream) == 207008
    acl.stream()
    assert (fault.hits, fault.fired) == (4, 2)


def test_call_fails_for_ever_until_disarmed(acl: Acl, faults: Faults) -> None:
    fault = faults.fail_next("aclrtCreateStream", nth=1, code=207008, times=0)
    assert fault is not None
    assert [code_of(acl.stream) for _ in range(3)] == [207008] * 3

    fault.disarm()

    acl.stream()


def test_call_that_names_memory_counts_once_for_a_rule_that_names_none(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(64), acl.malloc(64), acl.stream()
    fault = faults.fail_next("aclrtMemcpyAsync", nth=2, code=c.COPY_ENGINE)
    assert fault is not None

    acl.copy(far, near, 64, stream)
    assert code_of(lambda: acl.copy(far, near, 64, stream)) == c.COPY_ENGINE

    assert (fault.hits, fault.fired) == (2, 1)
    acl.synchronize(stream)


def test_call_fails_only_for_its_size(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(4096), acl.malloc(4096), acl.stream()
    faults.fail_next("aclrtMemcpyAsync", 1, c.COPY_ENGINE, bytes=512)

    acl.copy(far, near, 4096, stream)
    assert code_of(lambda: acl.copy(far, near, 512, stream)) == c.COPY_ENGINE
    acl.copy(far, near, 512, stream)
    acl.synchronize(stream)


@pytest.mark.parametrize("end", ["dst", "src"])
def test_call_fails_only_for_memory_that_holds_the_address(acl: Acl, faults: Faults, end: str) -> None:
    near, far, stream = acl.malloc(4096), acl.malloc(4096), acl.stream()
    faults.fail_next(
        "aclrtMemcpyAsync", 1, c.COPY_ENGINE, times=0, address=(far if end == "dst" else near) + 1000
    )

    acl.copy(far, near, 1000, stream)
    assert code_of(lambda: acl.copy(far, near, 1001, stream)) == c.COPY_ENGINE
    acl.copy(near, near + 64, 64, stream)
    acl.synchronize(stream)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("aclrtMalloc", lambda acl, at: acl.out("aclrtMalloc", 4096, 0)),
        ("aclrtMallocAlign32", lambda acl, at: acl.malloc(4096)),
        ("aclrtMallocHost", lambda acl, at: acl.malloc_host(4096)),
        ("aclrtMemset", lambda acl, at: acl.aclrtMemset(at, 4096, 0, 4096)),
        ("aclrtMemsetAsync", lambda acl, at: acl.aclrtMemsetAsync(at, 4096, 0, 4096, None)),
        ("aclrtMemcpy", lambda acl, at: acl.read(at, 4096)),
        ("aclrtMemcpy2d", lambda acl, at: acl.aclrtMemcpy2d(at, 64, at + 4096, 64, 64, 64, 3)),
        ("aclrtMemcpy2dAsync", lambda acl, at: acl.aclrtMemcpy2dAsync(at, 64, at + 64, 64, 64, 64, 3, None)),
        ("aclrtIpcMemGetExportKey", lambda acl, at: acl.export(at, 4096)),
    ],
)  # fmt: skip
def test_calls_that_name_memory_can_be_told_apart_by_size(
    acl: Acl, faults: Faults, function: str, call: object
) -> None:
    memory = acl.malloc(8192)
    faults.fail_next(function, 1, 507899, times=0, bytes=4095)
    call(acl, memory)  # type: ignore[operator]
    faults.fail_next(function, 1, 507899, bytes=4096)

    assert code_of(lambda: call(acl, memory)) == 507899  # type: ignore[operator]


def test_value_operations_and_frees_can_be_told_apart_by_address(acl: Acl, faults: Faults) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    for function in ("aclrtValueWrite", "aclrtValueWait", "aclrtFree"):
        faults.fail_next(function, 1, 507899, address=memory + (0 if function == "aclrtFree" else 8))

    acl.aclrtValueWrite(memory, 1, 0, stream)
    assert code_of(lambda: acl.aclrtValueWrite(memory + 8, 1, 0, stream)) == 507899
    acl.aclrtValueWait(memory, 1, c.EQ, stream)
    assert code_of(lambda: acl.aclrtValueWait(memory + 8, 1, c.EQ, stream)) == 507899
    acl.synchronize(stream)
    assert code_of(lambda: acl.aclrtFree(memory)) == 507899
    acl.aclrtFree(memory)


def test_call_returns_late_with_its_effect_done(acl: Acl, faults: Faults) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    faults.delay_call("aclrtValueWrite", seconds=0.15)
    begun = time.monotonic()
    late = in_thread(lambda: (acl.aclrtSetDevice(0), bool(0)))  # a thread of its own gets its context first
    joined(late)

    def write() -> None:
        acl.aclrtSetCurrentContext(context)
        acl.aclrtValueWrite(memory, 7, 0, stream)
        took.append(time.monotonic() - begun)

    took: list[float] = []
    context = acl.out("aclrtGetCurrentContext")
    begun = time.monotonic()
    writer = in_thread(write)
    while acl.read_word(memory) != 7:  # while the call is on its way
        assert writer.is_alive()
    seen_after = time.monotonic() - begun
    joined(writer)

    assert took[0] >= 0.15
    assert seen_after < took[0]


def test_late_call_returns_when_it_is_disarmed(acl: Acl, faults: Faults) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    context = acl.out("aclrtGetCurrentContext")
    late = faults.delay_call("aclrtValueWrite", seconds=600)

    def write() -> bool:
        acl.aclrtSetCurrentContext(context)
        acl.aclrtValueWrite(memory, 7, 0, stream)
        return True

    writer = in_thread(write)
    late.wait()
    acl.synchronize(stream)
    assert writer.is_alive()

    late.disarm()

    joined(writer)


def test_refused_call_returns_late_too(acl: Acl, faults: Faults) -> None:
    faults.delay_call("aclrtValueWrite", seconds=0.02)
    begun = time.monotonic()

    assert code_of(lambda: acl.aclrtValueWrite(None, 1, 0, None)) == c.INVALID_PARAM

    assert time.monotonic() - begun >= 0.02


# Tasks and copies.


# All that a device's fault may be. Most of them, task time-outs (107020) and broken memory among them, strike
# only when they are asked for.
DEVICE_FAULTS = """
    107020 207020 507000 507001 507002 507010 507011 507013 507014 507015 507022 507053 507054 507055 507056
    507057 507899 507901 507904
"""


@pytest.mark.parametrize("code", [int(code) for code in DEVICE_FAULTS.split()])
def test_failing_task_stops_all_streams_of_its_context(acl: Acl, faults: Faults, code: int) -> None:
    near, far = acl.malloc(64), acl.malloc(64)
    stream, other = acl.stream(stop_on_failure=True), acl.stream(stop_on_failure=True)
    gate = Gate(acl, other)
    acl.aclrtValueWrite(far, 9, 0, other)
    faults.fail_task(2, code, stream)

    acl.copy(far + 8, near, 8, stream)
    acl.copy(far + 16, near, 8, stream)

    assert acl.sync_code(stream) == code
    assert acl.sync_code(other) == code
    gate.open()
    assert code_of(lambda: acl.copy(far, near, 8, other)) == code
    assert acl.read_word(far) == 0


@pytest.mark.races_on_purpose("what is written is of no interest")
def test_failing_tasks_are_found_by_kind_direction_size_address_and_stream(acl: Acl, faults: Faults) -> None:
    near, far, host = acl.malloc(4096), acl.malloc(4096), acl.malloc_host(4096)
    stream, other = acl.stream(), acl.stream()

    def code_after(**where: object) -> tuple[int, int]:
        faults.fail_task(1, 507056, **where)  # type: ignore[arg-type]
        acl.aclrtMemsetAsync(far, 4096, 1, 4096, stream)
        acl.copy(far, near, 64, other)
        acl.copy(far, near, 4096, stream)
        acl.aclrtMemcpyAsync(host, 64, near, 64, c.DEVICE_TO_HOST, stream)
        codes = acl.sync_code(stream), acl.sync_code(other)
        faults.reset()
        return codes

    assert code_after(bytes=32) == (0, 0)
    assert code_after(bytes=64, direction="d2d") == (0, 507056)
    assert code_after(direction="d2h") == (507056, 0)
    assert code_after(direction="h2d") == (0, 0)
    assert code_after(stream=other) == (0, 507056)
    assert code_after(address=far + 100) == (507056, 0)
    assert code_after(task="aclrtMemsetAsync") == (507056, 0)
    assert code_after(task="aclrtValueWrite") == (0, 0)
    assert code_after(task="*", stream=other) == (0, 507056)
    assert code_after(device=1) == (0, 0)
    assert code_after(device=0, bytes=64, direction="d2h") == (507056, 0)


def test_failing_copy_moves_nothing_and_a_failing_fill_fills_nothing(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(64, fill=1), acl.malloc(64), acl.stream()
    faults.fail_task(1, 507013, stream)
    faults.fail_task(1, 507013, stream, task="aclrtMemsetAsync")

    acl.copy(far, near, 64, stream)
    assert acl.sync_code(stream) == 507013
    acl.aclrtMemsetAsync(far, 64, 2, 64, stream)
    assert acl.sync_code(stream) == 507013

    assert acl.read(far, 64) == bytes(64)


def test_task_delay_of_one_stream_leaves_others_alone(acl: Acl, faults: Faults) -> None:
    memory, slow, quick = acl.malloc(64), acl.stream(), acl.stream()
    faults.set_task_delay(0.05, slow)
    begun = time.monotonic()

    acl.aclrtValueWrite(memory, 1, 0, slow)
    acl.aclrtValueWrite(memory + 8, 1, 0, slow)
    acl.aclrtValueWrite(memory + 16, 1, 0, quick)
    acl.synchronize(quick)

    assert acl.read_word(memory + 8) == 0
    acl.synchronize(slow)
    assert time.monotonic() - begun >= 0.1
    faults.set_task_delay(0, slow)
    assert acl.library.emuFaults(b"") == 0


def test_bandwidth_of_a_direction_and_stream(acl: Acl, faults: Faults) -> None:
    near, far, slow, quick = acl.malloc(MIB), acl.malloc(MIB), acl.stream(), acl.stream()
    host, elsewhere = acl.malloc_host(MIB), acl.malloc(MIB)
    faults.set_bandwidth("d2d", 2 * MIB, slow)

    begun = time.monotonic()
    acl.copy(far, near, MIB, slow)
    acl.copy(elsewhere, near, MIB, quick)
    acl.synchronize(quick)
    assert not acl.is_idle(slow)
    acl.synchronize(slow)
    slow_s = time.monotonic() - begun
    begun = time.monotonic()
    acl.aclrtMemcpyAsync(host, MIB, near, MIB, c.DEVICE_TO_HOST, slow)
    acl.synchronize(slow)

    assert slow_s >= 0.5
    assert time.monotonic() - begun < slow_s


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_bytes_of_a_slow_copy_arrive_little_by_little(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(MIB, fill=1), acl.malloc(MIB), acl.stream()
    faults.set_bandwidth("d2d", 2 * MIB, stream)

    acl.copy(far, near, MIB, stream)
    seen = set()
    while not acl.is_idle(stream):
        seen.add(acl.read(far, MIB).count(1))

    assert len(seen - {0, MIB}) >= 2


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
@pytest.mark.parametrize("after", [0, 1, 512, 4095, 4096, 10_000])
def test_held_copy_shows_its_first_bytes_and_goes_on(acl: Acl, faults: Faults, after: int) -> None:
    near, far, stream = acl.malloc(4096, fill=1), acl.malloc(4096), acl.stream()
    held = faults.hold_copy(after, nth=2)

    acl.copy(far, near, 8, stream)
    acl.copy(far, near, 4096, stream)
    held.wait()

    there = max(min(after, 4096), 8)
    assert acl.read(far, 4096) == b"\1" * there + bytes(4096 - there)
    assert not acl.is_idle(stream)
    held.disarm()
    acl.synchronize(stream)
    assert acl.read(far, 4096) == b"\1" * 4096


def test_held_copy_ends_with_its_stream(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(4096, fill=1), acl.malloc(4096), acl.stream()
    held = faults.hold_copy(100, stream=stream)
    acl.copy(far, near, 4096, stream)
    held.wait()

    acl.aclrtStreamAbort(stream)

    assert acl.read(far, 4096).count(1) == 100


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_2d_copy_is_held_in_the_middle_of_a_row(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(256, fill=1), acl.malloc(256), acl.stream()
    held = faults.hold_copy(20, stream=stream, bytes=64)

    acl.aclrtMemcpy2dAsync(far, 32, near, 64, 16, 4, c.DEVICE_TO_DEVICE, stream)
    held.wait()

    assert acl.read(far, 64) == b"\1" * 16 + bytes(16) + b"\1" * 4 + bytes(28)
    held.disarm()
    acl.synchronize(stream)
    assert acl.read(far, 128) == (b"\1" * 16 + bytes(16)) * 4


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_split_copy_is_held_by_a_freeze_between_its_pieces(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(MIB, fill=1), acl.malloc(MIB), acl.stream()
    faults.set_split(1024, stream=stream)
    faults.set_bandwidth("d2d", 4 * MIB, stream)
    acl.copy(far, near, MIB, stream)
    while acl.read(far, MIB).count(1) == 0:
        pass

    faults.freeze_stream(stream)

    frozen_at = -1
    while (now := acl.read(far, MIB).count(1)) != frozen_at:
        frozen_at = now
        time.sleep(FEW_MS / 1000)
    assert 0 < frozen_at < MIB
    assert frozen_at % 1024 == 0
    faults.thaw_stream(stream)
    faults.set_bandwidth("d2d", 0, stream)
    acl.synchronize(stream)
    assert acl.read(far, MIB).count(1) == MIB


def test_byte_of_the_nth_copy_arrives_flipped(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(4096, fill=1), acl.malloc(4096), acl.stream()
    fault = faults.flip_byte(nth=2, offset=100, stream=stream)

    acl.copy(far, near, 4096, stream)
    acl.synchronize(stream)
    assert acl.read(far, 4096) == b"\1" * 4096
    acl.copy(far, near, 4096, stream)
    acl.synchronize(stream)

    assert acl.read(far, 4096) == b"\1" * 100 + b"\xfe" + b"\1" * 3995
    assert fault.fired == 1
    acl.copy(far, near, 4096, stream)
    acl.synchronize(stream)
    assert acl.read(far, 4096) == b"\1" * 4096


@pytest.mark.races_on_purpose("the flag that orders them is early")
@pytest.mark.parametrize("flag", ["value write", "8-byte copy"])
def test_flag_overtakes_the_bytes_before_it(acl: Acl, faults: Faults, flag: str) -> None:
    near, far, stream, reader = acl.malloc(4096, fill=1), acl.malloc(4096), acl.stream(), acl.stream()
    word, one, seen = acl.malloc(64), acl.malloc(64), acl.malloc(4096)
    acl.write_word(one, 1)
    acl.aclrtValueWait(word, 1, c.EQ, reader)
    acl.copy(seen, far, 4096, reader)
    fault = faults.overtake(seconds=0.3, stream=stream)

    gate = Gate(acl, stream)  # all are queued when the first one runs
    acl.copy(far, near, 2048, stream)
    acl.copy(far + 2048, near, 2048, stream)
    if flag == "value write":
        acl.aclrtValueWrite(word, 1, 0, stream)
    else:
        acl.copy(word, one, 8, stream)
    gate.open()
    acl.synchronize(reader)

    assert acl.read(seen, 4096) == bytes(4096)
    acl.synchronize(stream)
    assert acl.read(far, 4096) == b"\1" * 4096
    assert fault.fired == 1


def test_flag_does_not_overtake_other_tasks(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(4096, fill=1), acl.malloc(4096), acl.stream()
    word = acl.malloc(64)
    fault = faults.overtake(seconds=0.02, stream=stream)

    acl.copy(far, near, 4096, stream)
    acl.aclrtMemsetAsync(near, 4096, 2, 4096, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    acl.synchronize(stream)

    assert fault.fired == 0
    assert acl.read_word(word) == 1


# Frozen queues.


def test_frozen_stream_starts_no_task(acl: Acl, faults: Faults) -> None:
    memory, frozen, free = acl.malloc(64), acl.stream(), acl.stream()

    faults.freeze_stream(frozen)
    acl.aclrtValueWrite(memory, 1, 0, frozen)
    acl.aclrtValueWrite(memory + 8, 1, 0, free)
    acl.synchronize(free)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(frozen, FEW_MS) == c.STREAM_TIMEOUT
    assert acl.read_word(memory) == 0
    faults.thaw_stream(frozen)
    acl.synchronize(frozen)
    assert acl.read_word(memory) == 1


def test_frozen_stream_finishes_no_task(acl: Acl, faults: Faults) -> None:
    frozen = acl.stream()
    gate = Gate(acl, frozen)
    until_asleep(worker_of(acl, frozen))

    faults.freeze_stream(frozen)
    gate.open()

    assert acl.code.aclrtSynchronizeStreamWithTimeout(frozen, FEW_MS) == c.STREAM_TIMEOUT
    faults.thaw_stream(frozen)
    acl.synchronize(frozen)


def test_frozen_device_holds_its_streams_and_blocking_copies_and_no_other_device(
    acl: Acl, faults: Faults
) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    mine = acl.out("aclrtGetCurrentContext")
    faults.freeze_device(0)
    acl.aclrtValueWrite(memory, 5, 0, stream)

    def read() -> None:
        acl.aclrtSetCurrentContext(mine)
        words.append(acl.read_word(memory))

    words: list[int] = []
    reader = in_thread(read)
    other = acl.context(1)
    acl.aclrtValueWrite(acl.malloc(64), 1, 0, None)
    acl.synchronize(None)
    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(mine)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT
    assert words == []

    faults.thaw_device(0)

    acl.synchronize(stream)
    joined(reader)
    assert acl.read_word(memory) == 5


def test_frozen_stream_can_be_aborted_and_destroyed(acl: Acl, faults: Faults) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    faults.freeze_stream(stream)
    acl.aclrtValueWrite(memory, 1, 0, stream)

    acl.aclrtStreamAbort(stream)
    acl.aclrtDestroyStreamForce(stream)

    assert acl.read_word(memory) == 0


def test_frozen_device_holds_replays(acl: Acl, faults: Faults) -> None:
    memory, stream, graph = acl.malloc(64), acl.stream(), ctypes.c_void_p()
    acl.aclmdlRICaptureBegin(stream, 0)
    acl.aclrtValueWrite(memory, 1, 0, stream)
    acl.aclmdlRICaptureEnd(stream, ctypes.byref(graph))
    faults.freeze_device(0)

    acl.aclmdlRIExecuteAsync(graph, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT
    faults.thaw_device(0)
    acl.synchronize(stream)
    assert acl.read_word(memory) == 1


# A lost device.


@pytest.fixture
def spare_device(acl: Acl) -> Iterator[int]:
    """A device that this test may lose: its default context is not used by others."""
    mine = acl.out("aclrtGetCurrentContext")
    acl.aclrtSetDevice(3)
    yield 3
    acl.code.aclrtResetDeviceForce(3)
    acl.aclrtSetCurrentContext(mine)


@pytest.mark.parametrize("code", [HEARTBEAT, DRIVER, HOST_LINK])
def test_lost_device_answers_with_its_code_from_the_next_sync_until_reset(
    acl: Acl, faults: Faults, spare_device: int, code: int
) -> None:
    memory, stream = acl.malloc(64), acl.stream()
    event = acl.event()
    faults.lose_device(spare_device, code)

    acl.aclrtValueWrite(memory, 1, 0, stream)  # nobody asked yet
    acl.aclrtRecordEvent(event, stream)
    assert acl.sync_code(stream) == code
    for call in (
        lambda: acl.aclrtValueWrite(memory, 1, 0, stream),
        lambda: acl.malloc(64),
        acl.stream,
        lambda: acl.read_word(memory),
        lambda: acl.is_idle(stream),
        lambda: acl.aclrtRecordEvent(event, stream),
        acl.aclrtSynchronizeDevice,
    ):
        assert code_of(call) == code
    acl.aclrtResetDeviceForce(spare_device)

    acl.aclrtSetDevice(spare_device)
    stream = acl.stream()
    memory = acl.malloc(64)
    acl.aclrtValueWrite(memory, 1, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(memory) == 1


@pytest.mark.parametrize("how", ["stream", "event", "device", "query"])
def test_lost_device_is_noticed_by_every_way_to_ask(
    acl: Acl, faults: Faults, spare_device: int, how: str
) -> None:
    stream, event = acl.stream(), acl.event()
    Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    faults.lose_device(spare_device)
    ask = {
        "stream": lambda: acl.aclrtSynchronizeStream(stream),
        "event": lambda: acl.aclrtSynchronizeEvent(event),
        "device": acl.aclrtSynchronizeDevice,
        "query": lambda: acl.is_idle(stream),
    }

    assert code_of(ask[how]) == HEARTBEAT
    assert code_of(acl.stream) == HEARTBEAT


def test_host_that_waits_already_hears_of_the_loss(acl: Acl, faults: Faults, spare_device: int) -> None:
    stream = acl.stream()
    context = acl.out("aclrtGetCurrentContext")
    Gate(acl, stream)
    codes: list[int] = []

    def wait() -> None:
        acl.aclrtSetCurrentContext(context)
        codes.append(acl.code.aclrtSynchronizeStream(stream))

    waiting = in_thread(wait)
    time.sleep(FEW_MS / 1000)
    faults.lose_device(spare_device)

    joined(waiting)
    assert codes == [HEARTBEAT]


def test_lost_device_leaves_other_devices_alone(acl: Acl, faults: Faults, spare_device: int) -> None:
    faults.lose_device(spare_device)
    assert code_of(acl.aclrtSynchronizeDevice) == HEARTBEAT

    context = acl.context(0)
    acl.aclrtValueWrite(acl.malloc(64), 1, 0, None)
    acl.synchronize(None)
    acl.aclrtDestroyContext(context)


def test_contexts_made_before_the_loss_stay_broken_after_the_reset(
    acl: Acl, faults: Faults, spare_device: int
) -> None:
    private = acl.context(spare_device)
    stream = acl.stream()
    faults.lose_device(spare_device)
    assert acl.sync_code(stream) == HEARTBEAT
    acl.aclrtResetDeviceForce(spare_device)

    assert acl.sync_code(stream) == HEARTBEAT
    acl.aclrtDestroyContext(private)


# Resources.


def test_no_more_than_the_resources_that_are_left(acl: Acl, faults: Faults) -> None:
    faults.limit(streams=2, events=1, notifies=1, memory=2 * MIB)

    first = acl.stream()
    acl.stream()
    assert code_of(acl.stream) == 207008
    acl.aclrtDestroyStream(first)
    acl.stream()
    event = acl.event()
    assert code_of(acl.event) == 207007
    assert code_of(acl.hardware_event) == 207007
    acl.aclrtDestroyEvent(event)
    acl.event()
    acl.out("aclrtCreateNotify", 0)
    assert code_of(lambda: acl.out("aclrtCreateNotify", 0)) == 207009
    memory = acl.malloc(MIB)
    acl.malloc(MIB)
    assert code_of(lambda: acl.malloc(64)) == c.OUT_OF_MEMORY
    acl.aclrtFree(memory)
    acl.malloc(MIB)

    faults.unlimit()
    acl.stream()
    acl.malloc(MIB)


# Captures.


def test_capture_is_spoiled_after_so_many_tasks(acl: Acl, faults: Faults) -> None:
    memory, stream, graph = acl.malloc(64), acl.stream(), ctypes.c_void_p()
    fault = faults.spoil_capture(after=2)
    acl.aclrtValueWrite(memory, 1, 0, stream)  # not captured
    acl.aclmdlRICaptureBegin(stream, 0)

    acl.aclrtValueWrite(memory, 1, 0, stream)
    acl.aclrtValueWrite(memory, 2, 0, stream)
    assert code_of(lambda: acl.aclrtValueWrite(memory, 3, 0, stream)) == 507903

    assert code_of(lambda: acl.aclmdlRICaptureEnd(stream, ctypes.byref(graph))) == 507903
    assert fault.fired == 1


# Exports.


def test_exports_must_fit_the_page_that_a_fault_asks_for(acl: Acl, faults: Faults) -> None:
    memory = acl.malloc(4 * MIB)
    acl.export(memory, 2 * MIB)

    faults.export_page(1 << 30)

    with pytest.raises(AclError, match="page table") as error:
        acl.export(memory, 2 * MIB)
    assert error.value.code == c.INVALID_PARAM


# The faces.


def test_text_arms_what_it_says(acl: Acl, faults: Faults) -> None:
    near, far, stream = acl.malloc(64, fill=1), acl.malloc(64), acl.stream()

    assert (
        armed_text(
            acl,
            f"fail aclrtCreateStream nth=2 code=207008 times=1;\n"
            f"fail aclrtMemcpyAsync code=507013 address={far + 8:#x} ; late aclrtCreateEvent seconds=0.02;"
            f"bandwidth d2d=2e9 peer=1e9 stream={stream:#x}; limit events=1 notifies=0;"
            "fail_task aclrtMemsetAsync code=507056; flip_byte offset=3 direction=d2d;"
            "hold_copy after=1 nth=9",
        )
        == 0
    )

    acl.stream()
    assert code_of(acl.stream) == 207008
    assert code_of(lambda: acl.copy(far, near, 64, stream)) == 507013
    acl.copy(far, near, 64, stream)
    acl.synchronize(stream)
    assert acl.read(far, 8) == b"\1\1\1\xfe\1\1\1\1"
    acl.aclrtMemsetAsync(far, 64, 1, 64, stream)
    assert acl.sync_code(stream) == 507056
    begun = time.monotonic()
    acl.hardware_event()
    assert time.monotonic() - begun >= 0.02
    assert code_of(acl.event) == 207007
    assert code_of(lambda: acl.out("aclrtCreateNotify", 0)) == 207009


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("explode", "'explode' is no fault; there are fail, late"),
        ("fail aclrtFly code=1", "there is no entry point 'aclrtFly'"),
        ("fail code=1", "the function's name is missing"),
        ("fail aclrtMalloc nth=1", "code= is missing"),
        ("fail aclrtMalloc code=x", "code=x: expected a whole number of 0 or more"),
        ("fail aclrtMalloc code=1 nth=0", "nth=0: expected 1"),
        ("fail aclrtMalloc code=1 nth=-1", "nth=-1: expected a whole number"),
        ("fail aclrtMalloc code=1 seconds=1", "'seconds' is not known here; fail takes code nth"),
        ("fail aclrtCreateStream code=1 bytes=4", "calls of aclrtCreateStream cannot be told apart"),
        ("late aclrtMalloc", "seconds= is missing"),
        ("late aclrtMalloc seconds=-1", "seconds=-1: expected a number of 0 or more"),
        ("task_delay seconds=0.1s", "seconds=0.1s: expected a number"),
        ("bandwidth up=1", "'up' is not known here; bandwidth takes h2d d2h d2d peer"),
        ("bandwidth", "bandwidth takes at least one of h2d"),
        ("flip_byte direction=up", "direction=up: expected one of h2d, d2h, d2d, peer"),
        ("hold_copy now", "'now' is not key=value"),
        ("limit", "limit takes at least one of streams"),
        ("spoil_capture after=0", "after=0: expected 1 task or more"),
        ("split", "piece= is missing"),
    ],
)
def test_bad_text_is_refused_and_arms_nothing(acl: Acl, faults: Faults, text: str, complaint: str) -> None:
    assert armed_text(acl, "fail aclrtCreateStream code=207008; " + text) == 100000
    message = acl.message()
    assert complaint in message
    assert f"'{text}'" in message.replace("' ", "'")

    acl.stream()


def test_bad_arguments_are_refused(faults: Faults) -> None:
    for call, complaint in (
        (lambda: faults.fail_next("aclrtFly", 1, 1), "no such entry point"),
        (lambda: faults.fail_next("aclrtCreateStream", 1, 1, bytes=4), "cannot be told apart"),
        (lambda: faults.fail_next("aclrtMalloc", -1, 1), "nth = -1, expected"),
        (lambda: faults.delay_call("aclrtMalloc", -0.1), "seconds = -0.1, expected 0 or more"),
        (lambda: faults.set_bandwidth("up", 1), "direction = 'up', expected one of h2d, d2h, d2d, peer"),
        (lambda: faults.freeze_device(-1), "device = -1, expected"),
        (lambda: faults.freeze_stream(0), "default stream"),
        (lambda: faults.limit(), "limit takes at least one of streams"),
        (lambda: faults.limit(streams=-1), "streams = -1, expected"),
        (lambda: faults.spoil_capture(0), "after = 0, expected"),
        (lambda: faults.count_as_pid(0), "pid = 0, expected"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()
    with pytest.raises(RuntimeError, match="cannot freeze its own host"):
        faults.freeze_host()


def test_no_more_faults_than_there_are_places_for(acl: Acl, faults: Faults) -> None:
    for i in range(64):
        faults.fail_next("aclrtMalloc", 1, 507899, bytes=i + 1)

    with pytest.raises(RuntimeError, match="64 faults are armed"):
        faults.fail_next("aclrtMalloc", 1, 507899, bytes=65)
    assert armed_text(acl, "fail aclrtMalloc code=1 bytes=65") == 207005
    # One that is over makes place.
    assert code_of(lambda: acl.out("aclrtMalloc", 7, 0)) == 507899
    faults.fail_next("aclrtMalloc", 1, 507899, bytes=65)
    assert code_of(lambda: acl.out("aclrtMalloc", 65, 0)) == 507899
    assert code_of(lambda: acl.out("aclrtMalloc", 8, 0)) == 507899


def test_host_functions_run_one_at_a_time_on_a_thread_of_the_host(acl: Acl) -> None:
    names: list[str] = []

    @HostFunction
    def note(_: object) -> None:
        with open("/proc/thread-self/comm") as comm:
            names.append(comm.read().strip())

    streams = acl.stream(), acl.stream()
    for stream in streams * 3:
        acl.aclrtLaunchHostFunc(stream, note, None)
    for stream in streams:
        acl.synchronize(stream)

    assert names == ["acl-host-func"] * 6
