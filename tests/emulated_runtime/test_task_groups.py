"""Task groups: tasks of a graph that get other arguments between replays, or during one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import Gate, HostFunction
from .graph_harness import (
    GROUP_INTERRUPTED,
    GROUP_STATUS,
    MODEL_CAPTURED,
    NOT_CAPTURED,
    SPOILED,
    STREAM_CAPTURED,
    begin,
    captured,
    end,
    end_code,
    replay,
)


def group_of(acl: Acl, stream: int, body: Callable[[], object]) -> int:
    acl.aclmdlRICaptureTaskGrpBegin(stream)
    body()
    return acl.last_out("aclmdlRICaptureTaskGrpEnd", stream, kind=ctypes.c_void_p)


def update(acl: Acl, stream: int, group: int, body: Callable[[], object]) -> int:
    acl.aclmdlRICaptureTaskUpdateBegin(stream, group)
    body()
    return acl.code.aclmdlRICaptureTaskUpdateEnd(stream)


class Recorder:
    def __init__(self) -> None:
        self.ran: list[int] = []
        self.released: list[int] = []
        self.run = HostFunction(lambda n: self.ran.append(n or 0))
        self.release = HostFunction(lambda n: self.released.append(n or 0))

    def compute(self, acl: Acl, stream: int, n: int, name: bytes = b"op") -> None:
        acl.emuLaunchCompute(stream, name, self.run, None, n, self.release)

    def compute_code(self, acl: Acl, stream: int, n: int, name: bytes = b"op") -> int:
        return acl.code.emuLaunchCompute(stream, name, self.run, None, n, self.release)

    def host_function(self, acl: Acl, stream: int, n: int) -> None:
        acl.aclrtLaunchHostFunc(stream, self.run, n)


@pytest.mark.parametrize("kind", ["compute", "host_function"])
def test_update_replaces_the_arguments_of_the_groups_tasks_alone(acl: Acl, kind: str) -> None:
    stream, other, tasks = acl.stream(), acl.stream(), Recorder()
    launch = getattr(tasks, kind)
    begin(acl, stream)
    launch(acl, stream, 1)
    group = group_of(acl, stream, lambda: (launch(acl, stream, 2), launch(acl, stream, 3)))
    launch(acl, stream, 4)
    graph = end(acl, stream)
    replay(acl, graph, stream)

    assert update(acl, other, group, lambda: (launch(acl, other, 20), launch(acl, other, 30))) == 0
    acl.synchronize(other)
    replay(acl, graph, stream)

    assert tasks.ran == [1, 2, 3, 4, 1, 20, 30, 4]
    acl.aclmdlRIDestroy(graph)


def test_update_gives_the_old_arguments_back(acl: Acl) -> None:
    stream, tasks = acl.stream(), Recorder()
    begin(acl, stream)
    group = group_of(acl, stream, lambda: tasks.compute(acl, stream, 1))
    graph = end(acl, stream)

    update(acl, stream, group, lambda: tasks.compute(acl, stream, 2))
    acl.synchronize(stream)
    assert tasks.released == [1]
    acl.aclmdlRIDestroy(graph)

    assert (tasks.ran, tasks.released) == ([], [1, 2])


def test_update_happens_in_the_order_of_its_stream(acl: Acl) -> None:
    stream, other, tasks = acl.stream(), acl.stream(), Recorder()
    begin(acl, stream)
    group = group_of(acl, stream, lambda: tasks.compute(acl, stream, 1))
    graph = end(acl, stream)
    gate = Gate(acl, other)

    update(acl, other, group, lambda: tasks.compute(acl, other, 2))
    replay(acl, graph, stream)
    gate.open()
    acl.synchronize(other)
    replay(acl, graph, stream)

    assert tasks.ran == [1, 2]


def test_update_reaches_a_replay_that_waits_before_the_group(acl: Acl) -> None:
    stream, other, tasks, word = acl.stream(), acl.stream(), Recorder(), acl.malloc(64)
    begin(acl, stream)
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    acl.aclrtValueWrite(word, 0, 0, stream)
    group = group_of(acl, stream, lambda: tasks.compute(acl, stream, 1))
    graph = end(acl, stream)

    acl.aclmdlRIExecuteAsync(graph, stream)
    update(acl, other, group, lambda: tasks.compute(acl, other, 2))
    acl.aclrtValueWrite(word, 1, 0, other)
    acl.synchronize(stream)

    assert tasks.ran == [2]


@pytest.mark.parametrize("given", [0, 1, 3])
def test_update_with_another_number_of_tasks_changes_nothing(acl: Acl, given: int) -> None:
    stream, tasks, codes = acl.stream(), Recorder(), []
    begin(acl, stream)
    group = group_of(acl, stream, lambda: [tasks.compute(acl, stream, n) for n in (1, 2)])
    graph = end(acl, stream)

    def body() -> None:
        codes.extend(tasks.compute_code(acl, stream, 10 * n) for n in range(given))

    code = update(acl, stream, group, body)

    assert code == GROUP_INTERRUPTED
    assert codes == [0, 0, GROUP_STATUS][:given]
    replay(acl, graph, stream)
    assert tasks.ran == [1, 2]


def test_update_with_another_kind_of_task_changes_nothing(acl: Acl) -> None:
    stream, tasks, word = acl.stream(), Recorder(), acl.malloc(64)
    begin(acl, stream)
    group = group_of(acl, stream, lambda: tasks.compute(acl, stream, 1))
    graph = end(acl, stream)
    wrong: list[Callable[[], int]] = [
        lambda: tasks.compute_code(acl, stream, 2, b"another op"),
        lambda: acl.code.aclrtLaunchHostFunc(stream, tasks.run, 2),
        lambda: acl.code.aclrtValueWrite(word, 1, 0, stream),
        lambda: acl.code.aclmdlRIExecuteAsync(graph, stream),
    ]

    for call in wrong:
        codes: list[int] = []
        assert update(acl, stream, group, lambda: codes.append(call())) == GROUP_INTERRUPTED  # noqa: B023
        assert codes == [GROUP_STATUS]

    replay(acl, graph, stream)
    assert tasks.ran == [1]


def test_copies_in_a_group_are_frozen(acl: Acl) -> None:
    stream, tasks = acl.stream(), Recorder()
    a, b = acl.malloc(64), acl.malloc(64)
    begin(acl, stream)
    group = group_of(acl, stream, lambda: (acl.copy(a, b, 64, stream), tasks.compute(acl, stream, 1)))
    graph = end(acl, stream)

    same = update(acl, stream, group, lambda: (acl.copy(a, b, 64, stream), tasks.compute(acl, stream, 2)))
    assert same == 0
    changed: list[int] = []
    code = update(
        acl,
        stream,
        group,
        lambda: changed.append(acl.code.aclrtMemcpyAsync(a, 32, b, 32, c.DEVICE_TO_DEVICE, stream)),
    )

    assert (changed, code) == ([GROUP_STATUS], GROUP_INTERRUPTED)
    replay(acl, graph, stream)
    assert tasks.ran == [2]


def test_states_of_a_group(acl: Acl) -> None:
    stream, out = acl.stream(), ctypes.c_void_p()
    code = acl.code
    assert code.aclmdlRICaptureTaskGrpBegin(stream) == NOT_CAPTURED
    assert code.aclmdlRICaptureTaskGrpEnd(stream, ctypes.byref(out)) == NOT_CAPTURED
    begin(acl, stream)
    assert code.aclmdlRICaptureTaskGrpEnd(stream, ctypes.byref(out)) == GROUP_STATUS

    acl.aclmdlRICaptureTaskGrpBegin(stream)

    assert code.aclmdlRICaptureTaskGrpBegin(stream) == GROUP_STATUS
    assert end_code(acl, stream) == GROUP_INTERRUPTED


def test_states_of_an_update(acl: Acl) -> None:
    stream, other, code = acl.stream(), acl.stream(), acl.code
    begin(acl, stream)
    group = group_of(acl, stream, lambda: None)
    assert code.aclmdlRICaptureTaskUpdateBegin(other, group) == MODEL_CAPTURED
    assert code.aclmdlRICaptureTaskUpdateBegin(stream, group) == STREAM_CAPTURED
    assert end_code(acl, stream) == SPOILED  # the call was one on a captured stream

    begin(acl, stream)
    group = group_of(acl, stream, lambda: None)
    graph = end(acl, stream)
    assert code.aclmdlRICaptureTaskUpdateEnd(other) == GROUP_STATUS
    assert code.aclmdlRICaptureTaskUpdateBegin(other, 4711) == c.BAD_HANDLE
    acl.aclmdlRICaptureTaskUpdateBegin(other, group)
    assert code.aclmdlRICaptureTaskUpdateBegin(other, group) == GROUP_STATUS
    assert code.aclmdlRICaptureBegin(other, 0) == GROUP_STATUS
    acl.aclmdlRICaptureTaskUpdateEnd(other)
    acl.synchronize(other)
    acl.aclmdlRIDestroy(graph)
    assert code.aclmdlRICaptureTaskUpdateBegin(other, group) == c.BAD_HANDLE


def test_tasks_of_other_streams_are_not_in_the_group(acl: Acl) -> None:
    stream, other, tasks = acl.stream(), acl.stream(), Recorder()

    def body() -> None:
        group_of(acl, stream, lambda: tasks.host_function(acl, other, 1))

    graph = captured(acl, stream, body)
    acl.synchronize(other)

    replay(acl, graph, stream)
    assert tasks.ran == [1]
