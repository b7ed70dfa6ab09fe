"""What a profiler's timeline says: each op on the host, and each transfer on its link's stream, is a named
span with bytes, blocks, peer and layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_npu

from tests import instances, transfers
from tests.forwards import Forward, Receiver, Sender, eager
from tests.test_emulator_modes import answer
from tests.transfers import BLOCK_BYTES, LAYERS
from torch_llm_datadist.emulator.race_trace import read_trace

Pair = tuple[SimpleNamespace, SimpleNamespace]
Event = dict[str, Any]
PEER = r"cluster 2 \(.*\)"
BLOCKS = 2
LAYER_BYTES = 2 * BLOCKS * BLOCK_BYTES


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    here, there = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(here, there)
    yield here, there
    for state in (here, there):
        state.datadist.finalize()


def forward(pair: Pair, run: Callable[..., Forward] = eager, blocks: Sequence[int] = range(BLOCKS)) -> None:
    here, there = pair
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    sends, receives = run(0, sender.forward), run(1, receiver.forward)
    task = sender.prepare(2, list(blocks), [5 - block for block in blocks])
    sender.binding.bind([task])
    receiver.binding.bind([task.ticket])
    sends()
    receives()
    assert receiver.look()[0] == 0
    torch.npu.set_device(0)
    instances.push_blocks(here, 2, [1], [5])


def check_spans_of_ops(names: list[str]) -> None:
    moved = r"torch_llm_datadist::push layer={} blocks={} bytes={} peer=" + PEER
    for layer in range(LAYERS):
        push = re.compile(f"push_layer layer={layer} " + moved.format(layer, BLOCKS, LAYER_BYTES))
        wait = re.compile(rf"wait_layer layer={layer} peer=cluster 1 \(.*\)")
        assert [bool(push.fullmatch(name)) for name in names].count(True) == 1, (layer, names)
        assert [bool(wait.fullmatch(name)) for name in names].count(True) == 1, (layer, names)
    assert any(re.fullmatch("finish peer=" + PEER, name) for name in names), names
    whole = (
        rf"push_blocks torch_llm_datadist::push layers=0-{LAYERS - 1} blocks=1 "
        rf"bytes={2 * LAYERS * BLOCK_BYTES} peer=" + PEER
    )
    assert any(re.fullmatch(whole, name) for name in names), names
    assert {"torch_llm_datadist::finish", "torch_llm_datadist::push_layer"} <= set(names)


def test_the_torch_profiler_shows_each_op_with_what_it_moves(pair: Pair) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        forward(pair)

    check_spans_of_ops([event.name for event in profile.events()])


def test_torch_npus_profiler_records_the_same_spans(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are files for an analysis that wants a device's; the names are in them."""
    monkeypatch.chdir(tmp_path)
    with torch_npu.profiler.profile(
        activities=[torch_npu.profiler.ProfilerActivity.CPU, torch_npu.profiler.ProfilerActivity.NPU],
        on_trace_ready=lambda profile: None,
    ):
        forward(pair)

    recorded = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for layer in range(LAYERS):
        span = rf"push_layer layer={layer} torch_llm_datadist::push layer={layer} blocks={BLOCKS} "
        assert re.search((span + f"bytes={LAYER_BYTES} peer=cluster 2").encode(), recorded), layer


def packed(pair: Pair, blocks: list[int]) -> None:
    """Gathered, sent as one piece per layer, scattered where the receiver says."""
    here, there = pair
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    task = sender.prepare(2, blocks, blocks, packed=True)
    assert there.manager.expect(task.ticket, blocks)
    receiver.binding.bind([task.ticket])
    sender.binding.bind([task])
    eager(0, sender.forward)()
    eager(1, receiver.forward)()
    assert receiver.look()[0] == 0


PROGRAM = """
    from tests import test_spans, transfers
    from tests.forwards import captured
    pair = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(*pair)
    test_spans.forward(pair)
    test_spans.forward(pair, captured, [0, 1, 2])
    test_spans.packed(pair, [0, 1, 2, 3])
    for state in pair:
        state.datadist.finalize()
    print("done")
"""


def test_the_emulators_trace_shows_each_transfer_on_its_links_stream(tmp_path: Path) -> None:
    """Of an eager and of a replayed forward, packed, and whole."""
    enabled = {"TORCH_LLM_DATADIST_EMULATE_TRACE": str(tmp_path)}

    assert answer(PROGRAM, **enabled).splitlines()[-1] == "done"

    (trace,) = tmp_path.glob("trace.*.json")
    events = list(read_trace(trace))
    block = 2 * BLOCK_BYTES
    for name, layer, blocks, cluster_id in [
        *(("push", layer, blocks, 2) for layer in range(LAYERS) for blocks in (BLOCKS, 3)),
        *(("packed_push", layer, 4, 2) for layer in range(LAYERS)),
        *(("scatter", layer, 4, 1) for layer in range(LAYERS)),
    ]:
        said = f"torch_llm_datadist::{name} layer={layer} blocks={blocks} bytes={blocks * block} "
        inside = tasks_in(events, said, cluster_id)
        if name == "scatter":
            assert [each["name"] for each in inside].count("aclnnInplaceIndexCopy") == 2, said
        else:
            assert bytes_of(inside) == blocks * block, said
    said = f"torch_llm_datadist::push layers=0-{LAYERS - 1} blocks=1 bytes={LAYERS * block} "
    for which in range(2):
        assert bytes_of(tasks_in(events, said, 2, which)) == LAYERS * block


def tasks_in(events: list[Event], said: str, cluster_id: int, which: int = -1) -> list[Event]:
    """Those between begin and end of the range, on its stream."""
    message = re.compile(re.escape(said) + rf"peer=cluster {cluster_id} \(.*\)")
    spans = [e for e in events if e.get("cat") == "range" and message.fullmatch(e["args"]["message"])]
    assert len(spans) == 1 or which >= 0, (said, spans)
    span = spans[which]
    assert span["name"] == said.split()[0]
    begin, end, stream = span["ts"], span["ts"] + span["dur"], span["args"]["stream"]
    return [
        e
        for e in events
        if e.get("cat") == "task" and e["ph"] == "X" and e["args"]["stream"] == stream
        and begin <= e["ts"] and e["ts"] + e["dur"] <= end
    ]  # fmt: skip


def bytes_of(tasks: list[Event]) -> int:
    """What they copied, but for words."""
    copied = [each["args"]["bytes"] for each in tasks if each["args"]["kind"] == "copy"]
    return sum(bytes_ for bytes_ in copied if bytes_ != 8)


def test_nothing_is_said_when_nobody_asks(tmp_path: Path) -> None:
    quiet = {"TORCH_LLM_DATADIST_EMULATE_TRACE": str(tmp_path), "TORCH_LLM_DATADIST_SPANS": "0"}

    assert answer(PROGRAM, **quiet).splitlines()[-1] == "done"

    (trace,) = tmp_path.glob("trace.*.json")
    assert not [e for e in read_trace(trace) if e.get("cat") == "range"]
