"""Host functions of several streams wait for one thread; those of one stream run in a row where they can."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, Gate, HostFunction, in_thread, joined
from .graph_harness import captured, elsewhere

FAILED = 507035


class Held:
    """A host function that says when it runs, and ends when it is told to."""

    def __init__(self) -> None:
        self.inside, self.release = threading.Event(), threading.Event()
        self.function = HostFunction(self.run)

    def run(self, _: object) -> None:
        self.inside.set()
        self.release.wait(DEADLINE_S)


class Notes:
    """A host function that notes its argument."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.function = HostFunction(lambda n: self.seen.append(n or 0))

    def __call__(self, acl: Acl, stream: int, *numbers: int) -> None:
        for number in numbers:
            acl.aclrtLaunchHostFunc(stream, self.function, number)


@pytest.mark.parametrize("stop", ["aclrtStreamAbort", "aclrtDestroyStreamForce", "aclrtStreamStop"])
def test_function_that_waits_for_its_turn_is_not_called_when_its_stream_is_stopped(
    acl: Acl, stop: str
) -> None:
    one, two, three = acl.stream(), acl.stream(), acl.stream()
    held, notes = Held(), Notes()
    acl.aclrtLaunchHostFunc(one, held.function, None)
    assert held.inside.wait(DEADLINE_S)
    notes(acl, two, 2)

    assert elsewhere(acl, lambda: getattr(acl.code, stop)(two)) == 0  # returns while the first one runs

    held.release.set()
    notes(acl, three, 3)
    acl.synchronize(three)
    assert notes.seen == [3]


def test_function_that_has_begun_ends_before_an_abort_returns_and_the_rest_is_dropped(acl: Acl) -> None:
    stream, held, notes = acl.stream(), Held(), Notes()
    context = acl.out("aclrtGetCurrentContext")
    acl.aclrtLaunchHostFunc(stream, held.function, None)
    notes(acl, stream, 1, 2)
    assert held.inside.wait(DEADLINE_S)

    aborting = in_thread(lambda: (acl.aclrtSetCurrentContext(context), acl.aclrtStreamAbort(stream)))
    aborting.join(0.03)
    assert aborting.is_alive()
    held.release.set()
    joined(aborting)

    notes(acl, stream, 3)
    acl.synchronize(stream)
    assert notes.seen == [3]


def test_each_function_of_a_row_counts_as_done_when_it_is(acl: Acl) -> None:
    stream, held, notes = acl.stream(), Held(), Notes()
    gate = Gate(acl, stream)
    notes(acl, stream, 1)
    acl.aclrtLaunchHostFunc(stream, held.function, None)
    notes(acl, stream, *range(2045))  # the queue is full

    gate.open()
    codes = [
        elsewhere(acl, lambda: acl.code.aclrtLaunchHostFunc(stream, notes.function, 0)) for _ in range(2)
    ]

    assert codes == [0, 0]  # in the places of the gate and of the first function
    held.release.set()
    acl.synchronize(stream)
    assert len(notes.seen) == 2048


@pytest.mark.parametrize("stop_on_failure", [False, True])
def test_function_of_a_row_fails_its_own_task(acl: Acl, stop_on_failure: bool) -> None:
    stream, notes = acl.stream(stop_on_failure), Notes()
    failing = HostFunction(lambda _: acl.library.emuFailRunningTask(FAILED))
    gate = Gate(acl, stream)
    notes(acl, stream, 1, 2)
    acl.aclrtLaunchHostFunc(stream, failing, None)
    notes(acl, stream, 3)
    gate.open()

    assert acl.sync_code(stream) == FAILED
    assert notes.seen == ([1, 2] if stop_on_failure else [1, 2, 3])


def test_brief_tasks_between_functions_run_in_their_places(acl: Acl) -> None:
    stream, word, seen = acl.stream(), acl.malloc(64), acl.malloc_host(64)
    there = ctypes.c_uint64.from_address(seen)
    notes: list[int] = []
    look = HostFunction(lambda _: notes.append(there.value))
    gate = Gate(acl, stream)
    for value in range(200):
        for _ in range(value % 5):  # rows of them that are short enough to be taken along, and that are not
            acl.aclrtValueWrite(word, 1000 + value, 0, stream)
        acl.aclrtValueWrite(word, value, 0, stream)
        acl.copy(seen, word, 8, stream, c.DEVICE_TO_HOST)
        acl.aclrtLaunchHostFunc(stream, look, None)

    gate.open()
    acl.synchronize(stream)

    assert notes == list(range(200))


@pytest.mark.parametrize("stop_on_failure", [False, True])
def test_brief_task_between_functions_fails_as_itself(acl: Acl, stop_on_failure: bool) -> None:
    stream, notes = acl.stream(stop_on_failure), Notes()
    near, far = acl.malloc(64), acl.malloc(64)
    gate = Gate(acl, stream)
    notes(acl, stream, 1)
    acl.copy(far, near, 64, stream)
    notes(acl, stream, 2)
    acl.aclrtFree(near)
    gate.open()

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert "aclrtMemcpyAsync" in acl.message()
    assert notes.seen == ([1] if stop_on_failure else [1, 2])


def test_row_lets_another_stream_have_its_turn(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    notes = Notes()
    busy = HostFunction(lambda _: None if 2 in notes.seen else time.sleep(0.001))
    gate = Gate(acl, one)
    for _ in range(1500):
        acl.aclrtLaunchHostFunc(one, busy, None)
    notes(acl, one, 1)
    gate.open()

    notes(acl, two, 2)

    acl.synchronize(one)
    assert notes.seen == [2, 1]


def test_function_behind_a_replay_does_not_run_among_those_of_the_graph(acl: Acl) -> None:
    stream, notes = acl.stream(), Notes()
    graph = captured(acl, stream, lambda: notes(acl, stream, 1, 2))
    gate = Gate(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)
    notes(acl, stream, 3)

    gate.open()
    acl.synchronize(stream)

    assert notes.seen == [1, 2, 3]
    acl.aclmdlRIDestroy(graph)
