"""Faults and delays on demand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import MIB, peer

pytest_plugins = ["tests.acl_fixtures"]


def test_nth_call_can_be_made_to_fail_and_does_nothing(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    calls = acl.library.emuCalls(b"aclrtValueWrite")

    acl.emuFailNext(b"aclrtValueWrite", 3, 507899)
    codes = [acl.code.aclrtValueWrite(word, i, 0, stream) for i in (1, 2, 3)]
    acl.synchronize(stream)

    assert codes == [0, 0, 507899]
    assert acl.read_word(word) == 2
    acl.aclrtValueWrite(word, 4, 0, stream)
    assert acl.library.emuCalls(b"aclrtValueWrite") == calls + 4
    assert acl.code.emuFailNext(b"noSuchFunction", 1, 1) == 100000


def test_nth_copy_task_can_be_made_to_fail(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    a = acl.malloc(64)
    acl.emuFailTask(one, 2, c.LINK_ERROR)

    acl.copy(a, a + 32, 32, two)
    acl.copy(a, a + 32, 32, two)
    acl.synchronize(two)
    acl.copy(a, a + 32, 32, one)
    acl.synchronize(one)
    acl.copy(a, a + 32, 32, one)

    assert acl.sync_code(one) == c.LINK_ERROR


def elapsed_ms(acl: Acl, stream: int, body: Callable[[], object]) -> float:
    start, end, ms = acl.event(c.EVENT_TIME_LINE), acl.event(c.EVENT_TIME_LINE), ctypes.c_float()
    acl.aclrtRecordEvent(start, stream)
    body()
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)
    return ms.value


def test_task_delay_slows_each_task(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    acl.library.emuSetTaskDelay(ctypes.c_uint64(5_000))

    took = elapsed_ms(acl, stream, lambda: [acl.aclrtValueWrite(word, i, 0, stream) for i in range(4)])

    assert took >= 4 * 5


@pytest.mark.parametrize("direction", ["H2D", "D2H", "D2D"])
def test_bandwidth_slows_copies_of_its_direction_only(acl: Acl, direction: str) -> None:
    number = {"H2D": 0, "D2H": 1, "D2D": 2}[direction]
    stream, size = acl.stream(), 2 * MIB
    pinned, a, b = acl.malloc_host(size), acl.malloc(size), acl.malloc(size)
    copies = {
        "H2D": lambda: acl.copy(a, pinned, size, stream, c.HOST_TO_DEVICE),
        "D2H": lambda: acl.copy(pinned, a, size, stream, c.DEVICE_TO_HOST),
        "D2D": lambda: acl.copy(a, b, size, stream),
    }
    for copy in copies.values():
        copy()
    acl.synchronize(stream)

    acl.emuSetBandwidth(number, 20 * MIB)  # 100 ms
    try:
        took = {name: elapsed_ms(acl, stream, copy) for name, copy in copies.items()}
    finally:
        acl.emuSetBandwidth(number, 0)

    assert took.pop(direction) >= 99
    assert max(took.values()) < 80


def test_delays_and_bandwidth_come_from_the_environment() -> None:
    program = """
    acl.context()
    stream, word, size = acl.stream(), acl.malloc(64), 1 << 20
    a, b = acl.malloc(size), acl.malloc(size)
    start, end, ms = acl.event(8), acl.event(8), ctypes.c_float()
    acl.aclrtRecordEvent(start, stream)
    acl.copy(a, b, size, stream)
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)
    say(ms.value)
    """
    name = "TORCH_LLM_DATADIST_EMULATE_"
    with peer(program, **{name + "TASK_DELAY_US": "10000", name + "BANDWIDTH_D2D": str(50 * MIB)}) as other:
        assert float(other.hear()) >= 10 + 10 + 20


def test_stats_count_what_is_alive(acl: Acl) -> None:
    def stats() -> list[int]:
        numbers = (ctypes.c_uint64 * 7)()
        acl.library.emuStats(numbers)
        return list(numbers)

    before = stats()
    acl.malloc(MIB, fill=None)
    acl.stream()
    acl.event()
    after = stats()

    assert [b - a for a, b in zip(before, after, strict=True)][:5] == [1, MIB, 0, 1, 1]
