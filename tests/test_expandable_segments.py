"""Transfers between caches in expandable segments: physical memory, mapped piece by piece.

The tests are those of test_push_blocks and test_ordering; only the allocator of their processes differs. Left
out is what no transport takes part in, and each size and type of blocks but two: to a mapping they are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tests import instances, test_mapped_copies, test_ordering, test_push_blocks
from tests.peers import Peer
from tests.test_push_blocks import BLOCKS, linked_pair, reference, scattered

pair = test_ordering.pair
globals().update({name: test for name, test in vars(test_ordering).items() if name.startswith("test_")})
test_pull_blocks_is_bit_exact = test_push_blocks.test_pull_blocks_is_bit_exact_in_both_directions_of_a_link
test_cache_outlives_its_tensors = test_push_blocks.test_a_registered_cache_outlives_its_tensors
test_neighbouring_blocks_travel_as_one_copy = test_mapped_copies.test_neighbouring_blocks_travel_as_one_copy
test_a_segment_is_imported_once = (
    test_push_blocks.test_a_segment_of_the_peer_is_imported_once_and_when_first_used
)

MIB = 1 << 20


def expand_segments(state: SimpleNamespace) -> None:
    """Before the device is used: the allocator reads its settings once."""
    os.environ["PYTORCH_NPU_ALLOC_CONF"] = "expandable_segments:True"


@pytest.fixture
def peers(peers: Callable[[int], list[Peer]]) -> Callable[[int], list[Peer]]:
    def start(count: int) -> list[Peer]:
        made = peers(count)
        for peer in made:
            peer.call(expand_segments)
        return made

    return start


def segments_are_expandable(state: SimpleNamespace) -> list[bool]:
    held = [tensor.data_ptr() for tensor in state.raw]
    return [
        segment["is_expandable"]
        for segment in torch.npu.memory_snapshot()
        if any(segment["address"] <= at < segment["address"] + segment["total_size"] for at in held)
    ]


@pytest.mark.parametrize("block_bytes", [511, 4 * MIB], ids=["small", "large"])
def test_push_blocks_is_bit_exact(peers: Callable[[int], list[Peer]], block_bytes: int) -> None:
    """Large blocks: a cache spans many mappings of 2 and 20 MiB."""
    blocks = BLOCKS if block_bytes < MIB else 6
    a, b = linked_pair(peers, 4, block_bytes, blocks=blocks)
    src, dst = scattered(block_bytes, blocks // 2, blocks)

    a.call(instances.push_blocks, 2, src, dst)

    assert set(a.call(segments_are_expandable)) == set(b.call(segments_are_expandable)) == {True}
    before_a = instances.pattern(10, 4, blocks, block_bytes)
    before_b = instances.pattern(20, 4, blocks, block_bytes)
    assert torch.equal(b.call(instances.content), reference(before_a, before_b, src, dst, range(4), range(4)))


def register_around_a_hole(state: SimpleNamespace, seed: int) -> list[int]:
    """A cache of two tensors with unmapped memory between them since its registration.

    Returns how many segments the tensors lie in, before and after what is between them was given back.
    """
    sizes = (20 * MIB, 40 * MIB, 20 * MIB)  # whole mappings
    before, between, after = (torch.empty(n, dtype=torch.uint8, device=f"npu:{state.device}") for n in sizes)
    raw = instances.pattern(seed, 2, BLOCKS, 4096)
    state.raw = [
        tensor[: raw[0].numel()].view(raw[0].shape).copy_(content)
        for tensor, content in zip((before, after), raw, strict=True)
    ]
    instances.register_raw(state)
    counts = [len(segments_are_expandable(state))]
    del between
    torch.npu.empty_cache()
    return [*counts, len(segments_are_expandable(state))]


def register_a_slab(state: SimpleNamespace, seed: int) -> None:
    state.raw = list(instances.pattern(seed, 2, BLOCKS, 4096).to(f"npu:{state.device}"))
    instances.register_raw(state)


def test_no_copy_crosses_memory_that_the_allocator_gave_back(peers: Callable[[int], list[Peer]]) -> None:
    """Whichever side moves: a copy of rows over both tensors would touch what is between them."""
    a, b = peers(2)
    a.call(instances.start, 1, 0)
    port = b.call(instances.start, 2, 1)
    assert a.call(register_around_a_hole, 10) == [1, 2]
    b.call(register_a_slab, 20)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)

    a.call(instances.push_blocks, 2, [0], [1])
    a.call(instances.pull_blocks, 2, [2], [3])
    b.call(instances.push_blocks, 1, [4], [5])
    b.call(instances.pull_blocks, 1, [6], [7])

    before_a, before_b = instances.pattern(10, 2, BLOCKS, 4096), instances.pattern(20, 2, BLOCKS, 4096)
    both = range(2)
    after_a = reference(before_b, before_a, [2, 4], [3, 5], both, both)
    assert torch.equal(a.call(instances.content), after_a)
    assert torch.equal(b.call(instances.content), reference(before_a, before_b, [0, 6], [1, 7], both, both))
