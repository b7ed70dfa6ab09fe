"""Which way the planner chooses for a push that may be packed, against a schedule of its tasks one by one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

from torch_llm_datadist import _native
from torch_llm_datadist.emulator import clock

A2, A3 = "Ascend910B3", "Ascend910_9391"
KIB = 1 << 10
STAGING = 64 << 20
CHUNK = STAGING // 32  # 16 windows of two chunks


@dataclass
class Stream:
    """Runs what a host submits, in order; ``host_us`` is when that host has submitted the last task."""

    host_us: float = 0.0
    end_us: float = 0.0
    ends: list[float] = field(default_factory=list)

    def run(self, submit_us: float, task_us: float, not_before_us: float = 0.0) -> float:
        self.host_us += submit_us
        self.end_us = max(self.host_us, self.end_us, not_before_us) + task_us
        return self.end_us


def schedule_direct(cost: dict[str, float], copies: list[list[int]]) -> float:
    """``copies``: bytes of each, layer by layer."""
    stream = Stream()
    for layer in copies:
        stream.run(cost["submit_word_us"], cost["task_us"])
        for length in layer:
            stream.run(cost["submit_copy_us"], cost["task_us"] + length / cost["link_GBs"] / 1000)
        stream.run(cost["submit_word_us"], cost["task_us"])
    return stream.end_us


def chunks_of(strides: list[int], blocks: int) -> list[list[int]]:
    """Bytes of each piece, chunk by chunk: block by block into whatever chunk has room."""
    chunks: list[list[int]] = [[]]
    used = 0
    for stride in strides:
        used = (used + 63) // 64 * 64
        is_new = True
        for _ in range(blocks):
            if used + stride > CHUNK:
                chunks.append([])
                used, is_new = 0, True
            if is_new:
                chunks[-1].append(0)
            is_new = False
            chunks[-1][-1] += stride
            used += stride
    return chunks


def schedule_packed(cost: dict[str, float], layers: list[list[list[int]]]) -> float:
    sender, receiver = Stream(), Stream()
    word, task = cost["submit_word_us"], cost["task_us"]
    credits = [0.0, 0.0]  # when each chunk of the window was last scattered
    number = 0
    for layer in layers:
        sender.run(word, task)
        for pieces in layer:
            sender.run(word, task, credits[number % 2])
            for length in pieces:
                moving = 2 * length / cost["memory_GBs"] / 1000
                sender.run(cost["submit_kernel_us"], cost["kernel_us"] + moving)
            sender.run(cost["submit_copy_us"], task + sum(pieces) / cost["link_GBs"] / 1000)
            landed = sender.run(word, task)
            receiver.run(word, task, landed)
            for length in pieces:
                moving = 2 * length / cost["memory_GBs"] / 1000
                receiver.run(cost["submit_kernel_us"], cost["kernel_us"] + moving)
            credits[number % 2] = receiver.run(word, task)
            number += 1
        receiver.run(word, task)
    return receiver.end_us


def scattered(count: int, seed: int) -> tuple[list[int], list[int]]:
    """No two next to one another at both ends, and no constant stride."""
    chooser = random.Random(seed)
    return chooser.sample(range(4 * count), count), chooser.sample(range(4 * count), count)


def layer_of(
    layout: str, tensors: int, blocks: int, block_bytes: int
) -> list[tuple[int, int, int, int, int]]:
    """Its tensors: in one slab at either end, side by side; or in one each."""
    if layout == "apart":
        return [((t + 1) << 40, (t + 1) << 40, block_bytes, 0, 0) for t in range(tensors)]
    size = blocks * block_bytes
    return [((1 << 40) + t * size, (1 << 41) + t * size, block_bytes, 7, 7) for t in range(tensors)]


def choose(
    product: str,
    layer: list[tuple[int, int, int, int, int]],
    src: list[int],
    dst: list[int],
    layers: int,
    staging: int = STAGING,
) -> tuple[bool, float, float, int, int, int]:
    ids = torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64)
    return _native.load().choose_way(product, layer, *ids, 4 * len(src), layers, staging)


def copies_of(layer: list[tuple[int, int, int, int, int]], src: list[int], dst: list[int]) -> list[int]:
    """Bytes of each that a transfer of these blocks makes."""
    ids = torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64)
    copies = _native.load().plan_copies(layer, *ids, 4 * len(src), 4 * len(src))
    return [width * height for _, _, width, height, _, _ in copies]


@pytest.mark.parametrize("product", [A2, A3])
@pytest.mark.parametrize("layers", [1, 2, 61])
@pytest.mark.parametrize(("tensors", "layout"), [(1, "apart"), (2, "apart"), (2, "slab")])
def test_the_choice_is_the_better_way_over_sizes_and_counts(
    product: str, layers: int, tensors: int, layout: str
) -> None:
    cost = _native.load().product_costs(product)
    ways = set()
    for kib in (1, 4, 16, 64, 128, 256, 512, 1024, 2048):
        for count in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 256):
            src, dst = scattered(count, kib * count)
            layer = layer_of(layout, tensors, 4 * count, kib * KIB)

            packs, direct_us, packed_us, copies, chunks, pieces = choose(product, layer, src, dst, layers)

            way = f"{product}: {layers} layers of {tensors} x {count} blocks of {kib} KiB, {layout}"
            each = len(copies_of(layer, src, dst))  # as few as the blocks' order left
            assert copies == each * layers, way
            pieces_of_layer = chunks_of([kib * KIB] * tensors, count)
            assert (chunks, pieces) == (
                layers * len(pieces_of_layer),
                layers * sum(map(len, pieces_of_layer)),
            ), way
            length = tensors * count * kib * KIB // each
            direct = schedule_direct(cost, [[length] * each] * layers)
            packed = schedule_packed(cost, [pieces_of_layer] * layers)
            better = min(packed, direct)
            # Of a short transfer the model does not know the order of the tasks, which is worth some us.
            assert (packed if packs else direct) <= max(1.05 * better, better + 5), (way, direct, packed)
            assert packs == (packed_us < direct_us), way
            ways.add(packs)

    assert ways == {True, False}


def test_neighbours_are_merged_before_the_ways_are_compared() -> None:
    two, slab = (layer_of(layout, 2, 256, 16 * KIB) for layout in ("apart", "slab"))
    one_run = choose(A3, two, list(range(64)), list(range(64)), 1)
    apart = choose(A3, two, *scattered(64, 1), 1)
    every_second = choose(A3, two, list(range(0, 128, 2)), list(range(64)), 1)
    over_tensors = choose(A3, slab, *scattered(64, 1), 1)

    assert (one_run[0], one_run[3]) == (False, 2)
    assert (every_second[0], every_second[3]) == (False, 2)  # rows at a constant distance
    assert (apart[0], apart[3] > 64) == (True, True)
    assert over_tensors[3] <= 64 < apart[3]  # a row in each tensor


def test_a_block_that_no_chunk_holds_goes_direct() -> None:
    layer = layer_of("apart", 1, 256, 16 * KIB)
    packs, _, _, copies, chunks, _ = choose(A3, layer, *scattered(64, 1), 1, staging=32 * 8 * KIB)

    assert (packs, chunks) == (False, 0)
    assert copies > 32


def test_a_chip_without_figures_counts_as_an_a3() -> None:
    costs = _native.load().product_costs

    assert costs("Ascend950PR_9599") == costs(A3)
    assert costs("Ascend910B4") == costs(A2) != costs(A3)


def as_planned(emulated: dict[str, float]) -> dict[str, float]:
    """What the emulator's table has of the planner's, by the planner's names."""
    names = {"link_GBs": "peer_write_GBs", "submit_word_us": "submit_other_us"}
    return {name: emulated[names.get(name, name)] for name in _native.load().product_costs(A2)}


def test_the_emulated_product_costs_what_the_planner_thinks() -> None:
    emulated = {name: cost.value for name, cost in clock.profile().items()}

    assert as_planned(emulated) == _native.load().product_costs(A2)  # what the tests emulate
