"""Caches from pools, and how long they and their keys live (2.6, 4.2, 4.6 of the API's description).

Two instances in this process; "there" holds the caches, "here" pulls.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
    emulator,
)

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


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Without remote access: keys name entries, and go with the pull that used them."""
    here, there = pair_of(enable_remote_cache_accessible=False)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(scope="module")
def ra_pair() -> Iterator[Pair]:
    here, there = pair_of()
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def describe(placement: Placement = Placement.DEVICE, batch: int = BATCH) -> CacheDesc:
    return caches.describe(TENSORS, batch, ENTRY, placement)


@pytest.fixture(params=PLACEMENTS, ids=lambda p: p.name)
def placement(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def fresh(pair: Pair) -> Iterator[Callable[..., Cache]]:
    """Allocates caches of "there" with known bytes; what is left of them at the end goes."""
    _, there = pair
    made: list[Cache] = []

    def make(keys: list[CacheKey], placement: Placement = Placement.DEVICE, seed: int = 7) -> Cache:
        caches.add(there, "fresh", seed, describe(placement), keys=keys, allocate=True)
        made.append(there.caches["fresh"])
        return made[-1]

    yield make
    for cache in made:
        there.manager.unregister_cache(cache.cache_id)
    wait_until(lambda: not there.manager.held_caches())


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


# Allocation (2.6).


def test_an_allocated_cache_is_usable_memory_of_its_placement(pair: Pair, placement: Placement) -> None:
    _, there = pair
    desc = CacheDesc(3, [2, 4, 8], DataType.DT_FLOAT16, placement)

    contiguous = there.manager.allocate_cache(desc)
    blocks = there.manager.allocate_blocks_cache(desc, BlocksCacheKey(THERE, 40))

    for cache, is_blocks in ((contiguous, False), (blocks, True)):
        assert cache.is_blocks_cache == is_blocks
        assert cache.cache_desc is desc
        assert [t.device.type for t in cache.tensors] == [
            "npu" if placement == Placement.DEVICE else "cpu"
        ] * 3
        assert all(tuple(t.shape) == (2, 4, 8) and t.dtype == torch.float16 for t in cache.tensors)
        assert cache.tensor_addrs == [t.data_ptr() for t in cache.tensors]
        assert all(address % PAGE == cache.tensor_addrs[0] % PAGE for address in cache.tensor_addrs)
    assert blocks.cache_id == contiguous.cache_id + 1
    there.manager.deallocate_cache(contiguous)
    there.manager.deallocate_blocks_cache(blocks)
    assert contiguous.tensor_addrs == blocks.tensor_addrs == []


ALLOCATE_ERRORS: list[tuple[str, Any, Callable[[Any], object]]] = [
    ("2.6 desc is None (mended)", TypeError, lambda m: m.allocate_cache(None)),
    ("2.6 keys are None", TypeError, lambda m: m.allocate_cache(describe(), None)),
    ("2.6 a single key", TypeError, lambda m: m.allocate_cache(describe(), CacheKey(1, 1))),
    ("2.6 a key of another class", TypeError, lambda m: m.allocate_cache(describe(), [BlocksCacheKey(1)])),
    ("2.6 no tensors", INVALID, lambda m: m.allocate_cache(CacheDesc(0, [2, 4], DataType.DT_INT8))),
    ("2.6 a dimension is 0", INVALID, lambda m: m.allocate_cache(CacheDesc(1, [2, 0], DataType.DT_INT8))),
    ("2.6 32 dimensions", INVALID, lambda m: m.allocate_cache(CacheDesc(1, [1] * 32, DataType.DT_INT8))),
    ("2.6 more keys than entries", INVALID,
     lambda m: m.allocate_cache(describe(), [CacheKey(1, i) for i in range(900, 903)])),
    ("2.6 a key twice", INVALID, lambda m: m.allocate_cache(describe(), [CacheKey(1, 900)] * 2)),
    ("2.6 pool exhausted", OUT_OF_MEMORY,
     lambda m: m.allocate_cache(CacheDesc(1, [POOL_PAGES + 1, PAGE], DataType.DT_INT8))),
    ("2.6 blocks: desc is None (mended)", TypeError, lambda m: m.allocate_blocks_cache(None)),
    ("2.6 blocks: a CacheKey", TypeError, lambda m: m.allocate_blocks_cache(describe(), CacheKey(1, 1))),
    ("2.6 blocks: no tensors", INVALID,
     lambda m: m.allocate_blocks_cache(CacheDesc(0, [2, 4], DataType.DT_INT8))),
    ("2.6 blocks: pool exhausted", OUT_OF_MEMORY,
     lambda m: m.allocate_blocks_cache(CacheDesc(POOL_PAGES + 1, [1], DataType.DT_INT8))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "call"), [e[1:] for e in ALLOCATE_ERRORS], ids=[e[0] for e in ALLOCATE_ERRORS]
)
def test_allocation_refuses(pair: Pair, expected: Any, call: Callable[[Any], object]) -> None:
    _, there = pair
    message = check_raises(expected, lambda: call(there.manager))
    assert message.startswith("allocate_")


def test_tensors_that_were_taken_before_the_pool_ran_out_go_back(pair: Pair, placement: Placement) -> None:
    """2.6: all of them or none."""
    _, there = pair
    too_many = CacheDesc(POOL_PAGES + 1, [PAGE], DataType.DT_INT8, placement)
    check_raises(OUT_OF_MEMORY, lambda: there.manager.allocate_cache(too_many))

    all_of_it = there.manager.allocate_cache(CacheDesc(POOL_PAGES, [PAGE], DataType.DT_INT8, placement))

    there.manager.deallocate_cache(all_of_it)


def test_what_was_deallocated_can_be_allocated_at_once(pair: Pair, placement: Placement) -> None:
    _, there = pair
    for _ in range(3):
        cache = there.manager.allocate_blocks_cache(
            CacheDesc(POOL_PAGES, [PAGE], DataType.DT_INT8, placement), BlocksCacheKey(THERE, 41)
        )
        there.manager.deallocate_blocks_cache(cache)


@pytest.mark.parametrize("fails", ["add", "bind", "announce"])
@pytest.mark.parametrize("is_blocks", [True, False], ids=["blocks", "contiguous"])
def test_a_cache_that_could_not_be_added_leaves_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, fails: str, is_blocks: bool
) -> None:
    """Its memory is in the pool once, and no handle writes it."""
    _, there = pair
    manager = there.manager
    whole = CacheDesc(POOL_PAGES, [PAGE], DataType.DT_INT8)
    allocate = manager.allocate_blocks_cache if is_blocks else manager.allocate_cache
    opened, closed = [], []
    native = SimpleNamespace(**vars(manager._native))
    native.paged_open = lambda tensors: opened.append(manager_native.paged_open(tensors)) or opened[-1]
    native.paged_close = lambda handle: closed.append(handle) or manager_native.paged_close(handle)
    manager_native = manager._native
    held_by = {"add": manager._registry, "bind": manager._registry.keys, "announce": manager._links}[fails]

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(manager, "_native", native)
        patch.setattr(held_by, fails, fail)
        with pytest.raises(MemoryError, match="no room"):
            allocate(whole)

    assert len(opened) == is_blocks
    assert set(opened) <= set(closed)
    wait_until(lambda: not manager.held_caches())
    cache = allocate(whole)
    check_raises(OUT_OF_MEMORY, lambda: allocate(whole))  # given back once
    manager.unregister_cache(cache.cache_id)
    wait_until(lambda: not manager.held_caches())


def test_deallocating_is_idempotent_and_strict_about_kinds(pair: Pair) -> None:
    """2.6, 3.2 row 21."""
    here, there = pair
    contiguous, blocks = (
        there.manager.allocate_cache(describe()),
        there.manager.allocate_blocks_cache(describe()),
    )
    for call, wrong in (
        (there.manager.deallocate_cache, blocks),
        (there.manager.deallocate_blocks_cache, contiguous),
    ):
        check_raises(INVALID, lambda call=call, wrong=wrong: call(wrong))
        check_raises(TypeError, lambda call=call: call(None))  # mended: AttributeError in the original
        check_raises(TypeError, lambda call=call: call(1))

    for _ in range(2):
        there.manager.deallocate_cache(contiguous)
        there.manager.deallocate_blocks_cache(blocks)
    registered = here.caches["batch"]
    here.manager.deallocate_cache(registered)

    assert registered.tensor_addrs == [t.data_ptr() for t in here.raw["batch"]]  # 2.6: nothing happens
    check_raises(NO_CACHE, lambda: there.manager.pull_cache(CacheKeyByIdAndIndex(HERE, 1), contiguous))
    check_raises(NO_CACHE, lambda: there.manager.copy_blocks(blocks, {0: [1]}))


def test_without_a_pool_nothing_is_allocated() -> None:
    state = SimpleNamespace()
    instances.start(state, 3, 0, {"host_mem_pool_cfg": POOL})
    manager = state.datadist.cache_manager
    message = check_raises(INVALID, lambda: manager.allocate_cache(describe()))
    assert "no DEVICE memory pool; mem_pool_cfg makes one" in message
    cache = manager.allocate_cache(describe(Placement.HOST))
    manager.deallocate_cache(cache)
    state.datadist.finalize()

    instances.start(state, 3, 0)
    manager = state.datadist.cache_manager
    check_raises(INVALID, lambda: manager.allocate_blocks_cache(describe(Placement.HOST)))
    for call in (manager.deallocate_cache, manager.deallocate_blocks_cache):
        check_raises(NO_POOL, lambda call=call: call(cache))
    check_raises(NO_POOL, lambda: manager.remove_cache_key(CacheKey(3, 1)))
    check_raises(TypeError, lambda: manager.remove_cache_key(None))  # mended: AttributeError in the original
    check_raises(TypeError, lambda: manager.remove_cache_key(BlocksCacheKey(3, 1)))
    state.datadist.finalize()


def test_a_pool_that_does_not_fit_fails_init_which_may_be_tried_again() -> None:
    state = SimpleNamespace()
    huge = json.dumps({"memory_size": 1 << 50, "page_shift": 30})
    for name in ("mem_pool_cfg", "host_mem_pool_cfg"):
        message = check_raises(OUT_OF_MEMORY, lambda name=name: instances.start(state, 3, 0, {name: huge}))
        assert "memory" in message or "pool" in message
    instances.start(state, 3, 0, {"mem_pool_cfg": POOL})
    state.datadist.finalize()


def test_a_finalized_instance_refuses_as_the_original_does() -> None:
    state = SimpleNamespace()
    instances.start(state, 3, 0, {"mem_pool_cfg": POOL})
    manager = state.datadist.cache_manager
    cache = manager.allocate_cache(describe(), [CacheKey(3, 1)])
    state.datadist.finalize()

    failed = LLMStatusCode.LLM_FAILED
    check_raises(failed, lambda: manager.allocate_cache(describe()))
    check_raises(failed, lambda: manager.allocate_blocks_cache(describe()))
    check_raises(failed, lambda: manager.register_cache(describe(), [1]))
    check_raises(INVALID, lambda: manager.deallocate_cache(cache))
    check_raises(INVALID, lambda: manager.remove_cache_key(CacheKey(3, 1)))
    check_raises(INVALID, lambda: manager.copy_cache(cache, cache))
    check_raises(INVALID, lambda: manager.pull_cache(CacheKeyByIdAndIndex(1, 1), cache))


# Keys (4.2).


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


# Lifetimes (4.2): a reference for the handle, and one per key.


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
