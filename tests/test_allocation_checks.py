"""Caches from pools: what is allocated, what is refused, what goes back (2.6, 4.6 of the API's
description)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.allocated import (
    HERE,
    INVALID,
    NO_CACHE,
    NO_POOL,
    OUT_OF_MEMORY,
    PAGE,
    PLACEMENTS,
    POOL,
    POOL_PAGES,
    THERE,
    Pair,
    describe,
    pair_for_a_module,
    wait_until,
)
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    Placement,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Without remote access: keys name entries, and go with the pull that used them."""
    with pair_for_a_module(enable_remote_cache_accessible=False) as found:
        yield found


@pytest.fixture(params=PLACEMENTS, ids=lambda p: p.name)
def placement(request: pytest.FixtureRequest) -> Any:
    return request.param


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


def test_no_list_is_made_of_more_tensors_than_there_can_be(
    pair: Pair, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One would have 2**31 - 1 entries, and take the call minutes and the host's memory."""
    _, there = pair
    tensor = torch.zeros(2, 32, device=f"npu:{there.device}" if placement == Placement.DEVICE else "cpu")
    many = CacheDesc(2**31 - 1, [2, 32], DataType.DT_FLOAT, placement)
    for name in ("tensors", "tensor_sizes"):
        monkeypatch.setattr(CacheDesc, name, property(lambda desc: pytest.fail("a list is made")))

    for register in (there.manager.register_cache, there.manager.register_blocks_cache):
        for addrs in ([tensor], [tensor.data_ptr()], []):
            check_raises(INVALID, lambda register=register, addrs=addrs: register(many, addrs))
    for allocate in (there.manager.allocate_cache, there.manager.allocate_blocks_cache):
        message = check_raises(OUT_OF_MEMORY, lambda allocate=allocate: allocate(many))
        assert f"{2**31 - 1} tensors of {(2**31 - 1) * 256} bytes in all do not fit" in message


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
