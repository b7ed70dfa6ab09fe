"""4.3, 4.7, 4.11: numbers at which the original stops, and what is beyond them here."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from torch_llm_datadist import BlocksCacheKey, CacheKey

HERE, THERE = 1, 2


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[Any]:
    here, there = SimpleNamespace(), SimpleNamespace()
    options = {**caches.MODES[request.param], "sync_kv_timeout": 30_000}  # large messages, on a busy machine
    instances.start(here, HERE, 0, options)
    port = instances.start(there, THERE, 1, options)
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    instances.wait_linked(there, HERE)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


only_ra = pytest.mark.parametrize("pair", ["RA"], indirect=True)


def test_4_3_a_pull_of_more_pieces_than_fit_a_request(pair: Any) -> None:
    """Lifted: there tensors and two for each run of blocks are at most 7160 without remote access."""
    here, there = pair
    blocks, even = 8000, list(range(0, 8000, 2))
    key = BlocksCacheKey(THERE, 1)
    caches.add(here, "runs", 1, caches.describe(2, blocks, 2), is_blocks=True)
    caches.add(there, "runs", 2, caches.describe(2, blocks, 2), is_blocks=True, key=key)
    expected = caches.rows(caches.bytes_of(1, [2 * blocks] * 2), blocks)
    for to, of in zip(expected, caches.rows(caches.bytes_of(2, [2 * blocks] * 2), blocks), strict=True):
        to[even] = of[even]

    here.datadist.cache_manager.pull_blocks(key, here.caches["runs"], even, even)

    assert caches.equal(caches.look(here, "runs"), expected)


def test_4_3_a_pull_of_more_tensors_than_fit_a_request(pair: Any) -> None:
    """Lifted: 2043 there, without remote access; and both are more addresses than the 240 of the manual."""
    here, there = pair
    tensors = 2100
    key = BlocksCacheKey(THERE, 2)
    for state, seed in ((here, 1), (there, 2)):
        whole = caches.bytes_of(seed, [2 * 4 * tensors])[0].to(f"npu:{state.device}")
        parts = list(whole.view(tensors, 2, 4).unbind())
        desc = caches.describe(tensors, 2, 4)
        manager = state.datadist.cache_manager
        state.cache = manager.register_blocks_cache(desc, parts, key if state is there else None)
        state.whole = whole

    here.datadist.cache_manager.pull_blocks(key, here.cache, [1], [0])

    torch.npu.synchronize(0)
    found, sent = (state.whole.cpu().view(tensors, 2, 4) for state in (here, there))
    assert torch.equal(found[:, 0], sent[:, 1])
    assert torch.equal(found[:, 1], caches.bytes_of(1, [8 * tensors])[0].view(tensors, 2, 4)[:, 1])
    for state in pair:
        state.datadist.cache_manager.unregister_cache(state.cache.cache_id)


def test_4_7_more_keys_than_the_table_for_peers_holds(pair: Any) -> None:
    """Lifted: there a table of 1 MiB lists caches and keys, 24 bytes a key."""
    here, there = pair
    keys = [CacheKey(THERE, i) for i in range(45_000)]
    cache_id = caches.add(there, "keys", 3, caches.describe(2, len(keys), 1), keys=keys)
    caches.add(here, "one", 4, caches.describe(2, 1, 1), is_blocks=True)

    here.datadist.cache_manager.pull_blocks(keys[-1], here.caches["one"], [], [0])

    last = [tensor[-1:] for tensor in caches.bytes_of(3, [len(keys)] * 2)]
    assert caches.equal(caches.look(here, "one"), last)
    there.datadist.cache_manager.unregister_cache(cache_id)


@only_ra
def test_4_7_a_key_by_prefix_is_known_to_peers_with_remote_access(pair: Any) -> None:
    """Lifted: prefix keys are not in that table."""
    here, there = pair
    prefix = CacheKey(THERE, 2**64 - 1, 0, 77)
    cache_id = caches.add(there, "prefix", 5, caches.describe(2, 3, 8), keys=[CacheKey(THERE, 1), prefix])
    caches.add(here, "slice", 6, caches.describe(2, 1, 8), is_blocks=True)

    here.datadist.cache_manager.pull_blocks(prefix, here.caches["slice"], [], [0])

    second = [tensor[8:16] for tensor in caches.bytes_of(5, [24] * 2)]
    assert caches.equal(caches.look(here, "slice"), second)
    there.datadist.cache_manager.unregister_cache(cache_id)


def test_2_5_a_description_may_serve_caches_of_both_kinds(pair: Any) -> None:
    """Mended: there an object that once described blocks makes every later cache one of blocks."""
    here, there = pair
    desc = caches.describe(2, 3, 8)
    caches.add(there, "as blocks", 7, desc, is_blocks=True, key=BlocksCacheKey(THERE, 3))
    caches.add(there, "as entries", 8, desc, keys=[CacheKey(THERE, 1, 9), CacheKey(THERE, 2, 9)])
    caches.add(here, "into", 9, desc, is_blocks=True)

    here.datadist.cache_manager.pull_blocks(CacheKey(THERE, 2, 9), here.caches["into"], [], [2])
    here.datadist.cache_manager.pull_blocks(BlocksCacheKey(THERE, 3), here.caches["into"], [1], [0])

    expected = caches.rows(caches.bytes_of(9, [24] * 2), 3)
    for t in range(2):
        expected[t][2] = caches.bytes_of(8, [24] * 2)[t].view(3, 8)[1]
        expected[t][0] = caches.bytes_of(7, [24] * 2)[t].view(3, 8)[1]
    assert caches.equal(caches.look(here, "into"), expected)
