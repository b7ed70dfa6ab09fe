"""Two instances in this process on two devices, with caches of entries and of blocks of known bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from tests import caches, instances
from torch_llm_datadist import BlocksCacheKey, CacheKeyByIdAndIndex, LLMStatusCode

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
HERE, THERE, NOWHERE = 1, 2, 9
TENSORS, BATCH, ENTRY = 4, 3, 64
BLOCKS, BLOCK = 8, 24  # an entry is two blocks and two thirds

Pair = tuple[SimpleNamespace, SimpleNamespace]


def pair_of(**options: Any) -> Pair:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, HERE, 0, options)
    port = instances.start(there, THERE, 1, options)
    for state, seed in ((here, 100), (there, 200)):
        caches.add(state, "batch", seed, caches.describe(TENSORS, BATCH, ENTRY))
        key = BlocksCacheKey(state.cluster_id, 0)
        caches.add(
            state, "blocks", seed + 1, caches.describe(TENSORS, BLOCKS, BLOCK), is_blocks=True, key=key
        )
        caches.add(state, "six", seed + 2, caches.describe(6, BATCH, ENTRY))
        caches.add(state, "wide", seed + 3, caches.describe(TENSORS, BATCH, 2 * ENTRY))
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    return here, there


@contextmanager
def pair_for_a_module(**options: Any) -> Iterator[Pair]:
    here, there = pair_of(**options)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def restore(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    """Puts a cache's first bytes back; returns them as [entries, bytes]."""
    order = {"batch": 0, "blocks": 1, "six": 2, "wide": 3}
    content = caches.bytes_of(100 * state.cluster_id + order[name], [t.numel() for t in state.raw[name]])
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return caches.rows(content, state.caches[name].num_entries)


def by_id(state: SimpleNamespace, name: str, batch_index: int = 0) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(state.cluster_id, state.caches[name].cache_id, batch_index)


def linked_peers(peers: Any, mode: str) -> Any:
    a, b = peers(2)
    a.call(instances.start, HERE, 0, caches.MODES[mode])
    port = b.call(instances.start, THERE, 1, caches.MODES[mode])
    for peer, seed in ((a, 100), (b, 200)):
        peer.call(add_batch, seed)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, HERE)
    return a, b


def add_batch(state: SimpleNamespace, seed: int) -> None:
    caches.add(state, "batch", seed, caches.describe(TENSORS, BATCH, ENTRY))
