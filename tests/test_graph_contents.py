"""What a captured forward's graph holds, and what the host does for it, by the emulator's trace: local memory
only, no synchronisation, no query."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.test_emulator_modes import answer
from torch_llm_datadist.emulator.race_trace import read_trace

Event = dict[str, Any]
Moment = tuple[str, float, float]

# Only the layer ops: what kernels do is not looked at here. Moments are those of the trace's clock.
PROGRAM = """
    import json, time
    from tests import transfers
    from tests.forwards import Receiver, Sender
    from torch_llm_datadist import ops
    LAYERS = transfers.LAYERS
    here, there = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(here, there)
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))

    def push():
        for layer in range(LAYERS):
            ops.push_layer(sender.status, sender.status, layer, sender.binding.id)
        ops.finish(sender.status, sender.status, sender.binding.id)

    def wait():
        for layer in range(LAYERS):
            ops.wait_layer(receiver.status, receiver.status, layer, receiver.binding.id)

    def marked(name, call):
        began = time.monotonic_ns()  # the trace's clock
        call()
        moments.append((name, began / 1e3, time.monotonic_ns() / 1e3))

    graphs, moments = [], []
    for device, body in ((0, push), (1, wait)):
        torch.npu.synchronize(device)
        graph, stream = torch.npu.NPUGraph(), torch.npu.Stream(device)
        with torch.npu.device(device), torch.npu.graph(graph, stream=stream):
            marked("capture", body)
        graphs.append((graph, stream))
    task = sender.prepare(2, [0], [3])
    sender.binding.bind([task])
    receiver.binding.bind([task.ticket])
    for graph, stream in graphs:
        with torch.npu.stream(stream):
            marked("replay", graph.replay)
    for _, stream in graphs:
        stream.synchronize()
    assert sender.status.item() == receiver.status.item() == 0
    for state in (here, there):
        state.datadist.finalize()
    print(json.dumps(moments))
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Moment], list[Event]]:
    directory = tmp_path_factory.mktemp("trace")
    moments = json.loads(answer(PROGRAM, TORCH_LLM_DATADIST_EMULATE_TRACE=str(directory)))
    (trace,) = directory.glob("trace.*.json")
    return moments, list(read_trace(trace))


def calls(events: list[Event], thread: int, begin: float, end: float) -> list[str]:
    return [
        e["name"]
        for e in events
        if e.get("cat") == "call" and e["tid"] == thread and begin <= e["ts"] and e["ts"] + e["dur"] <= end
    ]


def test_a_graph_touches_local_memory_only_by_words_and_the_status(
    traced: tuple[list[Moment], list[Event]],
) -> None:
    _, events = traced
    device_of = {
        e["args"]["spot"][0]: e["args"]["device"]
        for e in events
        if e.get("cat") == "memory" and e["name"] == "allocated"
    }
    replays = [e for e in events if e["name"] == "replay ended"]
    assert len(replays) == 2
    for replay in replays:
        tasks = [e for e in events if e.get("cat") == "task" and e["ph"] == "X" and e["tid"] == replay["tid"]]
        assert {e["args"]["kind"] for e in tasks} == {"value wait", "value write", "copy"}
        for args in (e["args"] for e in tasks):
            assert args.get("bytes", 4) == 4  # of the status
            touched = [*args.get("reads", []), *args.get("writes", [])] or [args["word"]]
            assert {device_of[spot[0]] for spot in touched} == {args["device"]}, args


def test_nothing_is_synchronised_or_queried_for_a_capture_or_a_replay(
    traced: tuple[list[Moment], list[Event]],
) -> None:
    """By the thread that calls the ops, nor by the one on which torch_npu queues what they ask for."""
    moments, events = traced
    assert [name for name, _, _ in moments] == ["capture", "capture", "replay", "replay"]
    main = next(e["tid"] for e in events if e["name"] == "aclmdlRICaptureBegin")
    queue = {e["tid"] for e in events if e["ph"] == "M" and e["args"].get("name") == "thread acl_thread"}
    for name, begin, end in moments:
        made = [call for thread in {main, *queue} for call in calls(events, thread, begin, end)]
        assert made, name
        assert not [call for call in made if "Synchronize" in call or "Query" in call], (name, made)
