"""Random transfers between two processes against the same moves in plain torch.

Each example makes a pair of caches of a random geometry, kind and placement at two peers that stay alive,
moves some of them, and compares every byte of both. ``DATA_EXAMPLES`` asks for more of them than the default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import caches, instances
from tests.peers import Peer
from tests.transfers import Always
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

EXAMPLES = int(os.environ.get("DATA_EXAMPLES", "80"))
HERE, THERE = 1, 2
POOL = json.dumps({"memory_size": 1 << 24, "page_shift": 10})
PLACEMENTS = ["device", "pool", "plain"]
DTYPES = [DataType.DT_INT8, DataType.DT_FLOAT16, DataType.DT_BF16, DataType.DT_FLOAT, DataType.DT_INT64]


@dataclass(frozen=True)
class Side:
    """A cache: tensors of each layer, as bytes of a block (or entry) of each; dimension 0; where."""

    layers: int
    block_bytes: tuple[int, ...]
    entries: int
    is_blocks: bool
    where: str
    data_type: DataType

    @property
    def sizes(self) -> list[int]:
        return [self.entries * size for size in self.block_bytes] * self.layers

    def describe(self) -> CacheDesc:
        placement = Placement.DEVICE if self.where == "device" else Placement.HOST
        item = instances.TORCH_DTYPES[self.data_type].itemsize
        shapes = [((self.entries, size // item), self.data_type) for size in self.block_bytes]
        return CacheDesc.of_layers(self.layers, shapes, placement)


@dataclass(frozen=True)
class Move:
    """``how`` is a method of the manager, "C2B" for one that cuts an entry into blocks, or "transfer" for
    transfer_cache_async, "transfer C2B" for one that cuts; ranges are None or (first source, first
    destination, number).
    """

    how: str
    src: tuple[int, ...]
    dst: tuple[int, ...]
    layers: tuple[int, int, int] | None
    size: int = -1


@dataclass(frozen=True)
class Example:
    here: Side
    there: Side
    per_layer: int
    moves: tuple[Move, ...] = field(default_factory=tuple)
    remote_accessible: bool = True


WAYS = {
    "blocks": ["pull_blocks", "push_blocks", "transfer"],
    "entries": ["pull_cache", "push_cache", "transfer"],
    "slices": ["C2B"],  # a remote entry, cut into local blocks
    "sent slices": ["transfer C2B"],  # a local entry, cut into remote blocks
}


@st.composite
def examples(draw: Any, how: str, remote_accessible: bool, most_tensors: int = 0) -> Example:
    """``how``: the first move. ``most_tensors``: draws caches of so many, too; else of a few layers."""
    is_transfer = how.startswith("transfer")
    per_layer = 2 if is_transfer else draw(st.integers(1, 4))
    data_type = draw(st.sampled_from(DTYPES))
    item = instances.TORCH_DTYPES[data_type].itemsize
    kinds = [kind for kind, ways in WAYS.items() if how in ways]
    kind = draw(st.sampled_from(kinds))
    widths = st.lists(st.integers(1, 40), min_size=per_layer, max_size=per_layer)
    ours = draw(widths)
    theirs = ours
    few = st.integers(1, 5)
    layers = st.one_of(few, st.just(most_tensors // per_layer)) if most_tensors else few
    if kind == "entries":  # the peer's entries may be larger
        theirs = (
            [n + extra for n, extra in zip(ours, draw(widths), strict=True)] if draw(st.booleans()) else ours
        )
    elif kind == "slices":  # a remote entry, cut into local blocks
        theirs = [n * draw(st.integers(1, 3)) + draw(st.integers(0, n - 1)) for n in ours]
    elif kind == "sent slices":  # a local entry, cut into remote blocks, which are all as large
        block = draw(st.integers(1, 40))
        theirs = [block] * 2
        ours = [block * draw(st.integers(1, 3)) + draw(st.integers(0, block - 1))] * 2

    def side(widths: list[int], is_blocks: bool, places: list[str]) -> Side:
        return Side(
            layers=draw(layers),
            block_bytes=tuple(n * item for n in widths),
            entries=draw(st.integers(2, 9)),
            is_blocks=is_blocks,
            where=draw(st.sampled_from(places)),
            data_type=data_type,
        )

    here = side(ours, kind in ("blocks", "slices"), ["device"] if is_transfer else PLACEMENTS)
    # An entry in host memory goes to device blocks with remote access only.
    is_fixed = kind == "slices" and here.where == "device" and not remote_accessible
    there = side(theirs, kind in ("blocks", "sent slices"), ["device"] if is_fixed else PLACEMENTS)
    more = [way for way in WAYS[kind] if can(way, here, remote_accessible)]
    ways = [how, *draw(st.lists(st.sampled_from(more), max_size=2))]
    moves = [draw_move(draw, way, kind, here, there) for way in ways]
    return Example(here, there, per_layer, tuple(moves), remote_accessible)


def is_sent(how: str) -> bool:
    """From here to there."""
    return how.startswith(("push", "transfer"))


def can(how: str, here: Side, remote_accessible: bool) -> bool:
    """A transfer sends two tensors per layer from device memory; a push needs remote access."""
    if how.startswith("transfer"):
        return len(here.block_bytes) == 2 and here.where == "device"
    return remote_accessible or not how.startswith("push")


def draw_move(draw: Any, how: str, kind: str, here: Side, there: Side) -> Move:
    src, dst = (here, there) if is_sent(how) else (there, here)
    number = draw(st.integers(1, min(src.layers, dst.layers)))
    layers = (draw(st.integers(0, src.layers - number)), draw(st.integers(0, dst.layers - number)), number)
    is_whole = src.layers == dst.layers and draw(st.booleans())

    def some(side: Side, count: int, unique: bool) -> tuple[int, ...]:
        ids = st.integers(0, side.entries - 1)
        return tuple(draw(st.lists(ids, min_size=count, max_size=count, unique=unique)))

    size = -1
    if how == "pull_cache" and draw(st.booleans()):
        size = draw(st.integers(1, min(here.block_bytes)))
    if kind == "blocks":
        count = draw(st.integers(1, dst.entries))
        return Move(how, some(src, count, False), some(dst, count, True), None if is_whole else layers)
    if kind in ("slices", "sent slices"):
        slices = min(-(-whole // cut) for whole, cut in zip(src.block_bytes, dst.block_bytes, strict=True))
        count = draw(st.integers(1, min(slices, dst.entries)))
        return Move(how, some(src, 1, True), some(dst, count, True), None if is_whole else layers)
    return Move(how, some(src, 1, True), some(dst, 1, True), None if is_whole else layers, size)


# The reference.


def apply(move: Move, per_layer: int, src: list[torch.Tensor], dst: list[torch.Tensor], local: Side) -> None:
    """``src`` and ``dst`` as bytes, [entries, bytes of an entry] each."""
    first_src, first_dst, number = move.layers or (0, 0, len(src) // per_layer)
    for t in range(number * per_layer):
        of, to = src[first_src * per_layer + t], dst[first_dst * per_layer + t]
        if local.is_blocks and not move.how.endswith("C2B"):
            to[list(move.dst)] = of[list(move.src)]
        elif move.how.endswith("C2B"):
            for block, piece in zip(move.dst, of[move.src[0]].split(to.shape[1]), strict=False):
                to[block, : len(piece)] = piece
        else:
            length = move.size if move.size > 0 else local.block_bytes[t % per_layer]
            to[move.dst[0], :length] = of[move.src[0], :length]


# At the peers.


def serve(state: SimpleNamespace, cluster_id: int, device: int, remote_accessible: bool) -> int:
    options = {
        "host_mem_pool_cfg": POOL,
        "mem_pool_cfg": POOL,
        "enable_remote_cache_accessible": remote_accessible,
    }
    port = instances.start(state, cluster_id, device, options)
    state.manager = state.datadist.cache_manager
    state.serial = 0
    return port


def make(state: SimpleNamespace, side: Side, seed: int) -> tuple[int, list[int]]:
    """Its id and its addresses."""
    cache_id = caches.add(
        state, "one", seed, side.describe(), is_blocks=side.is_blocks,
        key=BlocksCacheKey(state.cluster_id, 0) if side.is_blocks else None,
        allocate=side.where == "pool", remote_accessible=None if side.where == "pool" else True,
    )  # fmt: skip
    return cache_id, state.caches["one"].tensor_addrs


def carry_out(state: SimpleNamespace, remote: tuple[int, list[int]], example: Example) -> None:
    remote_id, _ = remote
    cache = state.caches["one"]
    for move in example.moves:
        arguments: dict[str, Any] = {"tensor_num_per_layer": example.per_layer}
        if move.layers is not None:
            src, dst, number = move.layers
            arguments["src_layer_range"] = range(src, src + number)
            arguments["dst_layer_range"] = range(dst, dst + number)
        key = CacheKeyByIdAndIndex(THERE, remote_id, 0)
        if move.how.endswith("blocks"):
            call = getattr(state.manager, move.how)
            call(BlocksCacheKey(THERE, 0), cache, list(move.src), list(move.dst), **arguments)
        elif move.how == "push_cache":
            key = CacheKeyByIdAndIndex(THERE, remote_id, move.dst[0])
            state.manager.push_cache(key, cache, move.src[0], **arguments)
        elif move.how == "pull_cache":
            key = CacheKeyByIdAndIndex(THERE, remote_id, move.src[0])
            state.manager.pull_cache(key, cache, move.dst[0], move.size, **arguments)
        elif move.how == "C2B":
            key = CacheKeyByIdAndIndex(THERE, remote_id, move.src[0])
            state.manager.pull_blocks(key, cache, [], list(move.dst), **arguments)
        else:
            transfer(state, remote, example, move)


def transfer(state: SimpleNamespace, remote: tuple[int, list[int]], example: Example, move: Move) -> None:
    src, dst, number = move.layers or (0, 0, example.here.layers)
    ranges = range(src, src + number), range(dst, dst + number)
    cuts = move.how.endswith("C2B")
    to_blocks = example.there.is_blocks
    config: TransferConfig | TransferWithCacheKeyConfig
    if not example.remote_accessible:
        entry = 0 if to_blocks else move.dst[0]
        sizes = example.there.block_bytes
        addresses = [remote[1][t] + entry * sizes[t % 2] for t in range(2 * dst, 2 * (dst + number))]
        config = TransferConfig(THERE, addresses, ranges[0], 0 if example.here.is_blocks else move.src[0])
    elif to_blocks and not cuts:
        config = TransferWithCacheKeyConfig(BlocksCacheKey(THERE, 0), *ranges)
    else:
        key = CacheKeyByIdAndIndex(THERE, remote[0], 0 if cuts else move.dst[0])
        config = TransferWithCacheKeyConfig(key, *ranges, move.src[0])
    lists: list[Any] = [None if cuts else list(move.src), list(move.dst)] if to_blocks else []
    if cuts:
        lists.append(example.there.block_bytes[0])
    task = state.manager.transfer_cache_async(state.caches["one"], Always(), [config], *lists)
    assert task.get_results(30_000) == [LLMStatusCode.LLM_SUCCESS], task.details()


def end(state: SimpleNamespace) -> list[torch.Tensor]:
    content = caches.look(state, "one")
    state.manager.unregister_cache(state.caches["one"].cache_id)
    return content


Pairs = dict[bool, tuple[Peer, Peer]]


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    """With remote access, and without."""
    found = {remote_accessible: (Peer(), Peer()) for remote_accessible in (True, False)}
    for remote_accessible, (here, there) in found.items():
        here.call(serve, HERE, 0, remote_accessible)
        port = there.call(serve, THERE, 1, remote_accessible)
        assert here.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
        there.call(instances.wait_linked, HERE)
    yield found
    for pair in found.values():
        for peer in pair:
            peer.stop()


def check(pairs: Pairs, example: Example) -> None:
    here, there = pairs[example.remote_accessible]
    here.call(make, example.here, 1)
    remote = there.call(make, example.there, 2)
    ours = caches.rows(caches.bytes_of(1, example.here.sizes), example.here.entries)
    theirs = caches.rows(caches.bytes_of(2, example.there.sizes), example.there.entries)

    try:
        here.call(carry_out, remote, example)
    finally:
        found = here.call(end), there.call(end)

    for move in example.moves:
        ends = (ours, theirs) if is_sent(move.how) else (theirs, ours)
        apply(move, example.per_layer, *ends, example.here)
    assert caches.equal(found[0], ours)
    assert caches.equal(found[1], theirs)


# What the words of the promise are in an example; a run that never drew one of them shows nothing of it.

HOW = [
    (how, remote_accessible)
    for how in sorted({how for ways in WAYS.values() for how in ways})
    for remote_accessible in (True, False)
    if remote_accessible or not how.startswith("push")
]


def word_of(how: str, remote_accessible: bool) -> str:
    return how if remote_accessible else f"{how} without remote access"


WORDS = {
    *(word_of(*how) for how in HOW), *(f"{n} tensors per layer" for n in range(1, 5)),
    "no range", "source starts later", "destination starts later", "different starts",
    "source entry above 0", "destination entry above 0", "part of an entry", "mixed placements",
    *(f"{where} here" for where in PLACEMENTS), *(f"{where} there" for where in PLACEMENTS),
    "several moves", "different numbers of layers",
}  # fmt: skip


def words_of(example: Example) -> Iterator[str]:
    here, there = example.here, example.there
    yield f"{example.per_layer} tensors per layer"
    yield from (f"{here.where} here", f"{there.where} there")
    if here.where != there.where:
        yield "mixed placements"
    if here.layers != there.layers:
        yield "different numbers of layers"
    if len(example.moves) > 1:
        yield "several moves"
    for move in example.moves:
        yield word_of(move.how, example.remote_accessible)
        if move.layers is None:
            yield "no range"
        else:
            src, dst, _ = move.layers
            found = {
                "source starts later": src > 0,
                "destination starts later": dst > 0,
                "different starts": src != dst,
            }
            yield from (word for word, is_there in found.items() if is_there)
        if not here.is_blocks or move.how.endswith("C2B"):
            if move.src[0] > 0:
                yield "source entry above 0"
            if not here.is_blocks and move.how != "transfer C2B" and move.dst[0] > 0:
                yield "destination entry above 0"
        if move.size > 0:
            yield "part of an entry"


def drawn(number: int) -> Any:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize="DATA_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def test_what_moves_is_what_plain_torch_moves(pairs: Pairs) -> None:
    seen: set[str] = set()

    for how, remote_accessible in HOW:

        @drawn(max(EXAMPLES // len(HOW), 3))
        @given(example=examples(how, remote_accessible))
        def run(example: Example) -> None:
            seen.update(words_of(example))
            check(pairs, example)

        run()

    assert seen == WORDS


def test_what_moves_of_up_to_a_thousand_tensors_is_what_plain_torch_moves(pairs: Pairs) -> None:
    tensors: list[int] = []

    @drawn(max(EXAMPLES // 8, 8))
    @given(data=st.data(), how=st.sampled_from(HOW))
    def run(data: Any, how: tuple[str, bool]) -> None:
        example = data.draw(examples(*how, most_tensors=1000))
        tensors.append(max(example.here.layers, example.there.layers) * example.per_layer)
        check(pairs, example)

    run()

    assert max(tensors) in (999, 1000)  # layers of three tensors


@pytest.mark.parametrize("where", ["device", "pool"])
def test_a_thousand_tensors(pairs: Pairs, where: str) -> None:
    blocks = Side(250, (48, 16, 48, 16), 4, True, where, DataType.DT_FLOAT16)
    move = Move("push_blocks", (0, 3), (2, 1), (10, 0, 240))
    back = Move("pull_blocks", (1, 2), (0, 1), None)

    check(pairs, Example(blocks, blocks, 4, (move, back)))


# Copies within an instance.


@st.composite
def local_copies(draw: Any) -> tuple[Side, Side, int, int, int, int]:
    """Two contiguous caches, and (entry there, entry here, offset, size)."""
    width = draw(st.integers(1, 200))
    dst, src = (
        Side(
            2, (width + draw(st.integers(0, 9)),) * 2, draw(st.integers(1, 5)), False, where, DataType.DT_INT8
        )
        for where in (draw(st.sampled_from(PLACEMENTS)), draw(st.sampled_from(PLACEMENTS)))
    )
    offset = draw(st.integers(0, width - 1))
    size = draw(st.integers(1, width - offset))
    return (
        dst,
        src,
        draw(st.integers(0, dst.entries - 1)),
        draw(st.integers(0, src.entries - 1)),
        offset,
        size,
    )


def copy_within(state: SimpleNamespace, dst: Side, src: Side, where: tuple[int, int, int, int]) -> Any:
    make(state, src, 3)
    source = state.caches["one"]
    make(state, dst, 4)
    state.manager.copy_cache(state.caches["one"], source, *where)
    state.manager.unregister_cache(source.cache_id)
    return end(state)


@drawn(EXAMPLES)
@given(example=local_copies())
def test_what_is_copied_is_what_plain_torch_copies(
    pairs: Pairs, example: tuple[Side, Side, int, int, int, int]
) -> None:
    dst, src, dst_entry, src_entry, offset, size = example

    found = pairs[True][0].call(copy_within, dst, src, (dst_entry, src_entry, offset, size))

    expected = caches.rows(caches.bytes_of(4, dst.sizes), dst.entries)
    for to, of in zip(expected, caches.rows(caches.bytes_of(3, src.sizes), src.entries), strict=True):
        to[dst_entry, offset : offset + size] = of[src_entry, offset : offset + size]
    assert caches.equal(found, expected)
