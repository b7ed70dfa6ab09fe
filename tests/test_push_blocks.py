"""push_blocks and pull_blocks between processes, against plain indexing of the same bytes."""

from __future__ import annotations

import random

import pytest
import torch

from tests import instances
from torch_llm_datadist import DataType

BLOCKS = 24


def reference(
    source: torch.Tensor,
    target: torch.Tensor,
    src: list[int],
    dst: list[int],
    src_tensors: range,
    dst_tensors: range,
) -> torch.Tensor:
    """What the target holds afterwards; everything that is not named stays as it was."""
    expected = target.clone()
    for s, d in zip(src_tensors, dst_tensors, strict=True):
        expected[d, dst] = source[s, src]
    return expected


def linked_pair(
    peers, num_tensors: int, block_bytes: int, data_type: DataType = DataType.DT_UINT8, blocks: int = BLOCKS
):
    """Two processes on two devices with a cache each, linked from the first to the second."""
    a, b = peers(2)
    a.call(instances.start, 1, 0)
    port = b.call(instances.start, 2, 1)
    a.call(instances.register, 10, num_tensors, blocks, block_bytes, data_type)
    b.call(instances.register, 20, num_tensors, blocks, block_bytes, data_type)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    return a, b


def scattered(seed: int, count: int, blocks: int = BLOCKS) -> tuple[list[int], list[int]]:
    """Some runs that are neighbours on both sides, some that are not."""
    chooser = random.Random(seed)
    src = chooser.sample(range(blocks), count)
    dst = chooser.sample(range(blocks), count)
    if count >= 4:
        src[:2], dst[:2] = [4, 5], [9, 10]
        src = list(dict.fromkeys(src + list(range(blocks))))[:count]
        dst = list(dict.fromkeys(dst + list(range(blocks))))[:count]
    return src, dst


@pytest.mark.parametrize("data_type", list(instances.TORCH_DTYPES), ids=lambda dtype: dtype.name)
def test_push_blocks_is_bit_exact_for_every_dtype(peers, data_type):
    a, b = linked_pair(peers, 4, 64, data_type)
    src, dst = scattered(1, 9)

    a.call(instances.push_blocks, 2, src, dst)

    before_a, before_b = instances.pattern(10, 4, BLOCKS, 64), instances.pattern(20, 4, BLOCKS, 64)
    assert torch.equal(b.call(instances.content), reference(before_a, before_b, src, dst, range(4), range(4)))
    assert torch.equal(a.call(instances.content), before_a)


@pytest.mark.parametrize("tensors_per_layer", [1, 2, 3, 4])
@pytest.mark.parametrize("block_bytes", [1, 3, 511, 4096, 65536, 4 << 20], ids=lambda n: f"{n}B")
def test_push_blocks_moves_only_the_named_blocks(peers, tensors_per_layer, block_bytes):
    blocks = BLOCKS if block_bytes < 1 << 20 else 6
    num_tensors = 2 * tensors_per_layer
    a, b = linked_pair(peers, num_tensors, block_bytes, blocks=blocks)
    src, dst = scattered(block_bytes + tensors_per_layer, min(9, blocks // 2), blocks)

    a.call(push_layers, 2, src, dst, tensors_per_layer)

    before_a = instances.pattern(10, num_tensors, blocks, block_bytes)
    before_b = instances.pattern(20, num_tensors, blocks, block_bytes)
    layer_one = range(tensors_per_layer, 2 * tensors_per_layer)
    expected = reference(before_a, before_b, src, dst, layer_one, range(tensors_per_layer))
    assert torch.equal(b.call(instances.content), expected)


def push_layers(state, cluster_id, src, dst, tensors_per_layer):
    """Layer 1 here to layer 0 there."""
    instances.push_blocks(
        state, cluster_id, src, dst,
        src_layer_range=range(1, 2), dst_layer_range=range(0, 1), tensor_num_per_layer=tensors_per_layer,
    )  # fmt: skip


def test_pull_blocks_is_bit_exact_in_both_directions_of_a_link(peers):
    a, b = linked_pair(peers, 4, 1000)
    src, dst = scattered(3, 9)

    a.call(instances.pull_blocks, 2, src, dst)
    b.call(instances.pull_blocks, 1, src, dst)

    before_a, before_b = instances.pattern(10, 4, BLOCKS, 1000), instances.pattern(20, 4, BLOCKS, 1000)
    after_a = reference(before_b, before_a, src, dst, range(4), range(4))
    assert torch.equal(a.call(instances.content), after_a)
    assert torch.equal(b.call(instances.content), reference(after_a, before_b, src, dst, range(4), range(4)))
