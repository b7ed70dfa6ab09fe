"""Seed 001, transfer_cache_async: each sentence of it that promises something, in its order.

The table of products is in test_seed_products.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.conformance.case import INVALID, check_raises
from tests.transfers import (
    BLOCK_BYTES,
    BLOCKS,
    LAYERS,
    OK,
    Always,
    Gates,
    link,
    moved,
    pattern,
    restore,
    start,
    to,
    until,
)
from torch_llm_datadist import (
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    CacheTask,
    DataType,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from torch_llm_datadist.cache_manager import CacheManager

WAIT_MS = 30_000
POOL = '{"memory_size": 65536, "page_shift": 10}'


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Two linked instances of one process, on two devices."""
    here, there = start(1, 0), start(2, 1, host_mem_pool_cfg=POOL)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture
def pair(both: tuple[SimpleNamespace, SimpleNamespace]) -> tuple[SimpleNamespace, SimpleNamespace]:
    for each in both:
        restore(each)
    return both


def whole(src_blocks: list[int], dst_blocks: list[int]) -> torch.Tensor:
    return moved(pattern(2), pattern(1), range(LAYERS), range(LAYERS), src_blocks, dst_blocks)


@pytest.mark.races_on_purpose("looks whether the layer is there already")
def test_function_it_sends_a_cache_asynchronously_and_layer_by_layer(pair: Any) -> None:
    here, there = pair
    gates = Gates()

    task = here.manager.transfer_cache_async(here.cache, gates, [to(2)], [1], [2])

    expected = whole([1], [2])
    for layer in range(LAYERS):
        assert gates.reached[layer].wait(WAIT_MS / 1000)
        assert not task.done()  # it has returned, and this layer was not released
        first = 2 * layer
        assert torch.equal(instances.content(there)[first:], pattern(2)[first:])
        gates.open[layer].set()
        until(lambda end=first + 2: torch.equal(instances.content(there)[:end], expected[:end]))
    assert task.synchronize(WAIT_MS) == OK
    assert torch.equal(instances.content(there), expected)


def test_prototype_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(CacheManager.transfer_cache_async).parameters.values())[1:]

    assert [(p.name, p.default) for p in parameters] == [
        ("src_cache", inspect.Parameter.empty),
        ("layer_synchronizer", inspect.Parameter.empty),
        ("transfer_configs", inspect.Parameter.empty),
        ("src_block_indices", None),
        ("dst_block_indices", None),
        ("dst_block_memory_size", None),
    ]


def test_src_cache_is_the_cache_that_is_sent(pair: Any) -> None:
    here, there = pair
    other = SimpleNamespace(datadist=here.datadist, device=here.device, cluster_id=1)
    desc = caches.describe(2 * LAYERS, BLOCKS, BLOCK_BYTES)
    caches.add(other, "other", 7, desc, is_blocks=True)

    task = here.manager.transfer_cache_async(other.caches["other"], Always(), [to(2)], [1], [2])

    assert task.synchronize(WAIT_MS) == OK
    sent = torch.stack(caches.rows(caches.look(other, "other"), BLOCKS))
    assert torch.equal(
        instances.content(there), moved(pattern(2), sent, range(LAYERS), range(LAYERS), [1], [2])
    )


def test_layer_synchronizer_is_an_object_of_a_class_that_implements_it(pair: Any) -> None:
    here, _ = pair
    synchronizer = Always()

    here.manager.transfer_cache_async(here.cache, synchronizer, [to(2)], [0], [0]).synchronize(WAIT_MS)

    assert [layer for layer, _ in synchronizer.asked] == list(range(LAYERS))
    check_raises(
        TypeError, lambda: here.manager.transfer_cache_async(here.cache, lambda *_: True, [to(2)], [0], [0])
    )


@pytest.mark.parametrize("kind", [list, tuple])
def test_transfer_configs_are_a_list_or_a_tuple(pair: Any, kind: type) -> None:
    here, there = pair

    task = here.manager.transfer_cache_async(here.cache, Always(), kind([to(2)]), [1], [2])

    assert task.synchronize(WAIT_MS) == OK
    assert torch.equal(instances.content(there), whole([1], [2]))


@pytest.mark.parametrize("kind", [list, tuple])
def test_block_indices_name_the_blocks_of_a_paged_source_and_a_paged_destination(
    pair: Any, kind: type
) -> None:
    here, there = pair

    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], kind([0, 3, 1]), kind([5, 2, 4]))

    assert task.synchronize(WAIT_MS) == OK
    assert torch.equal(instances.content(there), whole([0, 3, 1], [5, 2, 4]))


def contiguous(state: SimpleNamespace, desc: CacheDesc) -> SimpleNamespace:
    """A contiguous cache of the instance, with bytes that its cluster_id says."""
    own = SimpleNamespace(datadist=state.datadist, device=state.device, cluster_id=state.cluster_id)
    caches.add(own, "batch", state.cluster_id, desc)
    return own


def test_without_block_indices_an_entry_of_a_contiguous_source_goes_to_an_entry(pair: Any) -> None:
    here, there = (contiguous(state, caches.describe(4, 3, 64)) for state in pair)
    key = CacheKeyByIdAndIndex(2, there.caches["batch"].cache_id, 2)
    config = TransferWithCacheKeyConfig(key, range(2), range(2), 1)

    task = pair[0].manager.transfer_cache_async(here.caches["batch"], Always(), [config])

    assert task.synchronize(WAIT_MS) == OK
    for sent, found in zip(caches.bytes_of(1, [192] * 4), caches.look(there, "batch"), strict=True):
        assert torch.equal(found[128:], sent[64:128])


def test_dst_block_memory_size_says_how_an_entry_is_cut_into_destination_blocks(pair: Any) -> None:
    here, there = pair
    source = contiguous(here, caches.describe(2 * LAYERS, 3, 600)).caches["batch"]
    before = instances.content(there)

    task = here.manager.transfer_cache_async(source, Always(), [to(2)], None, [5, 0, 3], BLOCK_BYTES)

    assert task.synchronize(WAIT_MS) == OK, task.details()
    for tensor, sent in enumerate(caches.bytes_of(1, [1800] * 2 * LAYERS)):
        for block, part in zip([5, 0, 3], sent[:600].split(BLOCK_BYTES), strict=True):
            before[tensor, block, : len(part)] = part
    assert torch.equal(instances.content(there), before)
    check_raises(INVALID, lambda: call(here, src_cache=source, src_block_indices=None))


@pytest.mark.parametrize("size", [None, 0, 256], ids=["omitted", "0 is as omitted", "given"])
def test_dst_block_memory_size_is_that_of_the_source_block_when_it_is_omitted(pair: Any, size: Any) -> None:
    here, there = pair

    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], [0], [1], size)

    assert task.synchronize(WAIT_MS) == OK
    assert torch.equal(instances.content(there), whole([0], [1]))


def test_example_of_the_seed_returns_a_cache_task(pair: Any) -> None:
    here, _ = pair

    cache_task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)])

    assert isinstance(cache_task, CacheTask)
    assert cache_task.get_results(WAIT_MS) == [OK]


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (TypeError, {"src_cache": 1}),
        (TypeError, {"layer_synchronizer": None}),
        (TypeError, {"transfer_configs": to(2)}),
        (TypeError, {"src_block_indices": range(1)}),
        (ValueError, {"dst_block_indices": [-1]}),
        (ValueError, {"dst_block_memory_size": -1}),
    ],
)
def test_wrong_types_raise_type_error_or_value_error(
    pair: Any, expected: Any, changes: dict[str, Any]
) -> None:
    check_raises(expected, lambda: call(pair[0], **changes))


def test_illegal_values_raise_llm_exception(pair: Any) -> None:
    check_raises(INVALID, lambda: call(pair[0], src_block_indices=[0, 1]))
    check_raises(INVALID, lambda: call(pair[0], transfer_configs=[to(2, range(LAYERS + 1))]))


def call(state: SimpleNamespace, **changes: Any) -> CacheTask:
    given: dict[str, Any] = {
        "src_cache": state.cache,
        "layer_synchronizer": Always(),
        "transfer_configs": [to(2)],
        "src_block_indices": [0],
        "dst_block_indices": [0],
        **changes,
    }
    task: CacheTask = state.manager.transfer_cache_async(**given)
    return task


def test_constraint_a_source_on_the_host_is_refused(pair: Any) -> None:
    desc = CacheDesc(2, [1, 8], DataType.DT_INT8, Placement.HOST)

    check_raises(INVALID, lambda: call(pair[0], src_cache=Cache.create_cpu_cache(desc, [16, 32])))


def test_constraint_paged_source_to_a_destination_that_is_not_is_refused(pair: Any) -> None:
    check_raises(INVALID, lambda: call(pair[0], dst_block_indices=None))


def test_constraint_single_process_with_several_devices_is_lifted(pair: Any) -> None:
    here, there = pair
    assert here.device != there.device

    assert call(here, src_block_indices=[3], dst_block_indices=[1]).synchronize(WAIT_MS) == OK
    assert torch.equal(instances.content(there), whole([3], [1]))


@pytest.mark.parametrize("is_allocated", [True, False], ids=["allocate_cache", "register_cache"])
def test_constraint_a_host_destination_from_allocate_cache_only_is_lifted(
    pair: Any, is_allocated: bool
) -> None:
    here = contiguous(pair[0], caches.describe(2 * LAYERS, 3, 600))
    there = SimpleNamespace(datadist=pair[1].datadist, device=1, cluster_id=2)
    on_host = caches.describe(2 * LAYERS, 3, 600, Placement.HOST)
    how: dict[str, Any] = {"allocate": True} if is_allocated else {"remote_accessible": True}
    cache_id = caches.add(there, "on host", 2, on_host, **how)
    config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, cache_id, 2), range(LAYERS), range(LAYERS))

    task = pair[0].manager.transfer_cache_async(here.caches["batch"], Always(), [config])

    assert task.synchronize(WAIT_MS) == OK, task.details()
    expected = caches.rows(caches.bytes_of(2, [1800] * 2 * LAYERS), 3)
    for tensor, sent in zip(expected, caches.bytes_of(1, [1800] * 2 * LAYERS), strict=True):
        tensor[2] = sent[:600]
    assert caches.equal(caches.look(there, "on host"), expected)


def test_constraint_the_caller_answers_for_block_indices_is_lifted_they_are_checked(pair: Any) -> None:
    here, there = pair
    before = instances.content(there)

    assert call(here, src_block_indices=[0], dst_block_indices=[10**6]).get_results(WAIT_MS) == [INVALID]

    assert torch.equal(instances.content(there), before)


def test_constraint_the_caller_answers_for_dst_addrs_is_lifted_they_are_checked() -> None:
    here, there = (start(each, each - 5, enable_remote_cache_accessible=False) for each in (5, 6))
    link(here, there)
    nowhere = TransferConfig(6, [address + 1 for address in there.cache.tensor_addrs])
    try:
        assert call(here, transfer_configs=[nowhere]).get_results(WAIT_MS) == [INVALID]
        assert torch.equal(instances.content(there), pattern(6))
    finally:
        here.datadist.finalize()
        there.datadist.finalize()


def test_constraint_remote_accessible_mode_takes_configs_with_keys_only(pair: Any) -> None:
    check_raises(TypeError, lambda: call(pair[0], transfer_configs=[TransferConfig(2, [1, 2])]))


def test_constraint_without_it_configs_with_addresses_only(pair: Any) -> None:
    here, there = (start(each, each - 5, enable_remote_cache_accessible=False) for each in (5, 6))
    link(here, there)
    try:
        check_raises(TypeError, lambda: call(here, transfer_configs=[to(6)]))
        task = call(
            here, transfer_configs=[TransferConfig(6, there.cache.tensor_addrs)],
            src_block_indices=[1], dst_block_indices=[2],
        )  # fmt: skip
        assert task.get_results(WAIT_MS) == [OK], task.details()
        expected = moved(pattern(6), pattern(5), range(LAYERS), range(LAYERS), [1], [2])
        assert torch.equal(instances.content(there), expected)
    finally:
        here.datadist.finalize()
        there.datadist.finalize()
