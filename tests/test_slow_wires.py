"""A wire between hosts that is slow, but well: nobody takes it for a lost peer, with the default options."""

from __future__ import annotations

from types import SimpleNamespace

import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.test_emulated_hosts import made
from tests.test_engine_transports import needs_nixl
from tests.test_links_across_hosts import link, started

pytestmark = needs_nixl
BLOCKS, BLOCK_BYTES = 32, 1 << 20
BYTES_PER_S = 15e6  # 45 MB in keep_alive_ms; the push has 64


def register_on_host(state: SimpleNamespace, cluster_id: int, value: int) -> None:
    state.raw = [torch.full((BLOCKS, BLOCK_BYTES), value, dtype=torch.uint8) for _ in range(2)]
    desc = datadist.CacheDesc(2, [BLOCKS, BLOCK_BYTES], datadist.DataType.DT_UINT8, datadist.Placement.HOST)
    key = datadist.BlocksCacheKey(cluster_id, 0)
    state.cache = state.datadist.cache_manager.register_blocks_cache(desc, state.raw, key, True)


def push_everything(state: SimpleNamespace) -> None:
    instances.push_blocks(state, 2, [*range(BLOCKS)], [*range(BLOCKS)])


def values(state: SimpleNamespace) -> list[list[int]]:
    return [tensor.unique().tolist() for tensor in state.raw]


def test_signs_of_life_do_not_wait_behind_a_push_between_host_caches() -> None:
    options = {"transport": "nixl", "sync_kv_timeout": 60_000}
    with made("near", "far") as lab, started(lab, **options) as (a, b, port):
        for cluster_id, peer in ((1, a), (2, b)):
            peer.call(register_on_host, cluster_id, cluster_id)
        assert a.call(link, lab["far"].address, port) == ["LLM_SUCCESS"]
        b.call(instances.wait_linked, 1)
        lab.network.shape(bytes_per_s=BYTES_PER_S)

        a.call(push_everything)

        assert b.call(values) == [[1], [1]]
