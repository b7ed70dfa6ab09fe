"""How long caches from pools live: a reference for the handle, and one per key (4.2, 4.6 of the API's
description)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.allocated import (
    BATCH,
    ENTRY,
    HERE,
    NO_CACHE,
    OUT_OF_MEMORY,
    PAGE,
    PLACEMENTS,
    POOL,
    POOL_PAGES,
    TENSORS,
    THERE,
    Pair,
    describe,
    entries,
    fresh_caches,
    holds,
    pair_for_a_module,
    pull,
    wait_until,
)
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    Placement,
    emulator,
    wire,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Without remote access: keys name entries, and go with the pull that used them."""
    with pair_for_a_module(enable_remote_cache_accessible=False) as found:
        yield found


@pytest.fixture(params=PLACEMENTS, ids=lambda p: p.name)
def placement(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def fresh(pair: Pair) -> Iterator[Callable[..., Cache]]:
    with fresh_caches(pair[1]) as make:
        yield make


def free_pages(state: SimpleNamespace, placement: Placement) -> int:
    pages: int = state.manager._pools[placement].free_bytes() // PAGE
    return pages


def test_memory_is_free_when_the_handle_and_all_keys_are_gone(pair: Pair, placement: Placement) -> None:
    here, there = pair
    wait_until(lambda: free_pages(there, placement) == POOL_PAGES)
    caches.add(there, "gone", 7, describe(placement), keys=[CacheKey(1, 10), CacheKey(1, 11)], allocate=True)
    assert free_pages(there, placement) == POOL_PAGES - TENSORS

    there.manager.deallocate_cache(there.caches["gone"])
    assert holds(pull(here, CacheKey(THERE, 10)), 0)  # through a key that is left
    assert free_pages(there, placement) == POOL_PAGES - TENSORS
    there.manager.remove_cache_key(CacheKey(1, 11))

    wait_until(lambda: free_pages(there, placement) == POOL_PAGES)
    check_raises(NO_CACHE, lambda: pull(here, CacheKey(THERE, 11)))


def test_what_peers_have_no_room_for_takes_no_memory(
    pair: Pair, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = pair
    wait_until(lambda: free_pages(there, placement) == POOL_PAGES)
    monkeypatch.setattr(wire, "MAX_ANNOUNCED_CACHES", 0)

    check_raises(OUT_OF_MEMORY, lambda: there.manager.allocate_cache(describe(placement)))
    check_raises(OUT_OF_MEMORY, lambda: there.manager.allocate_blocks_cache(describe(placement)))

    assert free_pages(there, placement) == POOL_PAGES


def test_the_last_pull_frees_a_deallocated_cache(pair: Pair) -> None:
    here, there = pair
    wait_until(lambda: free_pages(there, Placement.DEVICE) == POOL_PAGES)
    caches.add(there, "gone", 7, describe(), keys=[CacheKey(1, 10)], allocate=True)
    there.manager.deallocate_cache(there.caches["gone"])

    assert holds(pull(here, CacheKey(THERE, 10)), 0)

    wait_until(lambda: free_pages(there, Placement.DEVICE) == POOL_PAGES)


def test_a_cache_without_keys_is_free_when_it_is_deallocated_with_them_it_is_not(pair: Pair) -> None:
    _, there = pair
    wait_until(lambda: free_pages(there, Placement.DEVICE) == POOL_PAGES)
    keyless = there.manager.allocate_cache(describe())
    keyed = there.manager.allocate_cache(describe(), [CacheKey(1, 10)])
    for cache in (keyless, keyed):
        there.manager.deallocate_cache(cache)

    wait_until(lambda: free_pages(there, Placement.DEVICE) == POOL_PAGES - TENSORS)
    check_raises(  # not free, and nothing on its way: no wait
        OUT_OF_MEMORY,
        lambda: there.manager.allocate_cache(CacheDesc(POOL_PAGES, [PAGE], DataType.DT_INT8)),
    )
    there.manager.unregister_cache(keyed.cache_id)  # ends it with its keys
    wait_until(lambda: free_pages(there, Placement.DEVICE) == POOL_PAGES)


def test_a_blocks_cache_is_gone_with_its_key_when_it_is_deallocated(pair: Pair) -> None:
    here, there = pair
    desc = caches.describe(TENSORS, 8, 128)
    caches.add(there, "gone", 5, desc, is_blocks=True, key=BlocksCacheKey(THERE, 50), allocate=True)
    here.manager.pull_blocks(BlocksCacheKey(THERE, 50), here.caches["blocks"], [1], [0])
    there.manager.deallocate_blocks_cache(there.caches["gone"])
    assert here.datadist._running.links.sync(THERE, 10)

    check_raises(
        NO_CACHE,
        lambda: here.manager.pull_blocks(BlocksCacheKey(THERE, 50), here.caches["blocks"], [1], [0]),
    )


def test_two_clients_pull_one_key_at_once(fresh: Callable[..., Cache], pair: Pair) -> None:
    """The first pull that ends takes the key along. Both read, or the second is told that it is gone; the
    memory waits for the last one that reads."""
    here, there = pair
    other = SimpleNamespace()
    pools = {"mem_pool_cfg": POOL, "host_mem_pool_cfg": POOL, "enable_remote_cache_accessible": False}
    instances.start(other, 3, 0, pools)
    caches.add(other, "batch", 102, caches.describe(TENSORS, BATCH, ENTRY))
    other.manager = other.datadist.cache_manager
    assert instances.link(other, THERE, there.datadist.listen_port) == ["LLM_SUCCESS"]
    try:
        for number in range(3):
            key = CacheKey(THERE, 7000 + number)
            cache = fresh([key])
            there.manager.deallocate_cache(cache)  # only the key keeps it
            start_together = threading.Barrier(2)
            ends: dict[int, Any] = {}

            def run(state: SimpleNamespace, key: CacheKey = key, ends: dict[int, Any] = ends) -> None:
                torch.npu.set_device(0)
                start_together.wait(20)  # noqa: B023
                try:
                    ends[state.cluster_id] = holds(pull(state, key), 0)
                except LLMException as error:
                    ends[state.cluster_id] = error.status_code

            threads = [threading.Thread(target=run, args=(state,)) for state in (here, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)

            assert set(ends) == {HERE, 3}
            assert True in ends.values()
            assert set(ends.values()) <= {True, NO_CACHE}
            wait_until(lambda: not there.manager.held_caches())
            with pytest.raises(LLMException):
                pull(here, key)
    finally:
        other.datadist.finalize()


def test_two_caches_may_share_their_addresses(pair: Pair) -> None:
    """Mended: in the original unregistering the first withdraws the memory from the second. Of two kinds, and
    of two shapes, each is found as what it is.
    """
    here, there = pair
    shared = [t.to("npu:1") for t in caches.bytes_of(7, [BATCH * ENTRY] * TENSORS)]
    as_batch = there.manager.register_cache(
        describe(), [t.view(BATCH, ENTRY) for t in shared], [CacheKey(1, 60)]
    )
    fine, coarse = (
        there.manager.register_blocks_cache(
            CacheDesc(TENSORS, [n, BATCH * ENTRY // n], DataType.DT_UINT8),
            shared,
            BlocksCacheKey(THERE, 60 + n),
        )
        for n in (8, 4)
    )
    assert here.datadist._running.links.sync(THERE, 10)

    assert holds(pull(here, CacheKey(THERE, 60)), 0)
    here.manager.pull_blocks(BlocksCacheKey(THERE, 68), here.caches["blocks"], [5], [0])
    here.manager.pull_blocks(BlocksCacheKey(THERE, 68), here.caches["blocks"], [6], [7])
    assert all(
        torch.equal(a.view(8, -1)[[0, 7]], b.cpu().view(8, -1)[[5, 6]])
        for a, b in zip(caches.look(here, "blocks"), shared, strict=True)
    )
    caches.add(
        here, "source", 3, caches.describe(TENSORS, 8, 128), is_blocks=True, key=BlocksCacheKey(HERE, 60)
    )
    assert there.datadist._running.links.sync(HERE, 10)
    there.manager.pull_blocks(BlocksCacheKey(HERE, 60), fine, [7], [6])  # not as the one registered last
    assert all(
        torch.equal(a.view(8, -1)[7], b.cpu().view(8, -1)[6])
        for a, b in zip(caches.look(here, "source"), shared, strict=True)
    )
    here.manager.unregister_cache(here.caches["source"].cache_id)
    there.manager.pull_cache(CacheKeyByIdAndIndex(HERE, 1, 1), as_batch, 1)  # as a batch …
    there.manager.copy_blocks(coarse, {0: [1]})  # … as four blocks …
    there.manager.unregister_cache(as_batch.cache_id)
    there.manager.copy_blocks(fine, {2: [0]})  # … and as eight, with the first one gone
    here.manager.pull_blocks(BlocksCacheKey(THERE, 68), here.caches["blocks"], [0], [1])
    assert all(
        torch.equal(a.view(8, -1)[1], b.cpu().view(8, -1)[0])
        for a, b in zip(caches.look(here, "blocks"), shared, strict=True)
    )
    for cache in (fine, coarse):
        there.manager.unregister_cache(cache.cache_id)


# Between processes.


def serve(state: SimpleNamespace) -> int:
    port = instances.start(state, THERE, 1, {"mem_pool_cfg": POOL, "enable_remote_cache_accessible": False})
    state.manager = state.datadist.cache_manager
    return port


def allocate(state: SimpleNamespace) -> None:
    caches.add(state, "batch", 7, describe(), keys=[CacheKey(2, 0), CacheKey(2, 1)], allocate=True)


def remove_and_deallocate(state: SimpleNamespace) -> int:
    for request in (0, 1):
        state.manager.remove_cache_key(CacheKey(2, request))
    state.manager.deallocate_cache(state.caches["batch"])
    wait_until(lambda: free_pages(state, Placement.DEVICE) == POOL_PAGES)
    return len(state.manager.held_caches())


def pull_both(state: SimpleNamespace) -> None:
    state.manager = state.datadist.cache_manager
    for request in (0, 1):
        key = CacheKey(THERE, request)
        state.manager.pull_cache(key, state.caches["batch"], batch_index=request)
        check_raises(NO_CACHE, lambda key=key: state.manager.pull_cache(key, state.caches["batch"]))


def test_the_pull_cache_sample_between_processes(peers: Any) -> None:
    """5.5 pull_cache_sample: allocate after linking, pull each entry by its key, remove, deallocate."""
    a, b = peers(2)
    a.call(instances.start, HERE, 0, {"mem_pool_cfg": POOL, "enable_remote_cache_accessible": False})
    port = b.call(serve)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    b.call(allocate)
    a.call(add_destination)

    a.call(pull_both)

    assert caches.equal(a.call(caches.look, "batch"), entries())
    assert b.call(remove_and_deallocate) == 0


def add_destination(state: SimpleNamespace) -> None:
    caches.add(state, "batch", 100, describe(), allocate=True)


def test_memory_is_not_handed_out_again_while_a_peer_still_pulls_from_it(peers: Any) -> None:
    """Mended: in the original a late read of freed memory sees whatever is there by then."""
    a, b = peers(2)
    a.call(instances.start, HERE, 0, {"mem_pool_cfg": POOL, "enable_remote_cache_accessible": False})
    port = b.call(serve)
    a.call(add_destination)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    b.call(allocate)
    a.call(begin_slow_pull)
    b.call(reallocate_everything)
    a.call(end_slow_pull)

    assert holds([t.view(BATCH, -1)[0] for t in a.call(caches.look, "batch")], 0)


def begin_slow_pull(state: SimpleNamespace) -> None:
    """Returns when its copies are on the link's stream; they take 0.4 s."""
    emulator.set_bandwidth("peer", ENTRY / 0.1)
    manager, cache = state.datadist.cache_manager, state.caches["batch"]
    counter = emulator.fail_task(1 << 40, 507013, direction="peer")
    state.pull = threading.Thread(
        target=manager.pull_cache, args=(CacheKeyByIdAndIndex(THERE, 1, 0), cache), daemon=True
    )
    state.pull.start()
    wait_until(lambda: counter.hits > 0)


def end_slow_pull(state: SimpleNamespace) -> None:
    state.pull.join(10)


def reallocate_everything(state: SimpleNamespace) -> None:
    state.manager.unregister_cache(state.caches["batch"].cache_id)
    everything = state.manager.allocate_cache(CacheDesc(POOL_PAGES, [PAGE], DataType.DT_INT8))
    for tensor in everything.tensors:
        tensor.fill_(0)
    torch.npu.synchronize(state.device)
