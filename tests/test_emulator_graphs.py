"""torch.npu.NPUGraph on the emulated runtime, as its users use it."""

from __future__ import annotations

import copy
import gc
import json
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401
from torch import nn

from tests.emulated_runtime.acl_harness import peer


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    torch.npu.synchronize()


def ones(*sizes: int) -> torch.Tensor:
    tensor = torch.ones(*sizes, device="npu")
    torch.npu.synchronize()
    return tensor


def captured(body: Callable[[], object], **options: object) -> torch.npu.NPUGraph:
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, **options):
        body()
    return graph


def side_stream() -> torch.npu.Stream:
    """One that is neither current nor what captures run on: the pool of streams gives each out again."""
    while True:
        stream = torch.npu.Stream()
        if stream not in (torch.npu.current_stream(), torch.npu.graph.default_capture_stream):
            return stream


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_replay_reads_the_inputs_of_the_moment() -> None:
    x, out = ones(4), ones(4)
    graph = captured(lambda: torch.add(x, x, out=out))

    for value in (3.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert out.tolist() == [2 * value] * 4


def test_capture_computes_nothing() -> None:
    x = ones(4)

    captured(lambda: x.add_(1))

    assert x.tolist() == [1] * 4


def test_several_streams_take_part_and_are_joined() -> None:
    x, sides = ones(4), [side_stream() for _ in range(3)]
    parts: list[torch.Tensor] = []
    out = ones(4)

    def body() -> None:
        main = torch.npu.current_stream()
        for i, side in enumerate(sides):
            side.wait_stream(main)
            with torch.npu.stream(side):
                parts.append(x * (i + 1))
        for side in sides:
            main.wait_stream(side)
        out.copy_(parts[0] + parts[1] + parts[2])

    graph = captured(body)

    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
        assert out.tolist() == [6 * value] * 4


def test_events_inside_order_two_streams() -> None:
    x, side = ones(4), side_stream()
    there, back = torch.npu.Event(), torch.npu.Event()

    def body() -> None:
        x.add_(1)
        there.record()
        with torch.npu.stream(side):
            there.wait()
            x.mul_(10)
            back.record()
        back.wait()
        x.add_(1)

    graph = captured(body)
    graph.replay()

    assert x.tolist() == [21] * 4


def test_graphs_share_a_pool_of_memory() -> None:
    pool, x = torch.npu.graph_pool_handle(), ones(1 << 20)
    outs: list[torch.Tensor] = []
    first = captured(lambda: outs.append(x + 1), pool=pool)
    second = captured(lambda: outs.append(x * 3), pool=pool)
    third = captured(lambda: outs.append(x * 4), pool=first.pool())

    for graph in (first, second, third):
        graph.replay()

    assert first.pool() == second.pool() == third.pool()
    assert [out[0].item() for out in outs] == [2, 3, 4]


def test_memory_of_a_graph_is_kept_until_it_is_reset() -> None:
    x = ones(1 << 20)
    torch.npu.empty_cache()
    before = torch.npu.memory_reserved()
    graph = captured(lambda: (x + 1).mul_(2))
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() > before

    graph.reset()
    torch.npu.empty_cache()

    assert torch.npu.memory_reserved() == before


def test_reset_graph_can_be_captured_again() -> None:
    x = ones(4)
    graph = captured(lambda: x.add_(1))
    graph.replay()
    graph.reset()
    with torch.npu.graph(graph):
        x.mul_(5)

    graph.replay()

    assert x.tolist() == [10] * 4


def test_compute_of_a_graph_goes_with_it() -> None:
    # A CPU tensor that the op carries along is freed when the graph is.
    x, held = ones(4), torch.full((), 7.0)
    graph = captured(lambda: x.add_(held))
    graph.replay()
    assert x.tolist() == [8] * 4
    dead = weakref.ref(graph)

    del graph
    gc.collect()

    assert dead() is None
    held.fill_(0)
    assert x.tolist() == [8] * 4


def test_replays_with_compute_start_no_threads_after_the_first() -> None:
    x, side = ones(256, 256), side_stream()
    outs: list[torch.Tensor] = []

    def body() -> None:
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            outs.append(x @ x)
        outs.append(x @ x)
        torch.npu.current_stream().wait_stream(side)

    graph = captured(body)
    graph.replay()
    torch.npu.synchronize()
    before = threads()

    for _ in range(100):
        graph.replay()
    torch.npu.synchronize()

    assert threads() == before


@pytest.mark.races_on_purpose("no order is asked for, both have to run")
def test_replays_on_two_streams_are_both_done() -> None:
    x, other = ones(4), side_stream()
    graph = captured(lambda: x.add_(1))

    graph.replay()
    with torch.npu.stream(other):
        graph.replay()
    torch.npu.synchronize()

    assert x.tolist() == [3] * 4


# Random numbers.


def test_replays_draw_the_numbers_that_eager_ops_would() -> None:
    graph_numbers: list[torch.Tensor] = []
    graph = captured(
        lambda: graph_numbers.extend([torch.rand(8, device="npu"), torch.randn(8, device="npu")])
    )
    torch.npu.manual_seed(11)
    eager = [(torch.rand(8, device="npu").cpu(), torch.randn(8, device="npu").cpu()) for _ in range(3)]
    torch.npu.manual_seed(11)

    for uniform, normal in eager:
        graph.replay()
        torch.testing.assert_close(graph_numbers[0].cpu(), uniform, rtol=0, atol=0)
        torch.testing.assert_close(graph_numbers[1].cpu(), normal, rtol=0, atol=0)
    assert not torch.equal(eager[0][0], eager[1][0])


def test_capture_draws_nothing() -> None:
    torch.npu.manual_seed(5)
    expected = torch.rand(8, device="npu").cpu()
    torch.npu.manual_seed(5)

    captured(lambda: torch.rand(8, device="npu"))

    torch.testing.assert_close(torch.rand(8, device="npu").cpu(), expected, rtol=0, atol=0)


def test_generator_of_its_own_advances_with_the_replays() -> None:
    generator = torch.Generator(device="npu").manual_seed(3)
    numbers: list[torch.Tensor] = []
    graph = captured(lambda: numbers.append(torch.rand(8, device="npu", generator=generator)))
    before = torch.npu.get_rng_state()

    graph.replay()
    first = numbers[0].cpu()
    graph.replay()

    assert not torch.equal(first, numbers[0].cpu())
    assert torch.equal(torch.npu.get_rng_state(), before)
    generator.manual_seed(3)
    graph.replay()
    torch.testing.assert_close(numbers[0].cpu(), first, rtol=0, atol=0)


def test_dropout_in_a_graph_has_another_mask_at_each_replay() -> None:
    x, dropout = ones(256), nn.Dropout(0.5)
    outs: list[torch.Tensor] = []
    graph = captured(lambda: outs.append(dropout(x)))

    graph.replay()
    first = outs[0].cpu()
    graph.replay()

    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(first, outs[0].cpu())


# Gates, groups, host functions, branches.


def test_external_event_holds_a_replay_until_it_is_recorded() -> None:
    x, gate, other = ones(4), torch.npu.ExternalEvent(), side_stream()

    def body() -> None:
        stream = torch.npu.current_stream()
        gate.wait(stream)
        gate.reset(stream)
        x.add_(1)

    graph = captured(body)
    for n in range(2):
        graph.replay()
        done = torch.npu.Event()
        done.record()
        assert not done.query()
        assert not torch.npu.current_stream().query()

        gate.record(other)

        assert x.tolist() == [2 + n] * 4


def test_task_group_gets_other_arguments() -> None:
    x, one, other, out = ones(4), ones(4), ones(4) * 5, ones(4)
    handles: list[object] = []

    def body() -> None:
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.add(x, one, out=out)
        handles.append(torch.npu.graph_task_group_end(stream))
        out.mul_(2)

    graph = captured(body)
    update = side_stream()
    graph.replay()
    assert out.tolist() == [4] * 4

    with torch.npu.stream(update):
        torch.npu.graph_task_update_begin(update, handles[0])
        torch.add(x, other, out=out)
        torch.npu.graph_task_update_end(update)
    update.synchronize()
    for _ in range(2):
        graph.replay()
        assert out.tolist() == [12] * 4


def test_update_reaches_a_replay_that_waits_for_it() -> None:
    # The order of NPUGraph.update: the replay is under way, and an event of the update's stream lets it on.
    x, other, out, gate = ones(4), ones(4) * 5, ones(4), torch.npu.ExternalEvent()
    handles: list[object] = []

    def body() -> None:
        stream = torch.npu.current_stream()
        gate.wait(stream)
        gate.reset(stream)
        torch.npu.graph_task_group_begin(stream)
        torch.add(x, x, out=out)
        handles.append(torch.npu.graph_task_group_end(stream))

    graph = captured(body)
    update = side_stream()
    graph.replay()
    with torch.npu.stream(update):
        torch.npu.graph_task_update_begin(update, handles[0])
        torch.add(x, other, out=out)
        torch.npu.graph_task_update_end(update)
        gate.record(update)

    assert out.tolist() == [6] * 4


def test_update_with_another_op_is_refused() -> None:
    x, out = ones(4), ones(4)
    handles: list[object] = []

    def body() -> None:
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.add(x, x, out=out)
        handles.append(torch.npu.graph_task_group_end(stream))

    graph = captured(body)
    update = side_stream()
    with torch.npu.stream(update):
        torch.npu.graph_task_update_begin(update, handles[0])
        torch.mul(x, x, out=out)
        with pytest.raises(RuntimeError, match="107034"):
            torch.npu.graph_task_update_end(update)

    graph.replay()
    assert out.tolist() == [2] * 4


def test_host_function_runs_at_each_replay() -> None:
    x, stream, ran = ones(4), side_stream(), []
    torch.npu._subscribe_report(stream)

    def body() -> None:
        x.add_(1)
        torch.npu._launch_host_func(stream, lambda n: ran.append(n), 1)
        x.add_(1)

    graph = captured(body, stream=stream)
    assert ran == []

    for _ in range(2):
        graph.replay()
    torch.npu.synchronize()
    torch.npu._unsubscribe_report(stream)

    assert ran == [1, 1]
    assert x.tolist() == [5] * 4


@pytest.mark.parametrize("taken", [False, True])
def test_branch_of_a_graph_runs_when_its_predicate_holds(taken: bool) -> None:
    predicate, x = torch.tensor(taken, device="npu"), ones(4)
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        graph.begin_capture_to_if_node(predicate)
        x.add_(1)
        graph.end_capture_to_conditional_node()

    graph.replay()

    assert x.tolist() == [2 if taken else 1] * 4


# Training.


def test_graphed_module_trains_as_the_module_does() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).npu()
    plain = copy.deepcopy(module)
    graphed = torch.npu.make_graphed_callables(module, (torch.randn(3, 8, device="npu", requires_grad=True),))

    for step in range(3):
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(step))
        results = []
        for one in (graphed, plain):
            inputs = x.npu().requires_grad_()
            one.zero_grad()
            out = one(inputs)
            out.square().sum().backward()
            grads = [parameter.grad.cpu() for parameter in one.parameters()]
            results.append([out.detach().cpu(), inputs.grad.cpu(), *grads])
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


# What users see when a capture goes wrong.


def refused(body: Callable[[], object]) -> str:
    """What the refused call raises. Its capture fails, and the device works on."""
    graph, message = torch.npu.NPUGraph(), ""
    with pytest.raises(RuntimeError, match="507903"), torch.npu.graph(graph):  # noqa: PT012
        try:
            body()
        except RuntimeError as error:
            message = str(error)
    torch.npu.synchronize()
    assert (ones(2) + 1).tolist() == [2, 2]
    return message


def test_reading_a_tensor_in_a_capture_is_107030() -> None:
    x = ones(4)

    message = refused(lambda: x.cpu())

    assert "107030" in message
    assert "aclrtMemcpy" in message


def test_synchronizing_in_a_capture_is_107027() -> None:
    assert "107027" in refused(lambda: torch.npu.current_stream().synchronize())
    assert "107027" in refused(lambda: torch.npu.synchronize())


def test_waiting_for_a_captured_event_is_107028() -> None:
    event = torch.npu.Event()

    def body() -> None:
        event.record()
        event.synchronize()

    assert "107028" in refused(body)


def test_waiting_for_an_event_from_outside_is_107024() -> None:
    # In a process of its own: the wait fails in the task queue, and torch_npu drops all that comes after.
    program = """
    import torch_llm_datadist.emulator as emulator
    emulator.enable()
    import torch, torch_npu
    x, event = torch.ones(4, device="npu"), torch.npu.Event()
    event.record()
    graph = torch.npu.NPUGraph()
    try:
        with torch.npu.graph(graph):
            torch.npu.current_stream().wait_event(event)
            x.add_(1)
    except RuntimeError as error:
        say("107024" in str(error) or "507903" in str(error))
    os._exit(0)
    """
    with peer(program) as other:
        assert other.hear() == "True"


def test_stream_that_is_not_joined_is_107025() -> None:
    x, side = ones(4), side_stream()

    def body() -> None:
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            x.add_(1)

    with pytest.raises(RuntimeError, match="107025"):
        captured(body)

    assert (ones(2) + 1).tolist() == [2, 2]


def test_failing_op_in_a_replay_is_507011() -> None:
    # In a process of its own: nothing runs in one where a task of torch_npu's streams failed.
    program = """
    import torch_llm_datadist.emulator as emulator
    emulator.enable()
    import torch, torch_npu
    table, rows = torch.ones(4, 2, device="npu"), torch.tensor([1], device="npu")
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        out = table.index_select(0, rows)
    graph.replay()
    say(out.tolist())
    rows.fill_(9)
    graph.replay()
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        say("507011" in str(error), "index_select" in str(error))
    os._exit(0)
    """
    with peer(program) as other:
        assert other.hear() == "[[1.0, 1.0]]"
        assert other.hear() == "True True"


def test_dump_shows_tasks_streams_and_edges(tmp_path: Path) -> None:
    x, side, path = ones(4), side_stream(), tmp_path / "graph.json"

    def body() -> None:
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            x.add_(1)
        torch.npu.current_stream().wait_stream(side)

    graph = captured(body)
    graph.debug_dump(str(path))

    tasks = json.loads(path.read_text())
    kinds = sorted(task["args"]["Task Type"] for task in tasks)
    assert kinds == ["EVENT_RECORD", "EVENT_RECORD", "EVENT_WAIT", "EVENT_WAIT", "KERNEL"]
    assert any("add_" in task["name"] for task in tasks)
    aligned = json.loads((tmp_path / "graph.aligned.json").read_text())
    assert {"s", "f"} <= {event["ph"] for event in aligned}  # arrows from records to waits
