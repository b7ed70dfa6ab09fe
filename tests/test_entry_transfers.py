"""pull_cache and push_cache, and pull_blocks from a batch entry, against plain indexing of the same bytes.

Two instances in this process on two devices, and for what depends on it two processes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.conformance.case import check_raises
from tests.entries import (
    BATCH,
    BLOCK,
    ENTRY,
    HERE,
    INVALID,
    TENSORS,
    THERE,
    Pair,
    add_batch,
    by_id,
    linked_peers,
    pair_for_a_module,
    restore,
)
from tests.transfers import HeldMove
from torch_llm_datadist import (
    CacheKeyByIdAndIndex,
    emulator,
)


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair_for_a_module(**caches.MODES[request.param]) as found:
        yield found


@pytest.fixture(scope="module")
def ra_pair() -> Iterator[Pair]:
    with pair_for_a_module() as found:
        yield found


@pytest.mark.parametrize("size", [-1, 1, 17, ENTRY])
def test_pull_cache_moves_the_first_bytes_of_one_entry(pair: Pair, size: int) -> None:
    """2.6: size counts from the start of the entry; -1 is the local stride."""
    here, there = pair
    source, expected = restore(there, "batch"), restore(here, "batch")
    length = ENTRY if size == -1 else size

    here.datadist.cache_manager.pull_cache(by_id(there, "batch", 2), here.caches["batch"], 1, size)

    for to, of in zip(expected, source, strict=True):
        to[1, :length] = of[2, :length]
    assert caches.equal(caches.look(here, "batch"), expected)


def test_push_cache_moves_one_entry(ra_pair: Pair) -> None:
    """Seed 004: from the local entry src_batch_index to the entry that the key names."""
    here, there = ra_pair
    source, expected = restore(here, "batch"), restore(there, "batch")

    here.datadist.cache_manager.push_cache(by_id(there, "batch", 2), here.caches["batch"], 1)

    for to, of in zip(expected, source, strict=True):
        to[2] = of[1]
    assert caches.equal(caches.look(there, "batch"), expected)
    assert caches.equal(caches.look(here, "batch"), source)


def test_entries_of_caches_with_other_strides_keep_to_their_own(ra_pair: Pair) -> None:
    """Mended (2.8 rows 2 and 7): each end counts with its own stride, and what would not fit is refused."""
    here, there = ra_pair
    manager = here.datadist.cache_manager
    source, expected = restore(here, "batch"), restore(there, "wide")
    manager.push_cache(by_id(there, "wide", 1), here.caches["batch"], 2)
    for to, of in zip(expected, source, strict=True):
        to[1, :ENTRY] = of[2]
    assert caches.equal(caches.look(there, "wide"), expected)

    wide, narrow = restore(there, "wide"), restore(here, "batch")
    manager.pull_cache(by_id(there, "wide", 2), here.caches["batch"], 1)
    for to, of in zip(narrow, wide, strict=True):
        to[1] = of[2, :ENTRY]
    assert caches.equal(caches.look(here, "batch"), narrow)

    untouched = restore(there, "batch")
    message = check_raises(INVALID, lambda: manager.push_cache(by_id(there, "batch"), here.caches["wide"]))
    assert "the local entry of 128 bytes do not fit" in message
    check_raises(INVALID, lambda: manager.pull_cache(by_id(there, "batch"), here.caches["wide"]))
    assert caches.equal(caches.look(there, "batch"), untouched)


RANGES = [
    (None, None, 2),
    (range(2), range(2), 2),
    (range(1), range(1, 2), 2),
    (range(1, 2), range(1), 2),
    (range(1, 3), range(2, 4), 1),
    (range(1), range(1), 4),
]


@pytest.mark.parametrize("ranges", RANGES, ids=str)
@pytest.mark.parametrize("name", ["push_cache", "pull_cache"])
def test_layer_ranges_of_entries_start_anywhere_and_may_differ(ra_pair: Pair, name: str, ranges: Any) -> None:
    """Source layer src.start + k goes to layer dst.start + k; seed 004 has equal ranges only (lifted)."""
    here, there = ra_pair
    src, dst, per_layer = ranges
    source, target = (here, there) if name == "push_cache" else (there, here)
    content, expected = restore(source, "batch"), restore(target, "batch")
    layers = TENSORS // per_layer

    call = getattr(here.datadist.cache_manager, name)
    call(
        by_id(there, "batch", 1), here.caches["batch"], 1,
        src_layer_range=src, dst_layer_range=dst, tensor_num_per_layer=per_layer,
    )  # fmt: skip

    for s, d in zip(src or range(layers), dst or range(layers), strict=True):
        for t in range(per_layer):
            expected[d * per_layer + t][1] = content[s * per_layer + t][1]
    assert caches.equal(caches.look(target, "batch"), expected)


@pytest.mark.parametrize("dst_blocks", [[5], [1, 6], [7, 0, 3], (2, 3, 4)], ids=str)
def test_pull_blocks_cuts_an_entry_into_blocks(pair: Pair, dst_blocks: Any) -> None:
    """2.6 C2B: slice i of the entry goes to dst_blocks[i]. Mended (2.8 rows 4, 6, 16): the key's entry is the
    one that is read, and only the entry's own last slice is shorter than a block.
    """
    here, there = pair
    source, expected = restore(there, "batch"), restore(here, "blocks")

    here.datadist.cache_manager.pull_blocks(by_id(there, "batch", 1), here.caches["blocks"], [], dst_blocks)

    for to, of in zip(expected, source, strict=True):
        for i, block in enumerate(dst_blocks):
            piece = of[1, i * BLOCK : (i + 1) * BLOCK]
            to[block, : len(piece)] = piece
    assert caches.equal(caches.look(here, "blocks"), expected)


def test_a_block_as_large_as_the_entry_takes_it_whole(pair: Pair) -> None:
    """Lifted (2.8 row 8): the original wants blocks that are smaller."""
    here, there = pair
    caches.add(here, "one block", 7, caches.describe(TENSORS, 2, ENTRY), is_blocks=True)

    here.datadist.cache_manager.pull_blocks(by_id(there, "batch", 2), here.caches["one block"], [], [1])

    expected = caches.rows(caches.bytes_of(7, [2 * ENTRY] * TENSORS), 2)
    for to, of in zip(expected, restore(there, "batch"), strict=True):
        to[1] = of[2]
    assert caches.equal(caches.look(here, "one block"), expected)
    here.datadist.cache_manager.unregister_cache(here.caches["one block"].cache_id)


def test_pull_cache_of_more_tensors_needs_a_range(pair: Pair) -> None:
    """2.6: without a source range the remote cache has as many tensors as are filled."""
    here, there = pair
    manager = here.datadist.cache_manager
    source, expected = restore(there, "six"), restore(here, "batch")
    check_raises(INVALID, lambda: manager.pull_cache(by_id(there, "six"), here.caches["batch"]))

    manager.pull_cache(
        by_id(there, "six"), here.caches["batch"], src_layer_range=range(1, 3), dst_layer_range=range(2)
    )

    for to, of in zip(expected, source[2:], strict=True):
        to[0] = of[0]
    assert caches.equal(caches.look(here, "batch"), expected)


def test_entry_transfers_wait_for_earlier_work_of_the_current_stream(ra_pair: Pair) -> None:
    """Mended: in the original nothing is ordered with torch streams."""
    here, there = ra_pair
    restore(there, "batch")
    with torch.npu.stream(torch.npu.Stream(device=0)):
        for raw in here.raw["batch"]:
            raw.fill_(9)
        here.datadist.cache_manager.push_cache(by_id(there, "batch", 0), here.caches["batch"])

    assert all(bool((t.view(BATCH, -1)[0] == 9).all()) for t in caches.look(there, "batch"))


def test_the_ops_order_themselves_on_the_stream(ra_pair: Pair) -> None:
    """Without a host wait: what is queued behind the op sees the bytes, what was queued before it was
    sent.
    """
    here, there = ra_pair
    restore(here, "batch"), restore(there, "batch")
    link, there_id = here.datadist.link_id(THERE), there.caches["batch"].cache_id
    tensors = list(here.caches["batch"].tensors)
    for raw in here.raw["batch"]:
        raw.fill_(5)

    datadist.ops.push_cache(here.status, tensors, link=link, cache_id=there_id, src_batch=0, dst_batch=2)
    for raw in here.raw["batch"]:
        raw.fill_(6)
    datadist.ops.pull_cache(here.status, tensors, link=link, cache_id=there_id, src_batch=2, dst_batch=1)
    after = [raw.view(BATCH, -1)[1].clone() for raw in here.raw["batch"]]

    assert int(here.status.item()) == 0
    assert all(bool((tensor == 5).all()) for tensor in after)


# Between processes.


def pull_entry(state: SimpleNamespace, remote: int, local: int) -> None:
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    state.datadist.cache_manager.pull_cache(key, state.caches["batch"], local)


def push_entry(state: SimpleNamespace, remote: int, local: int) -> None:
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    state.datadist.cache_manager.push_cache(key, state.caches["batch"], local)


def test_entries_move_between_processes(peers: Any) -> None:
    a, b = linked_peers(peers, "RA")
    here = caches.rows(caches.bytes_of(100, [BATCH * ENTRY] * TENSORS), BATCH)
    there = caches.rows(caches.bytes_of(200, [BATCH * ENTRY] * TENSORS), BATCH)

    a.call(pull_entry, 1, 0)
    a.call(push_entry, 2, 1)

    for ours, theirs in zip(here, there, strict=True):
        ours[0] = theirs[1]
        theirs[2] = ours[1]
    assert caches.equal(a.call(caches.look, "batch"), here)
    assert caches.equal(b.call(caches.look, "batch"), there)


def schema_and_fake_hold(state: SimpleNamespace) -> None:
    link = state.datadist.link_id(THERE)
    tensors = list(state.caches["batch"].tensors)
    ids = torch.tensor([0, 1])
    none = torch.empty(0, dtype=torch.int64)
    ops = torch.ops.torch_llm_datadist
    entry = (state.status, tensors, none, link, 1, 0, 0, -1, 0, 0, -1, 2, 1000, True, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ops.push_cache.default(*entry)
        ops.pull_cache.default(*entry)
    local = [torch.zeros(4, 8, dtype=torch.uint8).npu() for _ in range(2)]
    other = [torch.ones(4, 8, dtype=torch.uint8).npu() for _ in range(2)]
    for op, arguments in {
        ops.copy_cache.default: (state.status, local, other, 0, 1, 2, 3),
        ops.copy_blocks.default: (state.status, local, ids, torch.tensor([2, 3])),
        ops.swap_blocks.default: (state.status, local, other, ids, ids),
    }.items():
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_entry_and_copy_ops_have_schemas_and_fakes_that_hold(peers: Any) -> None:
    a, _ = linked_peers(peers, "RA")

    a.call(schema_and_fake_hold)


# Deadlines.


LIMIT_MS = 2000


def hold_entry_0(state: SimpleNamespace) -> None:
    """What moves into it, or out of it, stands still."""
    state.held = HeldMove(state.raw["batch"][0])


def let_go(state: SimpleNamespace) -> None:
    state.held.disarm()


def pull_after(state: SimpleNamespace, delay_s: float, entry: int) -> str:
    emulator.delay_stream(delay_s)
    try:
        pull_entry(state, entry, entry)
    except datadist.LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


@pytest.mark.races_on_purpose("the pull that took too long may still write")
def test_a_pull_that_takes_longer_than_sync_kv_timeout_raises_and_the_link_goes_on(peers: Any) -> None:
    a, b = peers(2)
    a.call(instances.start, HERE, 0, {"sync_kv_timeout": LIMIT_MS})
    port = b.call(instances.start, THERE, 1)
    for peer, seed in ((a, 100), (b, 200)):
        peer.call(add_batch, seed)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    for peer in (a, b):
        peer.call(hold_entry_0)

    assert a.call(pull_after, 0.0, 0) == "LLM_TIMEOUT"
    for peer in (a, b):
        peer.call(let_go)
    # The deadline starts when the earlier work of the current stream is done. Its entry is not in doubt.
    assert a.call(pull_after, LIMIT_MS / 1000 + 0.3, 1) == "LLM_SUCCESS"
