"""Forwards with layer ops, eager or captured, on instances of one process: a sender that computes its layers
and a receiver that copies each layer as soon as its stream may.

A forward is a function without arguments that can be called, or captured and replayed, as often as one likes:
what changes from request to request stands behind the binding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as datadist
from torch_llm_datadist import ops

Forward = Callable[[], None]


class Sender:
    """Writes ``value`` plus the layer's number to its blocks, layer by layer, and pushes each layer."""

    def __init__(self, state: SimpleNamespace, layers: int, ends_with_finish: bool = True) -> None:
        self.state, self.layers, self.ends_with_finish = state, layers, ends_with_finish
        self.binding = datadist.Binding(state.device, range(layers), timeout_s=20)
        device = f"npu:{state.device}"
        self.value = torch.zeros(1, dtype=torch.uint8, device=device)
        self.status = torch.zeros(1, dtype=torch.int32, device=device)
        # The first sum in a process takes long, and who waits for this forward has a deadline meanwhile.
        _ = self.value + 1
        torch.npu.synchronize(state.device)

    def forward(self) -> None:
        for layer in range(self.layers):
            for tensor in self.state.raw[2 * layer : 2 * layer + 2]:
                tensor.copy_(self.value + layer)
            ops.push_layer(self.status, self.state.raw[2 * layer + 1], layer, self.binding.id)
        if self.ends_with_finish:
            ops.finish(self.status, self.state.raw[-1], self.binding.id)

    def prepare(self, cluster_id: int, src: list[int], dst: list[int], **layers: Any) -> datadist.Task:
        key = datadist.BlocksCacheKey(cluster_id, 0)
        manager = self.state.datadist.cache_manager
        return manager.prepare_push(key, self.state.cache, src, dst, **layers)  # type: ignore[no-any-return]


class Receiver:
    """Waits for each layer and copies what its blocks hold by then into ``seen``."""

    def __init__(self, state: SimpleNamespace, layers: Iterable[int]) -> None:
        self.state, self.layers = state, list(layers)
        self.binding = datadist.Binding(state.device, self.layers, timeout_s=20)
        device = f"npu:{state.device}"
        self.status = torch.zeros(1, dtype=torch.int32, device=device)
        self.seen = torch.zeros(2 * len(self.layers), *state.raw[0].shape, dtype=torch.uint8, device=device)
        torch.npu.synchronize(state.device)

    def forward(self) -> None:
        for i, layer in enumerate(self.layers):
            ops.wait_layer(self.status, self.status, layer, self.binding.id)
            for k in range(2):
                self.seen[2 * i + k].copy_(self.state.raw[2 * layer + k])

    def look(self) -> tuple[int, torch.Tensor]:
        """The status and what the last forward saw."""
        torch.npu.synchronize(self.state.device)
        return int(self.status.item()), self.seen.cpu()


def eager(device: int, body: Forward) -> Forward:
    def run() -> None:
        with torch.npu.device(device):
            body()

    return run


def captured(device: int, body: Forward, **options: Any) -> Forward:
    """Captures once; each call of the result is a replay."""
    graph = torch.npu.NPUGraph()
    # The default one for captures belongs to whatever device it was first used on.
    stream = torch.npu.Stream(device)
    with torch.npu.device(device), torch.npu.graph(graph, stream=stream, **options):
        body()

    def replay() -> None:
        with torch.npu.device(device):
            graph.replay()

    return replay
