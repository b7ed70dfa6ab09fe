"""Seed 000, TransferWithCacheKeyConfig: each sentence of it that promises something, in its order.

The table of products is in test_seed_products.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests import caches, instances
from tests.conformance.case import INVALID, check_raises
from tests.transfers import Always
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    LLMStatusCode,
    TransferWithCacheKeyConfig,
)

ONE = range(1)


def test_function_it_constructs_a_transfer_with_cache_key_config() -> None:
    assert isinstance(TransferWithCacheKeyConfig(BlocksCacheKey(1), ONE, ONE), TransferWithCacheKeyConfig)


def test_prototype_names_order_and_defaults() -> None:
    parameters = inspect.signature(TransferWithCacheKeyConfig).parameters

    assert {name: p.default for name, p in parameters.items()} == {
        "cache_key": inspect.Parameter.empty,
        "src_layer_range": None,
        "dst_layer_range": None,
        "src_batch_index": 0,
    }


@pytest.mark.parametrize("key", [BlocksCacheKey(7, 3), CacheKeyByIdAndIndex(7, 2, 1)])
def test_cache_key_is_one_of_two_classes_and_names_the_cluster_of_the_destination(key: Any) -> None:
    config = TransferWithCacheKeyConfig(key, ONE, ONE)

    assert config.cache_key is key
    assert config.dst_cluster_id == 7


@pytest.mark.parametrize("missing", ["src_layer_range", "dst_layer_range"])
def test_both_layer_ranges_are_required(missing: str) -> None:
    given: dict[str, Any] = {"src_layer_range": ONE, "dst_layer_range": ONE}
    del given[missing]

    assert missing in check_raises(TypeError, lambda: TransferWithCacheKeyConfig(BlocksCacheKey(1), **given))


@pytest.mark.parametrize("which", ["src_layer_range", "dst_layer_range"])
@pytest.mark.parametrize("step", [2, -1])
def test_layer_ranges_support_only_step_1(which: str, step: int) -> None:
    other = range(0, 4, 2) if step == 2 else range(1, -1, -1)
    given: dict[str, Any] = {"src_layer_range": range(2), "dst_layer_range": range(2), which: other}

    check_raises(INVALID, lambda: TransferWithCacheKeyConfig(BlocksCacheKey(1), **given))


def test_src_batch_index_can_be_set_for_a_source_that_is_not_paged() -> None:
    assert TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 1), ONE, ONE, 3).src_batch_index == 3


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, 1, 0)
    port = instances.start(there, 2, 1)
    for state in (here, there):
        caches.add(state, "batch", state.cluster_id, caches.describe(8, 3, 16))
    assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.mark.parametrize(("src", "dst"), [(range(1, 3), range(2, 4)), (range(3, 4), range(1))], ids=str)
@pytest.mark.parametrize("src_batch", [0, 2])
def test_src_is_the_local_and_dst_the_remote_range_and_src_batch_index_the_local_entry(
    pair: Any, src: range, dst: range, src_batch: int
) -> None:
    here, there = pair
    sent = caches.rows(caches.look(here, "batch"), 3)
    expected = caches.rows(caches.look(there, "batch"), 3)
    for source, destination in zip(src, dst, strict=True):
        for k in range(2):
            expected[2 * destination + k][1] = sent[2 * source + k][src_batch]
    key = CacheKeyByIdAndIndex(2, there.caches["batch"].cache_id, 1)

    task = here.datadist.cache_manager.transfer_cache_async(
        here.caches["batch"], Always(), [TransferWithCacheKeyConfig(key, src, dst, src_batch)]
    )

    assert task.get_results(30_000) == [LLMStatusCode.LLM_SUCCESS]
    assert caches.equal(caches.look(there, "batch"), expected)


def test_example_of_the_seed() -> None:
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1), range(0, 40), range(0, 40))

    assert (config.src_layer_range, config.dst_layer_range) == (range(40), range(40))


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        (TypeError, (1, ONE, ONE)),
        (TypeError, (BlocksCacheKey(1), [0], ONE)),
        (TypeError, (CacheKeyByIdAndIndex(1, 1), ONE, ONE, "0")),
        (ValueError, (CacheKeyByIdAndIndex(1, 1), ONE, ONE, -1)),
        (ValueError, (CacheKeyByIdAndIndex(1, 1), ONE, ONE, 2**32)),
        (INVALID, (BlocksCacheKey(1), range(0), range(0))),
    ],
)
def test_errors_are_type_error_value_error_or_llm_exception(
    expected: Any, arguments: tuple[Any, ...]
) -> None:
    check_raises(expected, lambda: TransferWithCacheKeyConfig(*arguments))


def test_constraint_the_source_range_is_as_long_as_the_destination_range() -> None:
    check_raises(INVALID, lambda: TransferWithCacheKeyConfig(BlocksCacheKey(1), range(3), range(2)))
    TransferWithCacheKeyConfig(BlocksCacheKey(1), range(3), range(4, 7))


def test_constraint_src_batch_index_is_0_with_a_blocks_cache_key() -> None:
    check_raises(INVALID, lambda: TransferWithCacheKeyConfig(BlocksCacheKey(1), ONE, ONE, 1))
