"""Tensors of different shape in one cache, as MLA has them: three caches in the original."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests import caches
from tests.conformance.case import check_raises
from tests.entries import INVALID, THERE, linked_peers
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
)

MLA = [64, 8]  # bytes of a block of the two tensors of a layer


def mla(state: SimpleNamespace, seed: int) -> None:
    for name, is_blocks in (("mla blocks", True), ("mla batch", False)):
        desc = caches.describe(3 * len(MLA), 6, MLA)
        key = BlocksCacheKey(state.cluster_id, 20) if is_blocks else None
        caches.add(state, name, seed + is_blocks, desc, is_blocks=is_blocks, key=key)


def move_mla(state: SimpleNamespace) -> None:
    manager = state.datadist.cache_manager
    layers = {"src_layer_range": range(1, 3), "dst_layer_range": range(2)}
    blocks, batch = state.caches["mla blocks"], state.caches["mla batch"]
    manager.push_blocks(BlocksCacheKey(THERE, 20), blocks, [0, 1, 4], [3, 4, 0], **layers)
    there = CacheKeyByIdAndIndex(THERE, batch.cache_id, 5)
    manager.pull_cache(there, batch, 1, **layers)
    check_raises(INVALID, lambda: manager.pull_cache(there, batch, size=9))  # the smaller tensors have 8
    # One tensor per layer: a wide one does not go to a narrow one.
    narrow = {"src_layer_range": range(1), "dst_layer_range": range(1, 2), "tensor_num_per_layer": 1}
    check_raises(INVALID, lambda: manager.push_blocks(BlocksCacheKey(THERE, 20), blocks, [0], [0], **narrow))
    check_raises(INVALID, lambda: manager.push_cache(there, batch, **narrow))


def test_tensors_of_a_layer_may_differ(peers: Any) -> None:
    """Lifted: the original needs a cache for each shape."""
    a, b = linked_peers(peers, "RA")
    for peer, seed in ((a, 300), (b, 400)):
        peer.call(mla, seed)
    sizes = [6 * size for size in MLA] * 3
    sent, far = caches.rows(caches.bytes_of(301, sizes), 6), caches.rows(caches.bytes_of(401, sizes), 6)
    near, read = caches.rows(caches.bytes_of(300, sizes), 6), caches.rows(caches.bytes_of(400, sizes), 6)
    for t in range(4):
        far[t][[3, 4, 0]] = sent[t + 2][[0, 1, 4]]
        near[t][1] = read[t + 2][5]

    a.call(move_mla)

    assert caches.equal(b.call(caches.look, "mla blocks"), far)
    assert caches.equal(a.call(caches.look, "mla batch"), near)


def test_a_description_of_different_tensors_names_what_is_wrong() -> None:
    half, byte = DataType.DT_FLOAT16, DataType.DT_INT8
    desc = CacheDesc.of_layers(2, [((4, 8), half), ([4, 2, 2], byte)])
    assert desc.num_tensors == 4
    assert desc.tensor_sizes == [64, 16, 64, 16]
    assert desc.tensors == [((4, 8), half), ((4, 2, 2), byte)] * 2
    assert (desc.shape, desc.data_type) == ((4, 8), half)

    check_raises(INVALID, lambda: CacheDesc.of_layers(2, []))
    message = check_raises(INVALID, lambda: CacheDesc.of_layers(2, [((4, 8), half), ((5, 8), half)]))
    assert "dimension 0 is 4, 5" in message
    check_raises(TypeError, lambda: CacheDesc.of_layers(2, None))
    check_raises(TypeError, lambda: CacheDesc.of_layers(2, [((4, 8), 1)]))
    check_raises(ValueError, lambda: CacheDesc.of_layers(-1, [((4, 8), half)]))
    check_raises(TypeError, lambda: desc.update_dim(0, 5))
