"""What a task costs, coarsely: benchmarks/bench_emulator.cpp has the exact numbers."""

from __future__ import annotations

import ctypes
import itertools
import queue
import time
from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import MIB, Gate, peer, until_asleep, worker_of

TASKS = 1000
ROUNDS = 7
# What a task may cost, in items that go through Python's own queue, which takes some 0.05 microseconds. A
# task takes 1 to 5 of them; a wake-up, a hand-over or a search for each task takes it far beyond.
COST_LIMIT = 30


class Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "live_allocations",
            "device_bytes",
            "live_contexts",
            "live_streams",
            "live_events",
            "tasks_run",
            "bytes_copied",
            "words_woken",
        )
    ]


def stats(acl: Acl) -> Stats:
    read = Stats()
    acl.library.emuStats(ctypes.byref(read))
    return read


def cost_of_a_queue() -> float:
    """Of an item that passes through a bare queue, in processor time."""
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    start = time.process_time()
    for item in range(TASKS):
        items.put(item)
        items.get()
    return (time.process_time() - start) / TASKS


@pytest.mark.races_on_purpose("no race, but a task costs more under the checker")
@pytest.mark.parametrize(
    "kind",
    ["copy", "value write", "met value wait", "event", "memset", "host function", "host function or write"],
)
def test_a_task_costs_about_what_a_bare_queue_does(acl: Acl, kind: str) -> None:
    """In processor time, which does not grow when others have the processor; the best of some rounds."""
    stream, event, memory = acl.stream(), acl.event(), acl.malloc(4096)
    nothing = ctypes.cast(
        ctypes.CDLL(None).abs, ctypes.c_void_p
    )  # of C: Python's lock is no part of the cost
    turns = itertools.cycle([True, False])
    submit: dict[str, Callable[[], object]] = {
        "copy": lambda: acl.copy(memory, memory + 64, 64, stream),
        "value write": lambda: acl.aclrtValueWrite(memory, 1, 0, stream),
        "met value wait": lambda: acl.aclrtValueWait(memory + 512, 0, c.EQ, stream),
        "event": lambda: acl.aclrtRecordEvent(event, stream),
        "memset": lambda: acl.aclrtMemsetAsync(memory, 64, 1, 64, stream),
        "host function": lambda: acl.aclrtLaunchHostFunc(stream, nothing, None),
        "host function or write": lambda: submit["host function" if next(turns) else "value write"](),
    }
    best = best_queue = float("inf")

    for _ in range(ROUNDS):
        best_queue = min(best_queue, cost_of_a_queue())
        gate = Gate(acl, stream)
        for _ in range(TASKS):
            submit[kind]()
        start = time.process_time()
        gate.open()
        acl.synchronize(stream)
        best = min(best, (time.process_time() - start) / TASKS)

    assert best < COST_LIMIT * best_queue


def test_a_copy_runs_at_memory_speed(acl: Acl) -> None:
    """In processor time, which does not grow when the machine is busy with something else."""
    size = 16 * MIB
    stream, to, source = acl.stream(), acl.malloc(size), acl.malloc(size)
    plain_to, plain_source = (ctypes.create_string_buffer(size) for _ in range(2))
    best = best_plain = float("inf")

    for _ in range(5):
        start = time.process_time()
        ctypes.memmove(plain_to, plain_source, size)
        best_plain = min(best_plain, time.process_time() - start)
        start = time.process_time()
        acl.copy(to, source, size, stream)
        acl.synchronize(stream)
        best = min(best, time.process_time() - start)

    assert best < 5 * best_plain + 0.005


# A waiter looks by itself now and then, and may be gone before the writer looks for it. A value that it does
# not wait for keeps it there.
def test_a_word_that_nobody_waits_for_wakes_nobody(acl: Acl) -> None:
    stream, waiting = acl.stream(), acl.stream()
    word, other = acl.malloc(64), acl.malloc(64)
    before = stats(acl).words_woken

    for value in range(100):
        acl.aclrtValueWrite(word, value, 0, stream)
        acl.copy(other, word, 8, stream)
    acl.synchronize(stream)

    assert stats(acl).words_woken == before
    acl.aclrtValueWait(word, 100, c.EQ, waiting)
    until_asleep(worker_of(acl, waiting))
    acl.aclrtValueWrite(word, 101, 0, stream)
    acl.synchronize(stream)
    assert stats(acl).words_woken == before + 1
    acl.aclrtValueWrite(word, 100, 0, stream)
    acl.synchronize(waiting)


def test_a_writer_knows_of_a_waiter_in_another_process(acl: Acl) -> None:
    memory = acl.malloc(2 * MIB)
    key = acl.export(memory, 2 * MIB).decode()
    stream = acl.stream()
    program = """
        from tests.emulated_runtime.acl_harness import until_asleep, worker_of
        context, key = acl.context(0), hear().encode()
        word, stream = acl.import_key(key) + 4096, acl.stream()
        acl.aclrtValueWait(word, 7, c.EQ, stream)
        until_asleep(worker_of(acl, stream))
        say("waits")
        acl.synchronize(stream)
        say("passed")
    """
    with peer(program) as other:
        other.say(key)
        assert other.hear() == "waits"
        before = stats(acl).words_woken

        acl.aclrtValueWrite(memory + 4096, 6, 0, stream)
        acl.synchronize(stream)

        assert stats(acl).words_woken == before + 1
        acl.aclrtValueWrite(memory + 4096, 7, 0, stream)
        assert other.hear() == "passed"
