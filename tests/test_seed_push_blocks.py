"""Seed 003, push_blocks: each sentence that promises something is a test whose name says which.

The table of products is in test_seed_products.py.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    LLMException,
    LLMStatusCode,
    Placement,
    emulator,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
TENSORS, BLOCKS, BLOCK = 6, 5, 48
POOL = json.dumps({"memory_size": 1 << 16, "page_shift": 10})
PLACEMENTS = {"device": Placement.DEVICE, "host": Placement.HOST, "slow": Placement.DEVICE}
# What is pushed too slowly may still be on its way when the push has failed, so no other test uses "slow".
MODEL = {"device": 0, "host": 1, "slow": 2}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Without any device memory pool."""
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, 1, 0, {"host_mem_pool_cfg": POOL})
    port = instances.start(there, 2, 1, {"host_mem_pool_cfg": POOL})
    for state, seed in ((here, 10), (there, 20)):
        for where, placement in PLACEMENTS.items():
            caches.add(
                state, where, seed + MODEL[where], caches.describe(TENSORS, BLOCKS, BLOCK, placement),
                is_blocks=True, key=BlocksCacheKey(state.cluster_id, MODEL[where]), allocate=where == "host",
            )  # fmt: skip
        caches.add(state, "batch", seed + 5, caches.describe(TENSORS, BLOCKS, BLOCK))
    assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def before(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    seed = {1: 10, 2: 20}[state.cluster_id] + MODEL[name]
    content = caches.bytes_of(seed, [BLOCKS * BLOCK] * TENSORS)
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return caches.rows(content, BLOCKS)


def push(
    pair: Any, src: Any, dst: Any, *, here: str = "device", there: str = "device", **arguments: Any
) -> Any:
    """Pushes, and returns what the receiver then holds."""
    one, two = pair
    key = BlocksCacheKey(2, MODEL[there])
    one.datadist.cache_manager.push_blocks(key, one.caches[here], src, dst, **arguments)
    return caches.look(two, there)


def moved(pair: Any, here: str, there: str, src: Any, dst: Any, tensors: Any = None) -> list[torch.Tensor]:
    """What it holds in plain torch; ``tensors``: (source, destination) pairs, all by default."""
    sent, expected = before(pair[0], here), before(pair[1], there)
    for s, d in tensors or [(t, t) for t in range(TENSORS)]:
        expected[d][list(dst)] = sent[s][list(src)]
    return expected


def test_function_blocks_go_from_the_local_node_to_the_cache_of_the_key(pair: Any) -> None:
    expected = moved(pair, "device", "device", [0, 3], [4, 1])

    assert caches.equal(push(pair, [0, 3], [4, 1]), expected)


def test_prototype_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(CacheManager.push_blocks).parameters.values())[1:8]

    assert [(p.name, p.default) for p in parameters] == [
        ("dst_cache_key", inspect.Parameter.empty),
        ("src_cache", inspect.Parameter.empty),
        ("src_blocks", ()),
        ("dst_blocks", ()),
        ("src_layer_range", None),
        ("dst_layer_range", None),
        ("tensor_num_per_layer", 2),
    ]


def test_dst_cache_key_is_a_blocks_cache_key_of_the_remote_cache(pair: Any) -> None:
    one, _ = pair
    push_blocks, cache = one.datadist.cache_manager.push_blocks, one.caches["device"]

    for key in (CacheKeyByIdAndIndex(2, 1), 2, None):
        check_raises(TypeError, lambda key=key: push_blocks(key, cache, [0], [0]))
    check_raises(
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: push_blocks(BlocksCacheKey(2, 99), cache, [0], [0])
    )


def test_src_cache_is_a_local_cache(pair: Any) -> None:
    one, two = pair
    key, push_blocks = BlocksCacheKey(2), one.datadist.cache_manager.push_blocks

    check_raises(TypeError, lambda: push_blocks(key, 1, [0], [0]))
    check_raises(  # one of another instance is none of here
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: push_blocks(key, two.caches["device"], [0], [0])
    )


@pytest.mark.parametrize("src", [None, (), []])
def test_src_blocks_are_optional_in_type_and_needed_in_fact(pair: Any, src: Any) -> None:
    """``Optional``, with an empty default; PagedAttention's lists name the blocks to push."""
    check_raises(INVALID, lambda: push(pair, src, [0]))


@pytest.mark.parametrize("kind", [list, tuple])
def test_src_blocks_are_local_and_dst_blocks_remote_indices_in_a_list_or_tuple(pair: Any, kind: Any) -> None:
    expected = moved(pair, "device", "device", [4, 0, 1], [1, 2, 3])

    assert caches.equal(push(pair, kind([4, 0, 1]), kind([1, 2, 3])), expected)
    check_raises(TypeError, lambda: push(pair, {4}, {1}))


def test_layer_ranges_are_optional_and_none_means_all_layers(pair: Any) -> None:
    expected = moved(pair, "device", "device", [1], [2])

    assert caches.equal(push(pair, [1], [2], src_layer_range=None, dst_layer_range=None), expected)


@pytest.mark.parametrize("which", ["src_layer_range", "dst_layer_range"])
def test_layer_ranges_support_only_step_1(pair: Any, which: str) -> None:
    ranges = {"src_layer_range": range(2), "dst_layer_range": range(2), which: range(0, 4, 2)}

    check_raises(INVALID, lambda: push(pair, [1], [2], **ranges))


@pytest.mark.parametrize("per_layer", [1, 2, 3])
def test_a_range_counts_layers_each_of_n_consecutive_tensors(pair: Any, per_layer: int) -> None:
    """KV, …, KV: layer 1 of n tensors each is tensors n to 2n."""
    tensors = [(t, t) for t in range(per_layer, 2 * per_layer)]
    expected = moved(pair, "device", "device", [1], [2], tensors)
    layers = {"src_layer_range": range(1, 2), "dst_layer_range": range(1, 2)}

    assert caches.equal(push(pair, [1], [2], tensor_num_per_layer=per_layer, **layers), expected)


def test_tensor_num_per_layer_is_2_by_default(pair: Any) -> None:
    expected = moved(pair, "device", "device", [1], [2], [(2, 2), (3, 3)])

    assert caches.equal(
        push(pair, [1], [2], src_layer_range=range(1, 2), dst_layer_range=range(1, 2)), expected
    )


def test_tensor_num_per_layer_is_1_to_the_number_of_tensors(pair: Any) -> None:
    for per_layer in (1, TENSORS):
        push(pair, [1], [2], tensor_num_per_layer=per_layer)
    for per_layer in (0, TENSORS + 1):
        check_raises(
            INVALID, lambda per_layer=per_layer: push(pair, [1], [2], tensor_num_per_layer=per_layer)
        )


@pytest.mark.parametrize("per_layer", [1, 2, 3, 4, 5, TENSORS])
def test_without_a_range_all_layers_go_whatever_tensor_num_per_layer_is(pair: Any, per_layer: int) -> None:
    expected = moved(pair, "device", "device", [4], [0])

    assert caches.equal(push(pair, [4], [0], tensor_num_per_layer=per_layer), expected)


def test_with_a_range_tensor_num_per_layer_divides_the_number_of_tensors(pair: Any) -> None:
    layers = {"src_layer_range": range(1), "dst_layer_range": range(1)}
    for per_layer in (1, 2, 3, 6):
        push(pair, [1], [2], tensor_num_per_layer=per_layer, **layers)
    for per_layer in (4, 5):
        check_raises(
            INVALID,
            lambda per_layer=per_layer: push(pair, [1], [2], tensor_num_per_layer=per_layer, **layers),
        )


def test_return_value_is_none(pair: Any) -> None:
    one, _ = pair
    assert one.datadist.cache_manager.push_blocks(BlocksCacheKey(2), one.caches["device"], [0], [0]) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"src": "0"}, TypeError),
        ({"src": [0.0]}, TypeError),
        ({"dst": [-1]}, ValueError),
        ({"src_layer_range": 1}, TypeError),
        ({"tensor_num_per_layer": "2"}, TypeError),
        ({"tensor_num_per_layer": -1}, ValueError),
    ],
    ids=str,
)
def test_wrong_types_raise_type_error_or_value_error(pair: Any, given: Any, expected: Any) -> None:
    arguments = {"src": [0], "dst": [0], **given}
    check_raises(expected, lambda: push(pair, **arguments))


def test_longer_than_sync_kv_timeout_raises_llm_exception(pair: Any) -> None:
    """Mended: in the original each layer has so long, one after the other."""
    emulator.set_bandwidth("peer", BLOCK / 1.0)  # 1 s for each of six tensors; the limit is 0.4 s
    try:
        with instances.in_a_hurry(pair[0], 400):
            check_raises(LLMStatusCode.LLM_TIMEOUT, lambda: push(pair, [0], [0], here="slow", there="slow"))
    finally:
        emulator.set_bandwidth("peer", 0)


@pytest.mark.parametrize(
    "ranges",
    [(range(0), range(0)), (range(-1, 1), range(2)), (range(3, 4), range(1)), (range(1), range(3, 4))],
    ids=str,
)
def test_a_bad_layer_range_raises_llm_exception(pair: Any, ranges: Any) -> None:
    src, dst = ranges
    with pytest.raises(LLMException):
        push(pair, [0], [0], src_layer_range=src, dst_layer_range=dst)


def test_constraint_host_to_device_where_both_are_paged(pair: Any) -> None:
    one, _ = pair
    expected = moved(pair, "host", "device", [0, 3], [4, 1])

    assert caches.equal(push(pair, [0, 3], [4, 1], here="host"), expected)
    key = BlocksCacheKey(2)
    check_raises(INVALID, lambda: one.datadist.cache_manager.push_blocks(key, one.caches["batch"], [0], [0]))


def test_constraint_with_remote_access_both_caches_are_remote_accessible(pair: Any) -> None:
    """The page of ``enable_remote_cache_accessible``, to which this sentence points."""
    one, two = pair
    desc = caches.describe(TENSORS, BLOCKS, BLOCK)
    key = BlocksCacheKey(2, 7)
    caches.add(one, "closed", 30, desc, is_blocks=True, remote_accessible=False)
    caches.add(two, "closed", 31, desc, is_blocks=True, key=key, remote_accessible=False)
    push_blocks = one.datadist.cache_manager.push_blocks

    said = check_raises(INVALID, lambda: push_blocks(BlocksCacheKey(2), one.caches["closed"], [0], [0]))
    assert "remote_accessible" in said
    with pytest.raises(LLMException):
        push_blocks(key, one.caches["device"], [0], [0])


def test_constraint_without_remote_access_it_is_not_there() -> None:
    state = SimpleNamespace()
    instances.start(state, 3, 0, {"enable_remote_cache_accessible": False})
    caches.add(state, "blocks", 1, caches.describe(2, 2, 8), is_blocks=True)

    push_blocks = state.datadist.cache_manager.push_blocks
    check_raises(INVALID, lambda: push_blocks(BlocksCacheKey(2), state.caches["blocks"], [0], [0]))
    state.datadist.finalize()


@pytest.mark.parametrize(("here", "there"), [("device", "host"), ("host", "device")])
def test_constraint_d2h_and_h2d_need_a_device_pool_is_lifted(pair: Any, here: str, there: str) -> None:
    expected = moved(pair, here, there, [2], [0])

    assert caches.equal(push(pair, [2], [0], here=here, there=there), expected)


def test_constraint_only_equal_layer_ranges_is_lifted(pair: Any) -> None:
    expected = moved(pair, "device", "device", [2], [0], [(4, 0), (5, 1)])

    assert caches.equal(push(pair, [2], [0], src_layer_range=range(2, 3), dst_layer_range=range(1)), expected)
