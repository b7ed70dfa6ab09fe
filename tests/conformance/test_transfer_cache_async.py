"""2.7: what ``transfer_cache_async`` refuses at once, and in which order it looks; seed 001."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import Always, start, to
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

HOST = Cache.create_cpu_cache(CacheDesc(2, [4, 8], DataType.DT_FLOAT16, Placement.HOST), [16, 32])
BY_ID = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, 1), range(1), range(1), 1)


@pytest.fixture(scope="module")
def one() -> Iterator[SimpleNamespace]:
    state = start(1, 0)
    odd = [torch.zeros(4, 8, dtype=torch.float16, device="npu:0") for _ in range(3)]
    state.odd = state.manager.register_blocks_cache(CacheDesc(3, [4, 8], DataType.DT_FLOAT16), odd)
    state.plain = start(2, 0, enable_remote_cache_accessible=False)
    yield state
    state.plain.datadist.finalize()
    state.datadist.finalize()


def call(state: SimpleNamespace, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "src_cache": state.cache,
        "layer_synchronizer": Always(),
        "transfer_configs": [to(2)],
        "src_block_indices": [0],
        "dst_block_indices": [0],
        "dst_block_memory_size": None,
        **changes,
    }
    return state.manager.transfer_cache_async(**given)


NO_BLOCKS: dict[str, Any] = {"src_block_indices": None, "dst_block_indices": None}

ROWS = [
    row("2.7.1 src_cache = None", TypeError, {"src_cache": None}),
    row("2.7.1 src_cache = 1", TypeError, {"src_cache": 1}),
    row("2.7.1 src_cache on the host", INVALID, {"src_cache": HOST}),
    row("2.7.1 comes before 2.7.2", INVALID, {"src_cache": HOST, "dst_block_indices": 1}),
    row("2.7.2 dst_block_indices = range", TypeError, {"dst_block_indices": range(1)}),
    row("2.7.2 dst_block_indices = [None]", TypeError, {"dst_block_indices": [None]}),
    row("2.7.2 dst_block_indices = [True] (mended)", TypeError, {"dst_block_indices": [True]}),
    row("2.7.2 dst_block_indices = [-1]", ValueError, {"dst_block_indices": [-1]}),
    row("2.7.2 src_block_indices = 'x'", TypeError, {"src_block_indices": "x"}),
    row("2.7.2 src_block_indices = [1.0]", TypeError, {"src_block_indices": [1.0]}),
    row("2.7.2 src_block_indices = (-1,)", ValueError, {"src_block_indices": (-1,)}),
    row("2.7.2 dst_block_memory_size = '1'", TypeError, {"dst_block_memory_size": "1"}),
    row("2.7.2 dst_block_memory_size = -1", ValueError, {"dst_block_memory_size": -1}),
    row("2.7.2 dst_block_memory_size = 2**64", ValueError, {"dst_block_memory_size": 2**64}),
    row("2.7.3 source blocks only", INVALID, {"dst_block_indices": []}),
    row("2.7.3 source blocks only, None", INVALID, {"dst_block_indices": None}),
    row("2.7.3 other lengths", INVALID, {"src_block_indices": [0, 1]}),
    row("2.7.3 no size for destination blocks", INVALID, {"src_block_indices": None}),
    row("2.7.3 size 0 for destination blocks (mended)", INVALID,
        {"src_block_indices": None, "dst_block_memory_size": 0}),
    row("2.7.3 comes before 2.7.4", INVALID, {"dst_block_indices": [], "layer_synchronizer": None}),
    row("2.7.4 layer_synchronizer = None", TypeError, {"layer_synchronizer": None}),
    row("2.7.4 layer_synchronizer is a class", TypeError, {"layer_synchronizer": Always}),
    row("2.7.5 transfer_configs = None", TypeError, {"transfer_configs": None}),
    row("2.7.5 transfer_configs is one", TypeError, {"transfer_configs": to(2)}),
    row("2.7.5 transfer_configs = [None]", TypeError, {"transfer_configs": [to(2), None]}),
    row("2.7.5 the class of the other mode", TypeError, {"transfer_configs": [TransferConfig(2, [1, 2])]}),
    row("2.7.6 a size without destination blocks", INVALID, {**NO_BLOCKS, "dst_block_memory_size": 8}),
    row("2.7.7 source range ends behind the cache", INVALID,
        {"transfer_configs": [to(2), to(2, range(3, 5), range(2))]}),
    row("2.7.7 src_batch_index with source blocks", INVALID, {"transfer_configs": [BY_ID]}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "changes"), ROWS)
def test_bad_arguments_are_refused_at_once(
    one: SimpleNamespace, expected: Any, changes: dict[str, Any]
) -> None:
    assert "transfer_cache_async: " in check_raises(expected, lambda: call(one, **changes))


def test_an_odd_number_of_tensors_is_refused(one: SimpleNamespace) -> None:
    """2.7.7: a layer is two tensors here."""
    assert "3 tensors" in check_raises(INVALID, lambda: call(one, src_cache=one.odd))


def test_ranges_that_were_set_apart_are_refused(one: SimpleNamespace) -> None:
    config = to(2, range(2))
    config.dst_layer_range = range(1)

    check_raises(INVALID, lambda: call(one, transfer_configs=[config]))


@pytest.mark.parametrize(
    ("expected", "configs"),
    [
        row("2.7.5 the class of the other mode", TypeError, [to(2)]),
        row("2.7.7 dst_addrs too short", INVALID, [TransferConfig(2, [16, 32], range(2))]),
        row("2.7.7 dst_addrs empty", INVALID, [TransferConfig(2, [])]),
        row(
            "2.7.7 dst_addrs too long",
            INVALID,
            [TransferConfig(2, [16, 32], range(0, 1)), TransferConfig(2, [16])],
        ),
        row("2.7.7 src_batch_index", INVALID, [TransferConfig(2, [16, 32], range(1), 1)]),
    ],
)
def test_bad_configs_with_addresses_are_refused_at_once(
    one: SimpleNamespace, expected: Any, configs: list[Any]
) -> None:
    check_raises(expected, lambda: call(one.plain, transfer_configs=configs))


def test_what_is_not_checked_at_once_is_in_the_results(one: SimpleNamespace) -> None:
    """2.7: links, and whether the destination exists."""
    task = call(one, transfer_configs=[TransferWithCacheKeyConfig(BlocksCacheKey(77), range(1), range(1))])

    assert task.get_results(30_000) == [LLMStatusCode.LLM_NOT_YET_LINK]


def test_the_own_cluster_is_no_destination(one: SimpleNamespace) -> None:
    """2.8 row 17: there is no link to oneself."""
    assert call(one, transfer_configs=[to(1)]).get_results(30_000) == [LLMStatusCode.LLM_NOT_YET_LINK]
