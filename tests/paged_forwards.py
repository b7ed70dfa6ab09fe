"""Small forwards with the layer ops in them, as a model would have them, and two instances of one process
between which they move a paged cache. Compiled, captured or eager: the reference is the plain torch below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import torch_llm_datadist as datadist
from tests.instances import cluster
from torch_llm_datadist import ops

LAYERS = 3
NUM_BLOCKS, BLOCK_SIZE = 12, 4
ROW = (2, 4)  # heads, head_dim
TOKENS = 10
MAX_BLOCKS = 6


class Side:
    """An instance with a paged cache on one device, or in host memory, and the binding and status of its
    forward."""

    def __init__(
        self,
        cluster_id: int,
        device: int,
        *,
        on_host: bool = False,
        receives: bool = True,
        in_one_slab: bool = False,
    ) -> None:
        config = datadist.LLMConfig()
        config.device_id = device
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = True
        config.listen_ip_info = "127.0.0.1:0"
        self.cluster_id = cluster_id
        self.device = "cpu" if on_host else f"npu:{device}"
        torch.npu.set_device(device)
        self.datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
        self.datadist.init(config.generate_options())
        shape = (NUM_BLOCKS, BLOCK_SIZE, *ROW)
        if in_one_slab:
            self.tensors = list(torch.zeros(2 * LAYERS, *shape, device=self.device))
        else:  # near each other or not, as the allocator likes
            self.tensors = [torch.zeros(shape, device=self.device) for _ in range(2 * LAYERS)]
        placement = datadist.Placement.HOST if on_host else datadist.Placement.DEVICE
        self.cache = self.datadist.cache_manager.register_blocks_cache(
            datadist.CacheDesc(2 * LAYERS, list(shape), datadist.DataType.DT_FLOAT, placement),
            self.tensors,
            datadist.BlocksCacheKey(cluster_id),
            remote_accessible=True,
            receives=receives,
        )
        self.status = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.binding = datadist.Binding(device, range(LAYERS))

    def link(self, other: Side) -> None:
        info = cluster(other.cluster_id, other.datadist.listen_port)
        code, _ = self.datadist.link_clusters([info], timeout=10_000)
        assert code == datadist.LLMStatusCode.LLM_SUCCESS
        other.datadist.wait_linked([self.cluster_id], timeout_s=10)

    def prepare(self, to: Side, src: Sequence[int], dst: Sequence[int], **options: Any) -> datadist.Task:
        return self.datadist.cache_manager.prepare_push(
            datadist.BlocksCacheKey(to.cluster_id), self.cache, list(src), list(dst), timeout_s=20, **options
        )

    def clear(self) -> None:
        """Done when it returns: what comes next is another device's."""
        for tensor in self.tensors:
            tensor.zero_()
        if self.tensors[0].is_npu:
            torch.npu.synchronize(self.tensors[0].device)

    def content(self) -> torch.Tensor:
        """[tensors, slots, *row] on the CPU."""
        return torch.stack([tensor.flatten(0, 1).cpu() for tensor in self.tensors])


def slots_of(blocks: Sequence[int], tokens: int = TOKENS) -> torch.Tensor:
    """Where the tokens of a sequence lie that has these blocks."""
    ids = torch.tensor(list(blocks), dtype=torch.int64)
    return (ids[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten()[:tokens]


def table_of(blocks: Sequence[int]) -> torch.Tensor:
    return torch.tensor([*blocks, *[-1] * (MAX_BLOCKS - len(blocks))], dtype=torch.int64)


def keys_and_values(x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    return x * (layer + 2) + 1, torch.sin(x) * (layer + 1)


def prefill_forward(side: Side) -> Callable[..., torch.Tensor]:
    """(x: [tokens, *row], slots) -> x; stores and pushes each layer."""
    handle, binding, status = side.cache.handle, side.binding.id, side.status

    def prefill(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        for layer in range(LAYERS):
            keys, values = keys_and_values(x, layer)
            ops.store_layer(status, keys, values, slots, layer=layer, cache=handle)
            ops.push_layer(status, values, layer, binding)
            x = x + torch.cos(values) * keys
        ops.finish(status, x, binding)
        return x + 1

    return prefill


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """query [1, *row], keys and values [capacity, *row], mask [capacity]: the row's attention."""
    scores = torch.einsum("qhd,khd->hqk", query, keys).masked_fill(~mask, float("-inf"))
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), values)


def decode_forward(side: Side) -> Callable[..., torch.Tensor]:
    """(x: [1, *row], slot, table, mask) -> x; waits for each layer, stores its token, attends."""
    handle, binding, status = side.cache.handle, side.binding.id, side.status

    def decode(x: torch.Tensor, slot: torch.Tensor, table: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in range(LAYERS):
            keys, values = keys_and_values(x, layer)
            ops.wait_layer(status, keys, layer, binding)
            ops.store_layer(status, keys, values, slot, layer=layer, cache=handle)
            all_keys, all_values = ops.read_layer(
                status, keys, values, table, block_size=BLOCK_SIZE, layer=layer, cache=handle
            )
            x = x + attend(x, all_keys, all_values, mask)
        return x * 2

    return decode


def plain_prefill(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The result and the rows that the forward stores, K0, V0, K1, V1 …"""
    stored = []
    for layer in range(LAYERS):
        keys, values = keys_and_values(x, layer)
        stored += [keys, values]
        x = x + torch.cos(values) * keys
    return x + 1, stored


def plain_decode(x: torch.Tensor, past: Sequence[torch.Tensor]) -> torch.Tensor:
    """``past``: what ``plain_prefill`` stored."""
    for layer in range(LAYERS):
        keys, values = keys_and_values(x, layer)
        all_keys, all_values = torch.cat([past[2 * layer], keys]), torch.cat([past[2 * layer + 1], values])
        x = x + attend(x, all_keys, all_values, torch.ones(len(all_keys), dtype=torch.bool))
    return x * 2
