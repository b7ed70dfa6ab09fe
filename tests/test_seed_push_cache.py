"""Seed 004, push_cache: each sentence that promises something is a test whose name says which.

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
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    LLMException,
    LLMStatusCode,
    Placement,
    emulator,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
TENSORS, BATCH, ENTRY = 6, 3, 48
POOL = json.dumps({"memory_size": 1 << 16, "page_shift": 10})
PLACEMENTS = {"device": Placement.DEVICE, "host": Placement.HOST, "slow": Placement.DEVICE}
# What is pushed too slowly may still be on its way when the push has failed, so no other test uses "slow".
SEED = {"device": 0, "host": 1, "slow": 2}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Without any device memory pool."""
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, 1, 0, {"host_mem_pool_cfg": POOL})
    port = instances.start(there, 2, 1, {"host_mem_pool_cfg": POOL})
    for state, seed in ((here, 10), (there, 20)):
        for where, placement in PLACEMENTS.items():
            desc = caches.describe(TENSORS, BATCH, ENTRY, placement)
            caches.add(state, where, seed + SEED[where], desc, allocate=where == "host")
        caches.add(state, "blocks", seed + 5, caches.describe(TENSORS, BATCH, ENTRY), is_blocks=True)
    assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def before(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    seed = {1: 10, 2: 20}[state.cluster_id] + SEED[name]
    content = caches.bytes_of(seed, [BATCH * ENTRY] * TENSORS)
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return caches.rows(content, BATCH)


def push(
    pair: Any, src: Any, dst: int, *, here: str = "device", there: str = "device", **arguments: Any
) -> Any:
    """Pushes entry ``src`` to entry ``dst``, and returns what the receiver then holds."""
    one, two = pair
    key = CacheKeyByIdAndIndex(2, two.caches[there].cache_id, dst)
    one.datadist.cache_manager.push_cache(key, one.caches[here], src, **arguments)
    return caches.look(two, there)


def moved(pair: Any, here: str, there: str, src: int, dst: int, tensors: Any = None) -> list[torch.Tensor]:
    """What it holds in plain torch; ``tensors``: (source, destination) pairs, all by default."""
    sent, expected = before(pair[0], here), before(pair[1], there)
    for s, d in tensors or [(t, t) for t in range(TENSORS)]:
        expected[d][dst] = sent[s][src]
    return expected


def test_function_a_cache_goes_from_the_local_node_to_the_remote_cache_of_the_key(pair: Any) -> None:
    expected = moved(pair, "device", "device", 1, 2)

    assert caches.equal(push(pair, 1, 2), expected)


def test_prototype_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(CacheManager.push_cache).parameters.values())[1:8]

    assert [(p.name, p.default) for p in parameters] == [
        ("dst_cache_key", inspect.Parameter.empty),
        ("src_cache", inspect.Parameter.empty),
        ("src_batch_index", 0),
        ("src_layer_range", None),
        ("dst_layer_range", None),
        ("size", -1),
        ("tensor_num_per_layer", 2),
    ]


def test_dst_cache_key_is_a_cache_key_by_id_and_index_of_the_remote_cache(pair: Any) -> None:
    one, _ = pair
    push_cache, cache = one.datadist.cache_manager.push_cache, one.caches["device"]

    for key in (BlocksCacheKey(2), CacheKey(2, 1), 2, None):
        check_raises(TypeError, lambda key=key: push_cache(key, cache))
    check_raises(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: push_cache(CacheKeyByIdAndIndex(2, 99), cache))


def test_src_cache_is_a_local_cache(pair: Any) -> None:
    one, two = pair
    push_cache, key = one.datadist.cache_manager.push_cache, CacheKeyByIdAndIndex(2, 1)

    check_raises(TypeError, lambda: push_cache(key, 1))
    check_raises(  # one of another instance is none of here
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: push_cache(key, two.caches["device"])
    )


def test_src_batch_index_is_the_local_batch_index_and_0_by_default(pair: Any) -> None:
    one, two = pair
    expected = moved(pair, "device", "device", 0, 1)
    key = CacheKeyByIdAndIndex(2, two.caches["device"].cache_id, 1)

    one.datadist.cache_manager.push_cache(key, one.caches["device"])

    assert caches.equal(caches.look(two, "device"), expected)


def test_layer_ranges_are_optional_and_none_means_all_layers(pair: Any) -> None:
    expected = moved(pair, "device", "device", 1, 2)

    assert caches.equal(push(pair, 1, 2, src_layer_range=None, dst_layer_range=None), expected)


@pytest.mark.parametrize("which", ["src_layer_range", "dst_layer_range"])
def test_layer_ranges_support_only_step_1(pair: Any, which: str) -> None:
    ranges = {"src_layer_range": range(2), "dst_layer_range": range(2), which: range(0, 4, 2)}

    check_raises(INVALID, lambda: push(pair, 1, 2, **ranges))


@pytest.mark.parametrize("per_layer", [1, 2, 3])
def test_a_range_counts_layers_each_of_n_consecutive_tensors(pair: Any, per_layer: int) -> None:
    """KV, …, KV: layer 1 of n tensors each is tensors n to 2n."""
    tensors = [(t, t) for t in range(per_layer, 2 * per_layer)]
    expected = moved(pair, "device", "device", 1, 2, tensors)
    layers = {"src_layer_range": range(1, 2), "dst_layer_range": range(1, 2)}

    assert caches.equal(push(pair, 1, 2, tensor_num_per_layer=per_layer, **layers), expected)


def test_tensor_num_per_layer_is_1_to_the_number_of_tensors_and_2_by_default(pair: Any) -> None:
    expected = moved(pair, "device", "device", 1, 2, [(2, 2), (3, 3)])
    layer_1 = {"src_layer_range": range(1, 2), "dst_layer_range": range(1, 2)}
    assert caches.equal(push(pair, 1, 2, **layer_1), expected)

    for per_layer in (1, TENSORS):
        push(pair, 1, 2, tensor_num_per_layer=per_layer)
    for per_layer in (0, TENSORS + 1):
        check_raises(INVALID, lambda per_layer=per_layer: push(pair, 1, 2, tensor_num_per_layer=per_layer))


@pytest.mark.parametrize("per_layer", [1, 2, 3, 4, 5, TENSORS])
def test_without_a_range_all_layers_go_whatever_tensor_num_per_layer_is(pair: Any, per_layer: int) -> None:
    expected = moved(pair, "device", "device", 2, 0)

    assert caches.equal(push(pair, 2, 0, tensor_num_per_layer=per_layer), expected)


def test_with_a_range_tensor_num_per_layer_divides_the_number_of_tensors(pair: Any) -> None:
    layers = {"src_layer_range": range(1), "dst_layer_range": range(1)}
    for per_layer in (1, 2, 3, 6):
        push(pair, 1, 2, tensor_num_per_layer=per_layer, **layers)
    for per_layer in (4, 5):
        check_raises(
            INVALID, lambda per_layer=per_layer: push(pair, 1, 2, tensor_num_per_layer=per_layer, **layers)
        )


def test_size_minus_1_is_one_local_kv_and_nothing_else_is_supported(pair: Any) -> None:
    expected = moved(pair, "device", "device", 1, 2)
    assert caches.equal(push(pair, 1, 2, size=-1), expected)

    for size in (0, 1, ENTRY, -2):
        check_raises(INVALID, lambda size=size: push(pair, 1, 2, size=size))


def test_return_value_is_none(pair: Any) -> None:
    one, two = pair
    key = CacheKeyByIdAndIndex(2, two.caches["device"].cache_id)
    assert one.datadist.cache_manager.push_cache(key, one.caches["device"]) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"src": "0"}, TypeError),
        ({"src": -1}, ValueError),
        ({"src_layer_range": 1}, TypeError),
        ({"size": None}, TypeError),
        ({"size": 2**63}, ValueError),
        ({"tensor_num_per_layer": "2"}, TypeError),
        ({"tensor_num_per_layer": -1}, ValueError),
    ],
    ids=str,
)
def test_wrong_types_raise_type_error_or_value_error(pair: Any, given: Any, expected: Any) -> None:
    arguments = {"src": 0, "dst": 0, **given}
    check_raises(expected, lambda: push(pair, **arguments))


def test_longer_than_sync_kv_timeout_raises_llm_exception(pair: Any) -> None:
    """Mended: in the original each layer has so long, one after the other."""
    emulator.set_bandwidth("peer", ENTRY / 1.0)  # 1 s for each of six tensors; the limit is 0.4 s
    try:
        with instances.in_a_hurry(pair[0], 400):
            check_raises(LLMStatusCode.LLM_TIMEOUT, lambda: push(pair, 0, 0, here="slow", there="slow"))
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
        push(pair, 0, 0, src_layer_range=src, dst_layer_range=dst)


def test_constraint_host_to_device_where_both_are_contiguous(pair: Any) -> None:
    one, two = pair
    expected = moved(pair, "host", "device", 1, 2)

    assert caches.equal(push(pair, 1, 2, here="host"), expected)
    paged = CacheKeyByIdAndIndex(2, two.caches["blocks"].cache_id)
    check_raises(INVALID, lambda: one.datadist.cache_manager.push_cache(paged, one.caches["host"]))


def test_constraint_with_remote_access_the_key_is_one_by_id_and_index(pair: Any) -> None:
    one, _ = pair

    for key in (CacheKey(2, 1), BlocksCacheKey(2)):
        said = check_raises(
            TypeError, lambda key=key: one.datadist.cache_manager.push_cache(key, one.caches["device"])
        )
        assert "CacheKeyByIdAndIndex" in said


def test_constraint_without_remote_access_it_is_not_there() -> None:
    state = SimpleNamespace()
    instances.start(state, 3, 0, {"enable_remote_cache_accessible": False})
    caches.add(state, "batch", 1, caches.describe(2, 2, 8))

    push_cache = state.datadist.cache_manager.push_cache
    check_raises(INVALID, lambda: push_cache(CacheKeyByIdAndIndex(2, 1), state.caches["batch"]))
    state.datadist.finalize()


@pytest.mark.parametrize(("here", "there"), [("device", "host"), ("host", "device")])
def test_constraint_d2h_and_h2d_need_a_device_pool_is_lifted(pair: Any, here: str, there: str) -> None:
    expected = moved(pair, here, there, 2, 0)

    assert caches.equal(push(pair, 2, 0, here=here, there=there), expected)


def test_constraint_only_equal_layer_ranges_is_lifted(pair: Any) -> None:
    expected = moved(pair, "device", "device", 2, 0, [(4, 0), (5, 1)])

    assert caches.equal(push(pair, 2, 0, src_layer_range=range(2, 3), dst_layer_range=range(1)), expected)
