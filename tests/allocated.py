"""Two instances with memory pools in this process; "there" holds the caches, "here" pulls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from tests import caches, instances
from torch_llm_datadist import Cache, CacheDesc, CacheKey, LLMStatusCode, Placement

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NO_POOL = LLMStatusCode.LLM_FEATURE_NOT_ENABLED
OUT_OF_MEMORY = LLMStatusCode.LLM_OUT_OF_MEMORY
HERE, THERE = 1, 2
TENSORS, BATCH, ENTRY = 4, 2, 512
PAGE = 1024  # a tensor takes one
POOL_PAGES = 16
POOL = json.dumps({"memory_size": POOL_PAGES * PAGE, "page_shift": 10})
PLACEMENTS = [Placement.DEVICE, Placement.HOST]
NOBODY = 2**64 - 1

Pair = tuple[SimpleNamespace, SimpleNamespace]


def pair_of(**options: Any) -> Pair:
    here, there = SimpleNamespace(), SimpleNamespace()
    pools = {"mem_pool_cfg": POOL, "host_mem_pool_cfg": POOL}
    instances.start(here, HERE, 0, {**pools, **options})
    port = instances.start(there, THERE, 1, {**pools, **options})
    caches.add(here, "batch", 100, caches.describe(TENSORS, BATCH, ENTRY))
    caches.add(here, "blocks", 101, caches.describe(TENSORS, 8, 128), is_blocks=True)
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    for state in (here, there):
        state.manager = state.datadist.cache_manager
    return here, there


def describe(placement: Placement = Placement.DEVICE, batch: int = BATCH) -> CacheDesc:
    return caches.describe(TENSORS, batch, ENTRY, placement)


def wait_until(is_so: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def entries(seed: int = 7) -> list[torch.Tensor]:
    return caches.rows(caches.bytes_of(seed, [BATCH * ENTRY] * TENSORS), BATCH)


def pull(here: SimpleNamespace, key: Any, **arguments: Any) -> list[torch.Tensor]:
    """What lies in entry 0 after a pull into it, per tensor."""
    here.manager.pull_cache(key, here.caches["batch"], **arguments)
    return [t.view(BATCH, -1)[0] for t in caches.look(here, "batch")]


def holds(found: list[torch.Tensor], batch_index: int, seed: int = 7) -> bool:
    return all(torch.equal(a, b[batch_index]) for a, b in zip(found, entries(seed), strict=True))


@contextmanager
def pair_for_a_module(**options: Any) -> Iterator[Pair]:
    here, there = pair_of(**options)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@contextmanager
def fresh_caches(there: SimpleNamespace) -> Iterator[Callable[..., Cache]]:
    """Allocates caches of "there" with known bytes; what is left of them at the end goes."""
    made: list[Cache] = []

    def make(keys: list[CacheKey], placement: Placement = Placement.DEVICE, seed: int = 7) -> Cache:
        caches.add(there, "fresh", seed, describe(placement), keys=keys, allocate=True)
        made.append(there.caches["fresh"])
        return made[-1]

    yield make
    for cache in made:
        there.manager.unregister_cache(cache.cache_id)
    wait_until(lambda: not there.manager.held_caches())
