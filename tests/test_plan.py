"""The planner: block lists to copies, against brute force and against the fewest copies that there can be."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests import instances
from torch_llm_datadist import LLMException, _native, emulator

MAX_WIDTH = 5_000_000  # of a row in a copy of several
BLOCK = 64

Piece = tuple[int, int, int, int]  # src, dst, bytes, slab
Copy = tuple[int, int, int, int, int, int]  # src, dst, width, height, src pitch, dst pitch


LAYOUTS = ("slab", "apart", "uneven", "mixed", "two slabs", "backwards")


def tensors_of(
    layout: str, count: int, blocks: int, block_bytes: int
) -> list[tuple[int, int, int, int, int]]:
    """``slab``: all in one allocation at either end; ``apart``: at equal distances, but nothing in common;
    ``uneven``: in one allocation, at distances that are no progression; ``mixed``: the first half in one, the
    others apart; ``two slabs``: in one or the other by turns, as keys and values are; ``backwards``: in one,
    the last tensor first."""
    size = blocks * block_bytes
    src, dst = 1 << 20, 1 << 40
    found = []
    for t in range(count):
        slab = {"apart": 0, "mixed": 7 if t < count // 2 else 0, "two slabs": 7 + t % 2}.get(layout, 7)
        at = {"backwards": count - 1 - t, "two slabs": t // 2 + t % 2 * count}.get(layout, t)
        more = at * at * 4096 if layout == "uneven" else 0
        found.append((src + at * size + more, dst + at * (size + 512), block_bytes, slab, slab))
    return found


def plan(tensors, src: list[int], dst: list[int], src_count: int, dst_count: int) -> list[Copy]:
    ids = torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64)
    return _native.load().plan_copies(tensors, *ids, src_count, dst_count)


def pieces_of(tensors, src: list[int], dst: list[int]) -> list[Piece]:
    """Block by block."""
    return [
        (start + s * length, end + d * length, length, slab if slab else start)
        for start, end, length, slab, _ in tensors
        for s, d in zip(src, dst, strict=True)
    ]


def bytes_of(copies: list[Copy]) -> dict[int, int]:
    """Which byte goes where, in steps of a block."""
    moved: dict[int, int] = {}
    for src, dst, width, height, src_pitch, dst_pitch in copies:
        assert width % BLOCK == 0
        for row in range(height):
            for offset in range(0, width, BLOCK):
                to = dst + row * dst_pitch + offset
                assert to not in moved, "written twice"
                moved[to] = src + row * src_pitch + offset
    return moved


def maximal_runs(pieces: list[Piece]) -> list[Piece]:
    runs: list[Piece] = []
    for src, dst, length, slab in sorted(pieces):
        if runs:
            s, d, n, on = runs[-1]
            if on == slab and src == s + n and dst == d + n:
                runs[-1] = (s, d, n + length, on)
                continue
        runs.append((src, dst, length, slab))
    return runs


def is_progression(runs: list[Piece]) -> bool:
    if len(runs) == 1:
        return True
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(runs)}
    lengths = {(length, slab) for _, _, length, slab in runs}
    step = next(iter(steps))
    return len(steps) == 1 and len(lengths) == 1 and min(step) >= runs[0][2] and runs[0][2] <= MAX_WIDTH


def lower_bound(pieces: list[Piece]) -> int:
    """The number of maximal runs, constant-stride runs of one slab as one.

    The fewest parts of the sorted runs that are progressions, by trying all: whatever holds a part that is
    none is none.
    """
    runs = maximal_runs(pieces)
    fewest = [0] + [len(runs)] * len(runs)
    for end in range(1, len(runs) + 1):
        begin = end
        while begin > 0 and is_progression(runs[begin - 1 : min(begin + 2, end)]):
            begin -= 1
            fewest[end] = min(fewest[end], fewest[begin] + 1)
    return fewest[-1]


def stays_in_a_slab(tensors, blocks: int, copy: Copy) -> bool:
    """A device may know two allocations as no one piece of memory, however near they lie."""
    src, dst, _, height, src_pitch, dst_pitch = copy

    def slab_at(address: int, end: int) -> int:
        i = next(i for i, t in enumerate(tensors) if t[end] <= address < t[end] + blocks * t[2])
        return tensors[i][3 + end] or -1 - i

    last = src + (height - 1) * src_pitch, dst + (height - 1) * dst_pitch
    return slab_at(src, 0) == slab_at(last[0], 0) and slab_at(dst, 1) == slab_at(last[1], 1)


@st.composite
def requests(draw):
    """Block lists with neighbours, steps and disorder, in a few tensors or in many."""
    blocks = draw(st.integers(1, 40))
    shape = draw(st.sampled_from(["any", "every nth", "runs"]))
    if shape == "every nth":
        n = draw(st.integers(1, 6))
        src = list(range(draw(st.integers(0, blocks - 1)), blocks, n))
        dst = list(range(0, blocks, n))[: len(src)]
        src = src[: len(dst)]
    else:
        count = draw(st.integers(1, blocks))
        dst = draw(st.permutations(range(blocks)))[:count]
        src = draw(st.lists(st.integers(0, blocks - 1), min_size=count, max_size=count))
        if shape == "runs":
            src = list(range(count))
            dst = sorted(dst)
    order = draw(st.permutations(range(len(src))))
    src, dst = [src[i] for i in order], [dst[i] for i in order]
    count = draw(st.integers(1, 4) | st.just(20))
    return tensors_of(draw(st.sampled_from(LAYOUTS)), count, blocks, BLOCK), src, dst, blocks


@settings(max_examples=400, deadline=None, database=None)
@given(requests())
def test_the_copies_move_each_block_once_and_are_as_few_as_can_be(request_) -> None:
    tensors, src, dst, blocks = request_

    copies = plan(tensors, src, dst, blocks, blocks)

    pieces = pieces_of(tensors, src, dst)
    assert bytes_of(copies) == {to: start for start, to, _, _ in pieces}
    assert len(copies) <= lower_bound(pieces)
    assert all(stays_in_a_slab(tensors, blocks, copy) for copy in copies)


@pytest.mark.parametrize("blocks", [100_000, 1 << 40])
@pytest.mark.parametrize("listed", [3, 16, 17, 100, 5000])
def test_pairs_are_sorted_by_source_and_then_destination(listed: int, blocks: int) -> None:
    """Few are sorted by comparing, many by counting digits, of which a long id has more."""
    chooser = random.Random(listed)
    some = chooser.sample(range(blocks), listed)
    src = chooser.choices(some, k=listed)  # some serve several destinations
    dst = chooser.sample(range(blocks), listed)

    copies = plan(tensors_of("apart", 1, blocks, BLOCK), src, dst, blocks, blocks)

    starts = [(s, d) for s, d, *_ in copies]
    assert starts == sorted(starts)
    (tensor,) = tensors_of("apart", 1, blocks, BLOCK)
    assert bytes_of(copies) == {
        tensor[1] + d * BLOCK: tensor[0] + s * BLOCK for s, d in zip(src, dst, strict=True)
    }


@pytest.mark.parametrize("count", [10, 5000])
def test_a_destination_listed_twice_is_refused_wherever_it_stands(count: int) -> None:
    src, dst = list(range(count)), random.Random(1).sample(range(count), count)
    dst[count // 3] = dst[-1]

    with pytest.raises(LLMException, match=f"dst_blocks lists block {dst[-1]} twice"):
        plan(tensors_of("apart", 1, count, BLOCK), src, dst, count, count)


def test_a_run_wider_than_a_row_may_be_is_a_copy_of_its_own() -> None:
    wide = MAX_WIDTH // BLOCK + 1
    tensors = tensors_of("slab", 4, 3 * wide, BLOCK)

    copies = plan(tensors, list(range(wide)), list(range(wide)), 3 * wide, 3 * wide)

    assert [(width, height) for _, _, width, height, *_ in copies] == [(wide * BLOCK, 1)] * 4


def test_scattered_blocks_of_a_slab_are_one_copy_each_over_all_layers() -> None:
    chooser = random.Random(5)
    src, dst = (chooser.sample(range(0, 512, 2), 32) for _ in range(2))

    copies = plan(tensors_of("slab", 2 * 61, 512, BLOCK), src, dst, 512, 512)

    assert len(copies) <= len(maximal_runs(pieces_of(tensors_of("slab", 1, 512, BLOCK), src, dst)))
    assert {height for _, _, _, height, *_ in copies} == {2 * 61}


@pytest.mark.parametrize("layout", ["mixed", "two slabs"])
def test_each_slab_takes_as_few_copies_as_it_does_alone(layout: str) -> None:
    count, blocks = 20, 30
    tensors = tensors_of(layout, count, blocks, BLOCK)
    by_slab = {tensor[3] or -t: [] for t, tensor in enumerate(tensors)}
    for t, tensor in enumerate(tensors):
        by_slab[tensor[3] or -t].append(tensor)
    chooser = random.Random(3)
    for listed in (3, 20, 30):
        src, dst = (chooser.sample(range(blocks), listed) for _ in range(2))
        alone = [len(plan(some, src, dst, blocks, blocks)) for some in by_slab.values()]

        together = plan(tensors, src, dst, blocks, blocks)

        assert len(together) == sum(alone)


def test_a_hundred_thousand_scattered_blocks_are_planned_in_milliseconds() -> None:
    """From the lists to the number of copies, in processor time: 10 ms on a quiet machine; a busy one
    shares its caches and its cores' halves. `make callgrind` counts instructions."""
    count = 100_000
    chooser = random.Random(7)
    ids = [torch.tensor(chooser.sample(range(count), count), dtype=torch.int64) for _ in range(2)]
    tensors = tensors_of("apart", 1, count, BLOCK)

    def seconds() -> float:
        began = time.thread_time()
        _, _, _, copies, _, _ = _native.load().choose_way("Ascend910B3", tensors, *ids, count, 1, 64 << 20)
        took = time.thread_time() - began
        assert copies > count // 2  # next to none merge
        return took

    assert min(seconds() for _ in range(10)) < 0.03


LAYERS, PER_LAYER, LISTED, CACHE_BLOCKS = 61, 2, 32, 64


def start_with_slab(state, cluster_id: int, device: int, layout: str) -> int:
    """A cache whose tensors are views of one allocation, or have one each; returns the port."""
    import torch_llm_datadist as datadist

    port = instances.start(state, cluster_id, device)
    tensors = LAYERS * PER_LAYER
    content = instances.pattern(cluster_id, tensors, CACHE_BLOCKS, BLOCK)
    if layout == "slab":
        state.raw = list(content.to(f"npu:{device}"))
    else:  # far apart: the allocator would put small ones side by side
        state.kept = [torch.empty(1 << 20, dtype=torch.uint8, device=f"npu:{device}") for _ in range(tensors)]
        state.raw = [
            kept[4096 * (t % 7) :][: CACHE_BLOCKS * BLOCK].view(CACHE_BLOCKS, BLOCK)
            for t, kept in enumerate(state.kept)
        ]
        for raw, bytes_ in zip(state.raw, content, strict=True):
            raw.copy_(bytes_)
    desc = datadist.CacheDesc(tensors, [CACHE_BLOCKS, BLOCK], datadist.DataType.DT_UINT8)
    key = datadist.BlocksCacheKey(cluster_id, 0)
    state.cache = state.datadist.cache_manager.register_blocks_cache(desc, state.raw, key)
    return port


def push_and_count(state, src: list[int], dst: list[int]) -> tuple[int, int]:
    """Copies to the peer, and calls of the op, of one push."""
    instances.push_blocks(state, 2, src, dst)  # the first maps the peer's memory
    counter = emulator.fail_task(1 << 40, 507013, direction="peer")
    with Ops() as ops:
        instances.push_blocks(state, 2, src, dst)
    copies = counter.hits
    counter.disarm()
    return copies, ops.count


class Ops(TorchDispatchMode):
    """Counts calls of this project's ops."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "torch_llm_datadist"
        return func(*args, **(kwargs or {}))


def blocks_of_a_push() -> tuple[list[int], list[int]]:
    chooser = random.Random(11)
    src, dst = (chooser.sample(range(CACHE_BLOCKS), LISTED) for _ in range(2))
    src[:3], dst[:3] = [10, 11, 12], [20, 21, 22]
    rest = [b for b in range(CACHE_BLOCKS) if b not in (10, 11, 12)]
    src[3:] = chooser.sample(rest, LISTED - 3)
    rest = [b for b in range(CACHE_BLOCKS) if b not in (20, 21, 22)]
    dst[3:] = chooser.sample(rest, LISTED - 3)
    return src, dst


def linked_slabs(peers, layout: str):
    a, b = peers(2)
    a.call(start_with_slab, 1, 0, layout)
    port = b.call(start_with_slab, 2, 1, layout)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    return a, b


def after_push(src: list[int], dst: list[int]) -> torch.Tensor:
    tensors = LAYERS * PER_LAYER
    expected = instances.pattern(2, tensors, CACHE_BLOCKS, BLOCK)
    expected[:, dst] = instances.pattern(1, tensors, CACHE_BLOCKS, BLOCK)[:, src]
    return expected


@pytest.mark.parametrize("layout", ["slab", "apart"])
def test_push_of_61_layers_is_one_op_and_no_more_copies_than_the_bound(peers, layout: str) -> None:
    a, b = linked_slabs(peers, layout)
    src, dst = blocks_of_a_push()

    copies, ops = a.call(push_and_count, src, dst)

    one_tensor = pieces_of(tensors_of("slab", 1, CACHE_BLOCKS, BLOCK), src, dst)
    over_layers = len(maximal_runs(one_tensor))  # each at a constant distance from layer to layer
    layer_by_layer = lower_bound(one_tensor) * LAYERS * PER_LAYER
    assert 0 < copies <= (over_layers if layout == "slab" else layer_by_layer)
    assert ops == 1
    assert torch.equal(b.call(instances.content), after_push(src, dst))


def refuse_rows(state, block: int) -> None:
    emulator.fail_next("aclrtMemcpy2dAsync", 1, 107000, address=state.raw[0].data_ptr() + block * BLOCK)


def test_a_runtime_that_refuses_copies_of_rows_gets_them_one_by_one(peers) -> None:
    a, b = linked_slabs(peers, "slab")
    src, dst = blocks_of_a_push()
    a.call(refuse_rows, min(src))

    copies, _ = a.call(push_and_count, src, dst)

    assert copies > LAYERS * PER_LAYER
    assert torch.equal(b.call(instances.content), after_push(src, dst))
