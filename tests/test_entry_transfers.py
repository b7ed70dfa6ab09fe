"""pull_cache and push_cache, and pull_blocks from a batch entry, against plain indexing of the same bytes.

Two instances in this process on two devices, and for what depends on it two processes. "2.6" is the section
of the API's description that a case shows.
"""

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
from tests.test_push_blocks import copies_of
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    MemInfo,
    Memtype,
    emulator,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
HERE, THERE, NOWHERE = 1, 2, 9
TENSORS, BATCH, ENTRY = 4, 3, 64
BLOCKS, BLOCK = 8, 24  # an entry is two blocks and two thirds

Pair = tuple[SimpleNamespace, SimpleNamespace]


def pair_of(**options: Any) -> Pair:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, HERE, 0, options)
    port = instances.start(there, THERE, 1, options)
    for state, seed in ((here, 100), (there, 200)):
        caches.add(state, "batch", seed, caches.describe(TENSORS, BATCH, ENTRY))
        key = BlocksCacheKey(state.cluster_id, 0)
        caches.add(
            state, "blocks", seed + 1, caches.describe(TENSORS, BLOCKS, BLOCK), is_blocks=True, key=key
        )
        caches.add(state, "six", seed + 2, caches.describe(6, BATCH, ENTRY))
        caches.add(state, "wide", seed + 3, caches.describe(TENSORS, BATCH, 2 * ENTRY))
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    return here, there


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    here, there = pair_of(**caches.MODES[request.param])
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(scope="module")
def ra_pair() -> Iterator[Pair]:
    here, there = pair_of()
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def restore(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    """Puts a cache's first bytes back; returns them as [entries, bytes]."""
    order = {"batch": 0, "blocks": 1, "six": 2, "wide": 3}
    content = caches.bytes_of(100 * state.cluster_id + order[name], [t.numel() for t in state.raw[name]])
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return caches.rows(content, state.caches[name].num_entries)


def by_id(state: SimpleNamespace, name: str, batch_index: int = 0) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(state.cluster_id, state.caches[name].cache_id, batch_index)


# What moves.


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


def linked_peers(peers: Any, mode: str) -> Any:
    a, b = peers(2)
    a.call(instances.start, HERE, 0, caches.MODES[mode])
    port = b.call(instances.start, THERE, 1, caches.MODES[mode])
    for peer, seed in ((a, 100), (b, 200)):
        peer.call(add_batch, seed)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, HERE)
    return a, b


def add_batch(state: SimpleNamespace, seed: int) -> None:
    caches.add(state, "batch", seed, caches.describe(TENSORS, BATCH, ENTRY))


def pull_entry(state: SimpleNamespace, remote: int, local: int) -> int:
    """Returns how many copies that took."""
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    return copies_of(
        state, lambda: state.datadist.cache_manager.pull_cache(key, state.caches["batch"], local)
    )


def push_entry(state: SimpleNamespace, remote: int, local: int) -> int:
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    return copies_of(
        state, lambda: state.datadist.cache_manager.push_cache(key, state.caches["batch"], local)
    )


def test_entries_move_between_processes_with_at_most_one_copy_per_tensor(peers: Any) -> None:
    a, b = linked_peers(peers, "RA")
    here = caches.rows(caches.bytes_of(100, [BATCH * ENTRY] * TENSORS), BATCH)
    there = caches.rows(caches.bytes_of(200, [BATCH * ENTRY] * TENSORS), BATCH)

    pulled = a.call(pull_entry, 1, 0)
    pushed = a.call(push_entry, 2, 1)

    for ours, theirs in zip(here, there, strict=True):
        ours[0] = theirs[1]
        theirs[2] = ours[1]
    assert caches.equal(a.call(caches.look, "batch"), here)
    assert caches.equal(b.call(caches.look, "batch"), there)
    assert 1 <= pulled == pushed <= TENSORS


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


# Tensors of different shape (MLA).

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


# Deadlines.


def pull_slowly(state: SimpleNamespace, bytes_per_s: float, delay_s: float, entry: int) -> str:
    emulator.set_bandwidth("peer", bytes_per_s)
    emulator.delay_stream(delay_s)
    try:
        key = CacheKeyByIdAndIndex(THERE, 1, 0)
        state.datadist.cache_manager.pull_cache(key, state.caches["batch"], entry)
    except datadist.LLMException as error:
        return error.status_code.name
    finally:
        emulator.set_bandwidth("peer", 0)
    return "LLM_SUCCESS"


@pytest.mark.races_on_purpose("the pull that took too long may still write")
def test_a_pull_that_takes_longer_than_sync_kv_timeout_raises_and_the_link_goes_on(peers: Any) -> None:
    a, b = peers(2)
    a.call(instances.start, HERE, 0, {"sync_kv_timeout": 1000})
    port = b.call(instances.start, THERE, 1)
    for peer, seed in ((a, 100), (b, 200)):
        peer.call(add_batch, seed)
    a.call(instances.link, THERE, port)

    assert a.call(pull_slowly, ENTRY / 2.0, 0.0, 0) == "LLM_TIMEOUT"  # 2 s per tensor
    # The deadline starts when the earlier work of the current stream is done. Its entry is not in doubt.
    assert a.call(pull_slowly, 0, 1.5, 1) == "LLM_SUCCESS"
