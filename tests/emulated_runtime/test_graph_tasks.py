"""Tasks of a finished graph: looking at them, changing their parameters, conditional tasks, descriptions."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import HostFunction
from .graph_harness import (
    BRANCH_CAPTURING,
    GRAPH_FAILED,
    MODEL_CAPTURED,
    NOT_CAPTURED,
    RUNNING,
    begin,
    captured,
    end,
    end_code,
    fork,
    info,
    join,
    replay,
    streams_left,
)

DEFAULT_TYPE, KERNEL, EVENT_RECORD, EVENT_WAIT, EVENT_RESET, VALUE_WRITE, VALUE_WAIT = range(7)
IF, WHILE, SWITCH = range(3)


class Params(ctypes.Structure):
    """aclmdlRITaskParams; `words` is its union, as 64-bit words."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("rsv0", ctypes.c_uint32 * 3),
        ("group", ctypes.c_void_p),
        ("op_info", ctypes.c_void_p),
        ("op_info_size", ctypes.c_size_t),
        ("rsv1", ctypes.c_uint8 * 32),
        ("words", ctypes.c_uint64 * 16),
    )


class CondParams(ctypes.Structure):
    _fields_ = (
        ("handle", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("size", ctypes.c_uint32),
        ("graphs", ctypes.POINTER(ctypes.c_void_p)),
    )


def streams_of(acl: Acl, graph: int) -> list[int]:
    count = ctypes.c_uint32(0)
    acl.aclmdlRIGetStreams(graph, None, ctypes.byref(count))
    out = (ctypes.c_void_p * count.value)()
    acl.aclmdlRIGetStreams(graph, out, ctypes.byref(count))
    return [handle or 0 for handle in out]


def tasks_of(acl: Acl, stream: int) -> list[int]:
    count = ctypes.c_uint32(0)
    acl.aclmdlRIGetTasksByStream(stream, None, ctypes.byref(count))
    out = (ctypes.c_void_p * count.value)()
    acl.aclmdlRIGetTasksByStream(stream, out, ctypes.byref(count))
    return [handle or 0 for handle in out]


def all_tasks(acl: Acl, graph: int) -> list[int]:
    return [task for stream in streams_of(acl, graph) for task in tasks_of(acl, stream)]


def params_of(acl: Acl, task: int) -> Params:
    params = Params()
    acl.aclmdlRITaskGetParams(task, ctypes.byref(params))
    return params


def test_tasks_are_listed_by_stream_with_type_number_and_parameters(acl: Acl) -> None:
    stream, side = acl.stream(), acl.stream()
    out, back, word = acl.event(), acl.event(), acl.malloc(64)
    run = HostFunction(lambda n: None)
    begin(acl, stream)
    acl.aclrtRecordEvent(out, stream)
    acl.aclrtStreamWaitEvent(side, out)
    acl.aclrtValueWrite(word, 7, 0, side)
    acl.aclrtValueWait(word, 6, c.GEQ, stream)
    acl.emuLaunchCompute(stream, b"op", run, None, 9, None)
    acl.aclrtMemsetAsync(word, 8, 0, 8, side)
    acl.aclrtRecordEvent(back, side)
    acl.aclrtStreamWaitEvent(stream, back)
    graph = end(acl, stream)

    first, second = streams_of(acl, graph)
    kinds, numbers = {}, {}
    for lane in (first, second):
        tasks = tasks_of(acl, lane)
        kinds[lane] = [acl.last_out("aclmdlRITaskGetType", task) for task in tasks]
        numbers[lane] = [acl.last_out("aclmdlRITaskGetSeqId", task, kind=ctypes.c_uint32) for task in tasks]

    assert kinds[first] == [EVENT_RECORD, VALUE_WAIT, KERNEL, EVENT_WAIT]
    assert kinds[second] == [EVENT_WAIT, VALUE_WRITE, DEFAULT_TYPE, EVENT_RECORD]
    assert sorted(numbers[first] + numbers[second]) == list(range(8))
    record, wait, compute, joined = (params_of(acl, task) for task in tasks_of(acl, first))
    assert list(record.words[:2]) == [out, c.EVENT_SYNC]
    assert list(wait.words[:3]) == [word, 6, c.GEQ]
    assert compute.words[2] == 9
    assert joined.words[0] == back
    assert list(params_of(acl, tasks_of(acl, second)[1]).words[:2]) == [word, 7]
    acl.aclmdlRIDestroy(graph)
    assert acl.code.aclmdlRIGetStreams(graph, None, ctypes.byref(ctypes.c_uint32())) == c.BAD_HANDLE


def test_lists_need_room(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    graph = captured(acl, stream, lambda: [acl.aclrtValueWrite(word, n, 0, stream) for n in range(3)])
    (own,) = streams_of(acl, graph)
    count, room = ctypes.c_uint32(2), (ctypes.c_void_p * 3)()

    assert acl.code.aclmdlRIGetTasksByStream(own, room, ctypes.byref(count)) == c.INVALID_PARAM

    assert count.value == 3
    assert acl.code.aclmdlRIGetTasksByStream(stream, room, ctypes.byref(count)) == c.INVALID_PARAM


def test_task_handles_end_with_their_graph(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    graph = captured(acl, stream, lambda: acl.aclrtValueWrite(word, 1, 0, stream))
    (task,) = all_tasks(acl, graph)

    acl.aclmdlRIDestroy(graph)

    assert acl.code.aclmdlRITaskGetParams(task, ctypes.byref(Params())) == c.BAD_HANDLE


def test_set_parameters_count_from_the_update_on(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)

    def body() -> None:
        acl.aclrtValueWait(word, 1, c.EQ, stream)
        acl.aclrtValueWrite(word, 2, 0, stream)

    graph = captured(acl, stream, body)
    wait, write = all_tasks(acl, graph)
    for task, index, value in ((wait, 1, 11), (write, 0, word + 8), (write, 1, 22)):
        params = params_of(acl, task)
        params.words[index] = value
        acl.aclmdlRITaskSetParams(task, ctypes.byref(params))
    assert list(params_of(acl, write).words[:2]) == [word + 8, 22]

    acl.write_word(word, 1)
    replay(acl, graph, stream)
    assert [acl.read_word(word + i) for i in (0, 8)] == [2, 0]
    acl.aclmdlRIUpdate(graph)
    acl.write_word(word, 11)
    replay(acl, graph, stream)
    assert [acl.read_word(word + i) for i in (0, 8)] == [11, 22]


def test_parameters_are_checked_when_they_are_set(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    a = acl.malloc(64)

    def body() -> None:
        acl.aclrtValueWrite(word, 1, 0, stream)
        acl.copy(a, word, 8, stream)

    graph = captured(acl, stream, body)
    write, copy = all_tasks(acl, graph)
    params = params_of(acl, write)
    set_code = acl.code.aclmdlRITaskSetParams

    for wrong in (word + 4, 4096):
        params.words[0] = wrong
        assert set_code(write, ctypes.byref(params)) == c.INVALID_PARAM
    params = params_of(acl, write)  # right in all but its type
    params.type = VALUE_WAIT
    assert set_code(write, ctypes.byref(params)) == c.INVALID_PARAM
    assert set_code(copy, ctypes.byref(params_of(acl, copy))) == c.UNSUPPORTED


def test_disabled_task_does_nothing(acl: Acl) -> None:
    stream, side, word = acl.stream(), acl.stream(), acl.malloc(64)
    begin(acl, stream)
    fork(acl, stream, side)
    acl.aclrtValueWrite(word, 1, 0, stream)
    acl.aclrtValueWrite(word + 8, 1, 0, stream)
    join(acl, stream, side)
    graph = end(acl, stream)
    record, write, *_ = tasks_of(acl, streams_of(acl, graph)[0])

    acl.aclmdlRITaskDisable(write)
    assert acl.code.aclmdlRITaskDisable(record) == c.UNSUPPORTED  # the side stream waits for it
    acl.aclmdlRIUpdate(graph)
    replay(acl, graph, stream)

    assert [acl.read_word(word), acl.read_word(word + 8)] == [0, 1]


def test_graph_is_updated_neither_while_captured_nor_while_it_runs(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    begin(acl, stream)
    assert acl.code.aclmdlRIUpdate(info(acl, stream)[1]) == MODEL_CAPTURED
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    graph = end(acl, stream)
    acl.aclmdlRIExecuteAsync(graph, stream)

    assert acl.code.aclmdlRIUpdate(graph) == RUNNING

    acl.write_word(word, 1)
    acl.synchronize(stream)
    acl.aclmdlRIUpdate(graph)


# Conditional tasks.


class Conditional:
    """A graph with one conditional task, whose branches and condition tests fill."""

    def __init__(
        self, acl: Acl, kind: int, branches: list[Callable[[int], object]], default: int = 0
    ) -> None:
        self.acl, self.stream, body_stream = acl, acl.stream(), acl.stream()
        begin(acl, self.stream)
        self.parent = info(acl, self.stream)[1] or 0
        self.handle = acl.last_out("aclmdlRICondHandleCreate", self.parent, default, 1, kind=ctypes.c_void_p)
        self.word = acl.last_out("aclmdlRICondHandleGetCondPtr", self.handle, kind=ctypes.c_void_p)
        self.before(self.stream)
        self.graphs = (ctypes.c_void_p * len(branches))()
        params = CondParams(self.handle, kind, len(branches), self.graphs)
        acl.library.aclmdlRIAddCondTask.argtypes = [CondParams, ctypes.c_void_p, ctypes.c_uint32]
        assert acl.library.aclmdlRIAddCondTask(params, self.stream, 0) == 0
        for graph, body in zip(self.graphs, branches, strict=True):
            acl.aclmdlRICaptureToModelRIBegin(body_stream, graph, 0)
            body(body_stream)
            assert end(acl, body_stream) == graph
        self.graph = end(acl, self.stream)

    def before(self, stream: int) -> None:
        self.source = self.acl.malloc_host(64)
        self.acl.copy(self.word, self.source, 8, stream, c.HOST_TO_DEVICE)

    def replay(self, value: int) -> None:
        ctypes.c_uint64.from_address(self.source).value = value
        replay(self.acl, self.graph, self.stream)


@pytest.mark.parametrize("kind", [IF, SWITCH])
@pytest.mark.parametrize("value", [0, 1, 2, 7])
def test_condition_chooses_the_branch_at_each_replay(acl: Acl, kind: int, value: int) -> None:
    words = acl.malloc(64)
    conditional = Conditional(
        acl, kind, [lambda s, i=i: acl.aclrtValueWrite(words + 8 * i, 1, 0, s) for i in range(2)]
    )

    conditional.replay(value)

    chosen = (0 if value else 1) if kind == IF else value
    assert [acl.read_word(words + 8 * i) for i in range(2)] == [int(i == chosen) for i in range(2)]
    acl.aclmdlRIDestroy(conditional.graph)


def test_if_without_else_does_nothing(acl: Acl) -> None:
    word = acl.malloc(64)
    conditional = Conditional(acl, IF, [lambda s: acl.aclrtValueWrite(word, 1, 0, s)])

    conditional.replay(0)
    assert acl.read_word(word) == 0
    conditional.replay(1)
    assert acl.read_word(word) == 1


def test_while_runs_its_body_until_the_condition_is_0(acl: Acl) -> None:
    runs: list[int] = []

    def body(stream: int) -> None:
        acl.aclrtLaunchHostFunc(stream, count_down, None)

    def count(_: int | None) -> None:
        runs.append(1)
        word = ctypes.c_uint64.from_address(acl.library.emuHostAlias(ctypes.c_void_p(holder[0].word)))
        word.value -= 1

    count_down = HostFunction(count)
    holder: list[Conditional] = []
    holder.append(Conditional(acl, WHILE, [body]))

    holder[0].replay(5)

    assert len(runs) == 5


def test_endless_while_can_be_aborted(acl: Acl) -> None:
    conditional = Conditional(acl, WHILE, [lambda s: None])
    ctypes.c_uint64.from_address(conditional.source).value = 1
    acl.aclmdlRIExecuteAsync(conditional.graph, conditional.stream)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(conditional.stream, 20) == c.STREAM_TIMEOUT

    acl.aclrtStreamAbort(conditional.stream)

    acl.synchronize(conditional.stream)


def test_condition_has_its_default_at_the_start_of_each_replay(acl: Acl) -> None:
    word = acl.malloc(64)

    class Defaulted(Conditional):
        def before(self, stream: int) -> None:
            pass

    conditional = Defaulted(acl, IF, [lambda s: acl.aclrtValueWrite(word, 1, 0, s)], default=1)
    for _ in range(2):
        acl.write_word(word, 0)
        acl.write_word(conditional.word, 0)
        replay(acl, conditional.graph, conditional.stream)
        assert acl.read_word(word) == 1


def test_branch_may_have_several_streams(acl: Acl) -> None:
    side, word = acl.stream(), acl.malloc(64)

    def body(stream: int) -> None:
        fork(acl, stream, side)
        acl.aclrtValueWait(word, 1, c.EQ, stream)
        acl.aclrtValueWrite(word, 1, 0, side)
        join(acl, stream, side)

    conditional = Conditional(acl, IF, [body])

    for _ in range(2):
        acl.write_word(word, 0)
        conditional.replay(1)
        assert acl.read_word(word) == 1


def test_failing_task_in_a_branch_fails_the_replay(acl: Acl) -> None:
    a = acl.malloc(64)
    conditional = Conditional(acl, IF, [lambda s: acl.copy(a, a + 32, 32, s)])
    acl.emuFailTask(None, 2, c.LINK_ERROR)  # the first copy is the condition's

    ctypes.c_uint64.from_address(conditional.source).value = 1
    acl.aclmdlRIExecuteAsync(conditional.graph, conditional.stream)

    assert acl.sync_code(conditional.stream) == GRAPH_FAILED
    assert f"failed with {c.LINK_ERROR}" in acl.message()
    conditional.replay(1)


def test_graph_does_not_end_while_a_branch_is_captured(acl: Acl) -> None:
    stream, inner = acl.stream(), acl.stream()
    begin(acl, stream)
    parent = info(acl, stream)[1]
    handle = acl.last_out("aclmdlRICondHandleCreate", parent, 0, 1, kind=ctypes.c_void_p)
    graphs = (ctypes.c_void_p * 1)()
    acl.library.aclmdlRIAddCondTask.argtypes = [CondParams, ctypes.c_void_p, ctypes.c_uint32]
    assert acl.library.aclmdlRIAddCondTask(CondParams(handle, IF, 1, graphs), stream, 0) == 0
    acl.aclmdlRICaptureToModelRIBegin(inner, graphs[0], 0)

    assert end_code(acl, stream) == BRANCH_CAPTURING

    assert acl.code.aclmdlRICaptureToModelRIBegin(acl.stream(), graphs[0], 0) == MODEL_CAPTURED
    assert end_code(acl, inner) == 0
    assert acl.code.aclmdlRICaptureToModelRIBegin(inner, graphs[0], 0) == c.INVALID_PARAM
    graph = end(acl, stream)
    assert acl.code.aclmdlRICaptureToModelRIBegin(inner, graph, 0) == c.INVALID_PARAM
    assert acl.code.aclmdlRIExecuteAsync(graphs[0], stream) == c.INVALID_PARAM
    assert acl.code.aclmdlRIDestroy(graphs[0]) == c.INVALID_PARAM


def test_branch_runs_and_ends_with_its_graph_only(acl: Acl) -> None:
    conditional = Conditional(acl, IF, [lambda s: None])
    (branch,) = conditional.graphs

    assert acl.code.aclmdlRIExecuteAsync(branch, conditional.stream) == c.INVALID_PARAM
    assert acl.code.aclmdlRIExecute(branch, -1) == c.INVALID_PARAM
    assert acl.code.aclmdlRIDestroy(branch) == c.INVALID_PARAM
    conditional.replay(1)


def test_branches_and_conditions_end_with_their_graph(acl: Acl) -> None:
    before = streams_left(acl)
    conditional = Conditional(acl, IF, [lambda s: None, lambda s: None])
    own = before - streams_left(acl) - 2  # two are the test's
    assert own == 3

    acl.aclmdlRIDestroy(conditional.graph)

    assert before - streams_left(acl) == 2
    word = ctypes.c_void_p()
    assert acl.code.aclmdlRICondHandleGetCondPtr(conditional.handle, ctypes.byref(word)) == c.BAD_HANDLE
    assert acl.code.aclrtValueWrite(conditional.word, 1, 0, conditional.stream) == c.INVALID_PARAM
    for graph in conditional.graphs:
        assert acl.code.aclmdlRIExecuteAsync(graph, conditional.stream) == c.BAD_HANDLE


@pytest.mark.parametrize(("kind", "size"), [(IF, 0), (IF, 3), (WHILE, 2), (SWITCH, 0), (3, 1)])
def test_conditional_task_of_wrong_size_is_refused(acl: Acl, kind: int, size: int) -> None:
    stream = acl.stream()
    begin(acl, stream)
    handle = acl.last_out("aclmdlRICondHandleCreate", info(acl, stream)[1], 0, 0, kind=ctypes.c_void_p)
    acl.library.aclmdlRIAddCondTask.argtypes = [CondParams, ctypes.c_void_p, ctypes.c_uint32]
    params = CondParams(handle, kind, size, (ctypes.c_void_p * 4)())

    assert acl.library.aclmdlRIAddCondTask(params, stream, 0) == c.INVALID_PARAM
    assert acl.library.aclmdlRIAddCondTask(params, stream, 1) == c.INVALID_PARAM

    assert end_code(acl, stream) == 0


def test_conditional_task_belongs_to_the_capture_of_its_condition(acl: Acl) -> None:
    stream, other = acl.stream(), acl.stream()
    begin(acl, stream)
    parent = info(acl, stream)[1]
    handle = acl.last_out("aclmdlRICondHandleCreate", parent, 0, 0, kind=ctypes.c_void_p)
    acl.library.aclmdlRIAddCondTask.argtypes = [CondParams, ctypes.c_void_p, ctypes.c_uint32]
    params = CondParams(handle, IF, 1, (ctypes.c_void_p * 1)())

    assert acl.library.aclmdlRIAddCondTask(params, other, 0) == NOT_CAPTURED
    begin(acl, other)
    assert acl.library.aclmdlRIAddCondTask(params, other, 0) == c.INVALID_PARAM

    end_code(acl, other)
    graph = end(acl, stream)
    out = ctypes.c_void_p()
    assert acl.code.aclmdlRICondHandleCreate(graph, 0, 0, ctypes.byref(out)) == NOT_CAPTURED


# Descriptions.


def test_json_names_tasks_streams_edges_and_parameters(acl: Acl, tmp_path: Path) -> None:
    stream, side = acl.stream(), acl.stream()
    a, b, path = acl.malloc(64), acl.malloc(64), tmp_path / "graph.json"
    begin(acl, stream)
    fork(acl, stream, side)
    acl.copy(a, b, 48, side)
    acl.aclrtValueWait(a, 3, c.GEQ, stream)
    join(acl, stream, side)
    graph = end(acl, stream)
    acl.aclmdlRISetName(graph, b'a "quoted" name')

    acl.aclmdlRIDebugJsonPrint(graph, str(path).encode(), 1)

    tasks = json.loads(path.read_text())
    names = [task["name"] for task in tasks]
    kinds = [task["args"]["Task Type"] for task in tasks]
    assert kinds == ["EVENT_RECORD", "MEM_WAIT_VALUE", "EVENT_WAIT", "EVENT_WAIT", "DEFAULT", "EVENT_RECORD"]
    assert names[0].removeprefix("EVENT_RECORD") == names[3].removeprefix("EVENT_WAIT")
    assert names[5].removeprefix("EVENT_RECORD") == names[2].removeprefix("EVENT_WAIT")
    assert names[0] != names[5]
    assert tasks[4]["args"]["Source"] == hex(b)
    assert tasks[4]["args"]["Destination"] == hex(a)
    assert tasks[4]["args"]["Source Bytes"] == 48
    assert (tasks[1]["args"]["Value"], tasks[1]["args"]["Flag"]) == (3, c.GEQ)
    assert len({task["tid"] for task in tasks}) == 2
    assert {task["pid"] for task in tasks} == {'a "quoted" name'}
    assert acl.code.aclmdlRIDebugJsonPrint(graph, str(path).encode(), 2) == c.INVALID_PARAM
    assert acl.code.aclmdlRIDebugJsonPrint(graph, b"/nowhere/graph.json", 0) != 0


def test_graph_is_printed_for_people(acl: Acl, capfd: pytest.CaptureFixture[str]) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    graph = captured(acl, stream, lambda: acl.aclrtValueWrite(word, 5, 0, stream))

    acl.aclmdlRIDebugPrint(graph)
    acl.library.fflush(None)

    assert f"MEM_WRITE_VALUE_{word}" in capfd.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "aclmdlRIBuildBegin",
        "aclmdlRIBindStream",
        "aclmdlRIEndTask",
        "aclmdlRIBuildEnd",
        "aclmdlRIUnbindStream",
        "aclmdlRIKernelTaskGetAttribute",
    ],
)
def test_what_is_not_emulated_is_refused_by_name(acl: Acl, name: str) -> None:
    assert getattr(acl.code, name)(0, 0, 0) == c.UNSUPPORTED
    assert name in acl.message()
