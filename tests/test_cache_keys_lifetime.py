"""How long the keys of caches live, and what takes them (4.2 of the API's description)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import caches
from tests.allocated import (
    ENTRY,
    INVALID,
    NO_CACHE,
    NOBODY,
    PLACEMENTS,
    THERE,
    Pair,
    describe,
    fresh_caches,
    holds,
    pair_for_a_module,
    pull,
)
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheKey,
    CacheKeyByIdAndIndex,
    Placement,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Without remote access: keys name entries, and go with the pull that used them."""
    with pair_for_a_module(enable_remote_cache_accessible=False) as found:
        yield found


@pytest.fixture(scope="module")
def ra_pair() -> Iterator[Pair]:
    with pair_for_a_module() as found:
        yield found


@pytest.fixture(params=PLACEMENTS, ids=lambda p: p.name)
def placement(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def fresh(pair: Pair) -> Iterator[Callable[..., Cache]]:
    with fresh_caches(pair[1]) as make:
        yield make


def test_a_pull_that_succeeded_removes_the_key_it_used(
    pair: Pair, fresh: Callable[..., Cache], placement: Placement
) -> None:
    """A second one finds no cache; the key of the other entry stays."""
    here, _ = pair
    cache = fresh([CacheKey(1, 10), CacheKey(1, 11)], placement)

    assert holds(pull(here, CacheKey(THERE, 10)), 0)
    message = check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 10)))

    assert "req_id 10 of model_id 0" in message
    assert holds(pull(here, CacheKey(THERE, 11)), 1)
    assert holds(pull(here, CacheKeyByIdAndIndex(THERE, cache.cache_id, 0)), 0)  # by id as long as it lives


def test_a_pull_by_id_removes_the_key_of_that_entry(pair: Pair, fresh: Callable[..., Cache]) -> None:
    here, _ = pair
    cache = fresh([CacheKey(1, 10), CacheKey(1, 11)])

    assert holds(pull(here, CacheKeyByIdAndIndex(THERE, cache.cache_id, 1)), 1)

    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 11)))
    assert holds(pull(here, CacheKey(THERE, 10)), 0)


def test_prefix_keys_stay(pair: Pair, fresh: Callable[..., Cache]) -> None:
    here, there = pair
    prefix = CacheKey(1, NOBODY, 3, 77)
    fresh([prefix])
    for _ in range(2):
        assert holds(pull(here, CacheKey(THERE, NOBODY, 3, 77)), 0)
    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 77, 3)))  # a request id is another name
    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, NOBODY, 4, 77)))

    there.manager.remove_cache_key(prefix)

    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, NOBODY, 3, 77)))


def test_removing_a_key_returns_when_the_peers_know(pair: Pair, fresh: Callable[..., Cache]) -> None:
    here, there = pair
    fresh([CacheKey(1, 10)])
    assert here.datadist._running.links.sync(THERE, 10)
    here.datadist._running.links._loop.post(lambda: time.sleep(0.05))  # it learns of nothing meanwhile

    there.manager.remove_cache_key(CacheKey(1, 10))

    assert not any(
        record.keys for record in here.datadist._running.links.table.get(THERE, "").remote_caches.values()
    )


def test_keys_of_a_registered_cache_stay(pair: Pair) -> None:
    here, there = pair
    keys = [CacheKey(1, 20)]
    caches.add(there, "registered", 9, describe(), keys=keys)
    other = caches.add(there, "other", 10, describe(), keys=keys)  # first wins, in silence
    there.manager.remove_cache_key(keys[0])  # nothing happens

    for _ in range(2):
        assert holds(pull(here, CacheKey(THERE, 20)), 0, seed=9)

    for cache_id in (there.caches["registered"].cache_id, other):
        there.manager.unregister_cache(cache_id)
    assert here.datadist._running.links.sync(THERE, 10)
    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 20)))


def test_with_remote_access_pulls_remove_nothing(ra_pair: Pair) -> None:
    """4.2; the key of an entry is found by pull_blocks only, and stays."""
    here, there = ra_pair
    cache_id = caches.add(there, "kept", 7, describe(), keys=[CacheKey(1, 30)], allocate=True)
    for _ in range(2):
        assert holds(pull(here, CacheKeyByIdAndIndex(THERE, cache_id, 0)), 0)
        here.manager.pull_blocks(CacheKey(THERE, 30), here.caches["blocks"], [], [0, 1, 2, 3])
    found = [t.view(8, -1)[:4].reshape(-1) for t in caches.look(here, "blocks")]
    assert holds(found, 0)
    there.manager.unregister_cache(cache_id)


def test_a_key_goes_when_all_tensors_were_pulled_whoever_pulled_them(
    pair: Pair, fresh: Callable[..., Cache]
) -> None:
    """Mended: in the original the book-keeping is one per cache, so a pull of another key removes this
    one.
    """
    here, _ = pair
    fresh([CacheKey(1, 10), CacheKey(1, 11)])
    first, second = (
        {"src_layer_range": range(1), "dst_layer_range": range(1)},
        {
            "src_layer_range": range(1, 2),
            "dst_layer_range": range(1, 2),
        },
    )

    pull(here, CacheKey(THERE, 11))  # all of another one
    for _ in range(2):
        pull(here, CacheKey(THERE, 10), **first)  # the same half twice is a half
    pull(here, CacheKey(THERE, 10), **second)

    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 10), **first))


def test_a_failed_pull_keeps_the_key(pair: Pair, fresh: Callable[..., Cache]) -> None:
    here, _ = pair
    fresh([CacheKey(1, 10)])
    check_raises(INVALID, lambda: pull(here, CacheKey(THERE, 10), size=ENTRY + 1))
    check_raises(
        INVALID,
        lambda: pull(here, CacheKey(THERE, 10), src_layer_range=range(5, 6), dst_layer_range=range(1)),
    )

    assert holds(pull(here, CacheKey(THERE, 10)), 0)


def test_a_pull_into_blocks_takes_the_key_too(pair: Pair, fresh: Callable[..., Cache]) -> None:
    here, _ = pair
    fresh([CacheKey(1, 10), CacheKey(1, 11)])

    here.manager.pull_blocks(CacheKey(THERE, 11), here.caches["blocks"], [], [3, 2, 1, 0])

    found = [t.view(8, -1)[[3, 2, 1, 0]].reshape(-1) for t in caches.look(here, "blocks")]
    assert holds(found, 1)
    check_raises(
        NO_CACHE, lambda: here.manager.pull_blocks(CacheKey(THERE, 11), here.caches["blocks"], [], [0])
    )


def test_models_have_request_ids_of_their_own(pair: Pair, fresh: Callable[..., Cache]) -> None:
    """Mended: in one cache the same req_id of two models collides in the original."""
    here, _ = pair
    fresh([CacheKey(1, 10, 0), CacheKey(1, 10, 1)])

    assert holds(pull(here, CacheKey(THERE, 10, 1)), 1)
    assert holds(pull(here, CacheKey(THERE, 10, 0)), 0)


def test_placeholders_skip_an_entry(pair: Pair, fresh: Callable[..., Cache]) -> None:
    """Mended: any number of them, also beside a blocks cache; in the original only one per model passes."""
    here, there = pair
    blocks = there.manager.allocate_blocks_cache(describe(), BlocksCacheKey(THERE, 0))
    placeholder = CacheKey(1, NOBODY)
    empty = fresh([placeholder, placeholder])
    fresh([placeholder, CacheKey(1, 10)])

    assert holds(pull(here, CacheKey(THERE, 10)), 1)

    check_raises(INVALID, lambda: pull(here, CacheKey(THERE, NOBODY)))
    there.manager.deallocate_cache(empty)
    there.manager.deallocate_blocks_cache(blocks)


def test_a_key_that_is_bound_cannot_be_allocated_again_before_it_is_free(
    pair: Pair, fresh: Callable[..., Cache]
) -> None:
    here, there = pair
    fresh([CacheKey(1, 10)])
    message = check_raises(INVALID, lambda: there.manager.allocate_cache(describe(), [CacheKey(5, 10)]))
    assert "req_id 10 of model_id 0" in message

    pull(here, CacheKey(THERE, 10))

    fresh([CacheKey(1, 10)], seed=8)  # the holder knows when the pull has returned
    assert holds(pull(here, CacheKey(THERE, 10)), 0, seed=8)
