"""Many tasks in flight, and layers that arrive while later ones are computed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, transfers
from tests.forwards import Receiver, Sender
from tests.transfers import LAYERS
from tests.trio import RUNS, Trio, send
from tests.trio import nothing_is_left_running as nothing_is_left_running
from tests.trio import trio as trio
from torch_llm_datadist import emulator, ops

TASKS = 64


@pytest.fixture(scope="module")
def wide_pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Caches with a block for each of many transfers."""
    pair = []
    for cluster_id, device in ((11, 0), (12, 1)):
        state = SimpleNamespace()
        state.port = instances.start(state, cluster_id, device)
        instances.register(state, cluster_id, 2 * LAYERS, TASKS, 64)
        pair.append(state)
    transfers.link(*pair)
    yield pair[0], pair[1]
    for state in pair:
        state.datadist.finalize()


def test_64_tasks_on_one_link_and_several_streams_never_satisfy_each_others_waits(
    wide_pair: tuple[SimpleNamespace, SimpleNamespace],
) -> None:
    """Their pushes are interleaved, and first of all only every other task is pushed."""
    here, there = wide_pair
    shuffled = random.Random(1).sample(range(TASKS), TASKS)
    sends = [Sender(here, LAYERS) for _ in range(TASKS)]
    waits = [datadist.Binding(1, range(LAYERS)) for _ in range(TASKS)]
    tasks = [sends[i].prepare(12, [i], [shuffled[i]]) for i in range(TASKS)]
    statuses = [torch.zeros(1, dtype=torch.int32, device="npu:1") for _ in range(TASKS)]
    seen = torch.zeros(TASKS, 64, dtype=torch.uint8, device="npu:1")
    torch.npu.synchronize(1)
    streams = {device: distinct_streams(device, 8) for device in (0, 1)}
    for i in reversed(range(TASKS)):
        waits[i].bind([tasks[i].ticket])
        with torch.npu.device(1), torch.npu.stream(streams[1][i % 8]):
            ops.wait_layer(statuses[i], statuses[i], LAYERS - 1, waits[i].id)
            seen[i].copy_(there.raw[-1][shuffled[i]])

    def push(which: list[int]) -> None:
        for i in which:
            sends[i].binding.bind([tasks[i]])
        with torch.npu.device(0):
            for layer in range(LAYERS):
                for i in random.Random(layer).sample(which, len(which)):
                    with torch.npu.stream(streams[0][i % 8]):
                        ops.push_layer(sends[i].status, here.raw[0], layer, sends[i].binding.id)

    push([i for i in range(TASKS) if i % 2 == 0])
    for stream in streams[1][0::2]:
        stream.synchronize()
    assert not any(stream.query() for stream in streams[1][1::2])
    push([i for i in range(TASKS) if i % 2 == 1])
    torch.npu.synchronize(1)

    assert all(status.item() == 0 for status in statuses)
    assert torch.equal(seen.cpu(), instances.pattern(11, 2 * LAYERS, TASKS, 64)[-1])


def distinct_streams(device: int, count: int) -> list[torch.npu.Stream]:
    """The pool gives each of its streams out again and again."""
    found: dict[int, torch.npu.Stream] = {}
    while len(found) < count:
        stream = torch.npu.Stream(device)
        found.setdefault(stream.npu_stream, stream)
    return list(found.values())


class SlowSender(Sender):
    """The last layer's kernel takes long, longer than a busy machine is late with the first one's bytes."""

    def forward(self) -> None:
        for layer in range(self.layers):
            emulator.delay_stream(3 if layer == self.layers - 1 else 0.03)
            self.state.raw[2 * layer].copy_(self.value + layer)
            ops.push_layer(self.status, self.state.raw[2 * layer], layer, self.binding.id)


@pytest.mark.parametrize("sends", RUNS)
def test_decode_begins_its_first_layer_while_prefill_computes_its_last(trio: Trio, sends: str) -> None:
    here, there, _ = trio
    sender, receiver = SlowSender(here, LAYERS), Receiver(there, range(LAYERS))
    run = RUNS[sends](0, sender.forward)
    task = sender.prepare(2, [0], [1])
    receiver.binding.bind([task.ticket])
    begun, computed = (torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.device(1):
        for layer in range(LAYERS):
            ops.wait_layer(receiver.status, receiver.status, layer, receiver.binding.id)
            if layer == 0:
                begun.record()
                receiver.seen[0].copy_(there.raw[0])

    send(sender, run, 10, [task])
    with torch.npu.device(0):
        computed.record()
    torch.npu.synchronize(0)

    assert receiver.look()[0] == 0
    assert begun.recorded_time() < computed.recorded_time()
