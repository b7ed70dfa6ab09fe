"""pull_cache, push_cache, and pull_blocks from an entry: what they refuse. "2.6" is the section of the API's
description that a case shows."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.conformance.case import check_raises
from tests.entries import (
    BATCH,
    BLOCKS,
    ENTRY,
    HERE,
    INVALID,
    NO_CACHE,
    NOT_LINKED,
    NOWHERE,
    THERE,
    Pair,
    by_id,
    pair_for_a_module,
    restore,
)
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    MemInfo,
    Memtype,
)


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair_for_a_module(**caches.MODES[request.param]) as found:
        yield found


@pytest.fixture(scope="module")
def ra_pair() -> Iterator[Pair]:
    with pair_for_a_module() as found:
        yield found


# What is refused. Each case: what differs from a good call.

PULL_ERRORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("2.6 key is None", TypeError, {"cache_key": None}),
    ("2.6 key is a BlocksCacheKey", TypeError, {"cache_key": BlocksCacheKey(THERE, 0)}),
    ("2.6 cache is None", TypeError, {"cache": None}),
    ("2.6 blocks cache", INVALID, {"cache": "blocks"}),
    ("2.6 unknown local cache", NO_CACHE,
     {"cache": datadist.Cache(99, CacheDesc(4, [3, 64], DataType.DT_UINT8), [1] * 4, False)}),
    ("2.6 batch_index past the end", INVALID, {"batch_index": BATCH}),
    ("2.6 batch_index -1", ValueError, {"batch_index": -1}),
    ("2.6 batch_index None", TypeError, {"batch_index": None}),
    ("3.2 row 1 batch_index True (mended)", TypeError, {"batch_index": True}),
    ("2.6 size 0", INVALID, {"size": 0}),
    ("2.6 size -2", INVALID, {"size": -2}),
    ("2.6 size larger than an entry", INVALID, {"size": ENTRY + 1}),
    ("2.6 size 2**63", ValueError, {"size": 2**63}),
    ("2.6 size None", TypeError, {"size": None}),
    ("3.2 row 5 empty range (mended)", INVALID, {"src_layer_range": range(0)}),
    ("3.2 row 5 step 2", INVALID, {"dst_layer_range": range(0, 2, 2)}),
    ("3.2 row 5 list", TypeError, {"src_layer_range": [0, 1]}),
    ("2.8 row 3 source range past the end (mended)", INVALID,
     {"src_layer_range": range(2, 3), "dst_layer_range": range(1)}),
    ("2.6 ranges of other lengths", INVALID, {"src_layer_range": range(1), "dst_layer_range": range(2)}),
    ("2.6 tensor_num_per_layer 0", INVALID, {"tensor_num_per_layer": 0}),
    ("2.6 tensor_num_per_layer -1", ValueError, {"tensor_num_per_layer": -1}),
    ("2.6 tensor_num_per_layer None", TypeError, {"tensor_num_per_layer": None}),
    ("2.6 tensor_num_per_layer a float", TypeError, {"tensor_num_per_layer": 2.0}),
    ("2.6 tensor_num_per_layer does not divide, with a range", INVALID,
     {"tensor_num_per_layer": 3, "src_layer_range": range(1), "dst_layer_range": range(1)}),
    ("3.2 row 9 unknown keyword (mended)", TypeError, {"src_layer_rnge": range(1)}),
    ("2.6 own cluster", INVALID, {"cache_key": CacheKeyByIdAndIndex(HERE, 1)}),
    ("2.6 no link", NOT_LINKED, {"cache_key": CacheKeyByIdAndIndex(NOWHERE, 1)}),
    ("2.6 no such cache there", NO_CACHE, {"cache_key": CacheKeyByIdAndIndex(THERE, 77)}),
    ("2.5 cache_id 0 (mended: the blocks cache of model 0)", NO_CACHE,
     {"cache_key": CacheKeyByIdAndIndex(THERE, 0)}),
    ("2.5 cache_id -1 (mended: ends the server)", NO_CACHE, {"cache_key": CacheKeyByIdAndIndex(THERE, -1)}),
    ("2.6 remote batch index past the end", INVALID, {"cache_key": ("batch", BATCH)}),
    ("2.8 row 14 remote is a blocks cache", INVALID, {"cache_key": ("blocks", 0)}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given"), [e[1:] for e in PULL_ERRORS], ids=[e[0] for e in PULL_ERRORS])
def test_pull_cache_refuses(pair: Pair, expected: Any, given: dict[str, Any]) -> None:
    here, there = pair
    before = restore(here, "batch")
    arguments = {"cache_key": ("batch", 0), "cache": "batch", **given}
    key, cache = arguments.pop("cache_key"), arguments.pop("cache")
    key = by_id(there, *key) if isinstance(key, tuple) else key
    cache = here.caches[cache] if isinstance(cache, str) else cache

    message = check_raises(expected, lambda: here.datadist.cache_manager.pull_cache(key, cache, **arguments))

    if "src_layer_rnge" not in given:
        assert message.startswith("pull_cache: ")
    assert caches.equal(caches.look(here, "batch"), before)
    here.datadist.cache_manager.pull_cache(by_id(there, "batch"), here.caches["batch"])  # still usable


PUSH_ERRORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("seed 004 key is None", TypeError, {"key": None}),
    ("seed 004 key is a BlocksCacheKey", TypeError, {"key": BlocksCacheKey(THERE, 0)}),
    ("seed 004 key is a CacheKey", TypeError, {"key": CacheKey(THERE, 0)}),
    ("seed 004 cache is None", TypeError, {"cache": None}),
    ("2.6 blocks cache", INVALID, {"cache": "blocks"}),
    ("2.6 src_batch_index past the end", INVALID, {"src_batch_index": BATCH}),
    ("2.6 src_batch_index -1", ValueError, {"src_batch_index": -1}),
    ("2.6 size 64", INVALID, {"size": 64}),
    ("2.6 size 0", INVALID, {"size": 0}),
    ("2.6 size -2**63-1", ValueError, {"size": -(2**63) - 1}),
    ("2.6 size a float", TypeError, {"size": -1.0}),
    ("2.6 ranges of other lengths", INVALID, {"src_layer_range": range(1), "dst_layer_range": range(2)}),
    ("2.6 only one range", INVALID, {"src_layer_range": range(1)}),
    ("3.2 row 6 step 2", INVALID, {"src_layer_range": range(0, 2, 2)}),
    ("3.2 row 6 empty", INVALID, {"dst_layer_range": range(0)}),
    ("3.2 row 6 negative", INVALID, {"src_layer_range": range(-1, 0)}),
    ("3.2 row 6 list", TypeError, {"dst_layer_range": [0]}),
    ("3.2 row 7 tensor_num_per_layer 0", INVALID, {"tensor_num_per_layer": 0}),
    ("2.8 row 11 destination range past the end", INVALID,
     {"src_layer_range": range(1), "dst_layer_range": range(2, 3)}),
    ("2.6 row 18 more tensors per layer than tensors (mended)", INVALID, {"tensor_num_per_layer": 5}),
    ("2.6 tensor_num_per_layer does not divide, with ranges", INVALID,
     {"tensor_num_per_layer": 3, "src_layer_range": range(1), "dst_layer_range": range(1)}),
    ("2.6 no link", NOT_LINKED, {"key": CacheKeyByIdAndIndex(NOWHERE, 1)}),
    ("2.8 row 17 own cluster", NOT_LINKED, {"key": CacheKeyByIdAndIndex(HERE, 1)}),
    ("2.6 no such cache there", NO_CACHE, {"key": CacheKeyByIdAndIndex(THERE, 77)}),
    ("2.8 row 11 remote batch index past the end", INVALID, {"key": ("batch", BATCH)}),
    ("2.8 row 11 remote is a blocks cache (mended)", INVALID, {"key": ("blocks", 1)}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given"), [e[1:] for e in PUSH_ERRORS], ids=[e[0] for e in PUSH_ERRORS])
def test_push_cache_refuses(ra_pair: Pair, expected: Any, given: dict[str, Any]) -> None:
    here, there = ra_pair
    before = restore(there, "batch")
    arguments = {"key": ("batch", 0), "cache": "batch", **given}
    key, cache = arguments.pop("key"), arguments.pop("cache")
    key = by_id(there, *key) if isinstance(key, tuple) else key
    cache = here.caches[cache] if isinstance(cache, str) else cache

    message = check_raises(expected, lambda: here.datadist.cache_manager.push_cache(key, cache, **arguments))

    assert message.startswith("push_cache: ")
    assert caches.equal(caches.look(there, "batch"), before)


ENTRY_TO_BLOCKS_ERRORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("2.6 src_blocks not empty", INVALID, {"src_blocks": [0]}),
    ("2.6 dst_blocks empty", INVALID, {"dst_blocks": []}),
    ("2.6 block past the end", INVALID, {"dst_blocks": [BLOCKS]}),
    ("2.6 negative block", ValueError, {"dst_blocks": [-1]}),
    ("a block twice", INVALID, {"dst_blocks": [1, 1]}),
    ("2.8 row 16 more slices than the entry has (mended)", INVALID, {"dst_blocks": [0, 1, 2, 3]}),
    ("2.6 contiguous destination", INVALID, {"dst_cache": "batch"}),
    ("2.8 row 4 source is a blocks cache (mended)", INVALID, {"src_cache_key": ("blocks", 0)}),
    ("2.8 row 4 remote batch index past the end (mended)", INVALID, {"src_cache_key": ("batch", BATCH)}),
    ("2.6 no such cache", NO_CACHE, {"src_cache_key": CacheKeyByIdAndIndex(THERE, 77)}),
    ("2.5 both ids", INVALID, {"src_cache_key": CacheKey(THERE, 1, 0, 2)}),
    ("2.5 neither id", INVALID, {"src_cache_key": CacheKey(THERE, 2**64 - 1)}),
    ("2.6 unknown key", NO_CACHE, {"src_cache_key": CacheKey(THERE, 12345)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "given"), [e[1:] for e in ENTRY_TO_BLOCKS_ERRORS], ids=[e[0] for e in ENTRY_TO_BLOCKS_ERRORS]
)
def test_pull_blocks_of_an_entry_refuses(pair: Pair, expected: Any, given: dict[str, Any]) -> None:
    here, there = pair
    before = restore(here, "blocks")
    arguments = {
        "src_cache_key": ("batch", 0),
        "dst_cache": "blocks",
        "src_blocks": [],
        "dst_blocks": [0],
        **given,
    }
    key, name = arguments.pop("src_cache_key"), arguments.pop("dst_cache")
    key = by_id(there, *key) if isinstance(key, tuple) else key

    message = check_raises(
        expected, lambda: here.datadist.cache_manager.pull_blocks(key, here.caches[name], **arguments)
    )

    assert message.startswith("pull_blocks: ")
    assert caches.equal(caches.look(here, "blocks"), before)


def test_with_remote_access_pull_cache_takes_ids_only(ra_pair: Pair) -> None:
    """2.6: a CacheKey is a TypeError while enable_remote_cache_accessible is on."""
    here, _ = ra_pair
    check_raises(
        TypeError, lambda: here.datadist.cache_manager.pull_cache(CacheKey(THERE, 1), here.caches["batch"])
    )


def test_a_block_op_refuses_a_contiguous_cache_and_the_other_way_round(ra_pair: Pair) -> None:
    """What the ops themselves check: torch users come without the manager."""
    here, there = ra_pair
    link, ids = here.datadist.link_id(THERE), torch.tensor([0])
    contiguous = list(here.caches["batch"].tensors)
    there_id = there.caches["batch"].cache_id

    check_raises(INVALID, lambda: datadist.ops.push_blocks(here.status, contiguous, ids, ids, link=link))
    blocks = list(here.caches["blocks"].tensors)
    check_raises(INVALID, lambda: datadist.ops.push_cache(here.status, blocks, link=link, cache_id=there_id))
    check_raises(
        INVALID,
        lambda: datadist.ops.pull_cache(here.status, contiguous, ids, link=link, cache_id=there_id),
    )
    check_raises(
        INVALID,
        lambda: datadist.ops.pull_cache(here.status, contiguous, link=link, cache_id=there_id, size=0),
    )


# Reserved.


@pytest.mark.parametrize(
    ("expected", "infos"),
    [
        (INVALID, None),
        (INVALID, ()),
        (INVALID, []),
        (INVALID, [1]),
        (INVALID, MemInfo(Memtype.MEM_TYPE_HOST, 4096, 1)),
        (INVALID, MemInfo(Memtype.MEM_TYPE_DEVICE, 0, 1)),
        (INVALID, [MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 0)]),
        (LLMStatusCode.LLM_FEATURE_NOT_ENABLED, MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 1)),
        (LLMStatusCode.LLM_FEATURE_NOT_ENABLED, [MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 1)]),
    ],
    ids=str,
)
def test_remap_registered_memory_checks_its_arguments_and_is_reserved(
    ra_pair: Pair, expected: Any, infos: Any
) -> None:
    """2.6: also in the original it is not supported at present. Mended: here it says so, with a code."""
    here, _ = ra_pair
    check_raises(expected, lambda: here.datadist.cache_manager.remap_registered_memory(infos))


def test_remap_registered_memory_needs_a_link() -> None:
    state = SimpleNamespace()
    instances.start(state, 5, 0)
    info = MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 1)
    check_raises(NOT_LINKED, lambda: state.datadist.cache_manager.remap_registered_memory(info))
    state.datadist.finalize()
