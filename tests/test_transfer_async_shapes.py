"""transfer_cache_async between caches of every kind, by keys and by raw addresses, against plain indexing.

"2.8" is the section of the API's description with the table of what goes where.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.transfers import Always
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

OK = LLMStatusCode.LLM_SUCCESS
INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
HERE, THERE = 1, 2
TENSORS, BATCH, ENTRY = 6, 3, 64
BLOCKS, BLOCK = 8, 24  # an entry is two blocks and two thirds
WAIT_MS = 30_000
POOL = '{"memory_size": 4194304, "page_shift": 12}'

Pair = tuple[SimpleNamespace, SimpleNamespace]
Bytes = list[torch.Tensor]


def pair_of(mode: dict[str, Any]) -> Pair:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, HERE, 0, mode)
    port = instances.start(there, THERE, 1, {**mode, "host_mem_pool_cfg": POOL})
    for state, seed in ((here, 10), (there, 20)):
        caches.add(state, "batch", seed, caches.describe(TENSORS, BATCH, ENTRY))
        key = BlocksCacheKey(state.cluster_id, 0)
        caches.add(
            state, "blocks", seed + 1, caches.describe(TENSORS, BLOCKS, BLOCK), is_blocks=True, key=key
        )
    caches.add(there, "keys", 30, caches.describe(TENSORS // 2, BATCH, ENTRY))
    caches.add(there, "values", 31, caches.describe(TENSORS // 2, BATCH, ENTRY))
    caches.add(there, "narrow", 32, caches.describe(TENSORS, BATCH, ENTRY // 2))
    on_host = caches.describe(TENSORS, BATCH, ENTRY, Placement.HOST)
    caches.add(there, "pool", 33, on_host, allocate=True)
    caches.add(there, "host", 34, on_host, remote_accessible=True)
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    return here, there


@pytest.fixture(scope="module")
def by_key() -> Iterator[Pair]:
    made = pair_of(caches.MODES["RA"])
    yield made
    for each in made:
        each.datadist.finalize()


@pytest.fixture(scope="module")
def by_address() -> Iterator[Pair]:
    made = pair_of(caches.MODES["non-RA"])
    yield made
    for each in made:
        each.datadist.finalize()


def send(here: SimpleNamespace, source: str, config: Any, *blocks: Any) -> LLMStatusCode:
    manager = here.datadist.cache_manager
    task = manager.transfer_cache_async(here.caches[source], Always(), [config], *blocks)
    (code,) = task.get_results(WAIT_MS)
    here.said = task.details()[0]
    return code  # type: ignore[no-any-return]


def check(here: SimpleNamespace, there: SimpleNamespace, name: str, before: Bytes, wanted: Bytes) -> None:
    assert not caches.equal(before, wanted)
    assert caches.equal(caches.look(there, name), wanted), here.said


def entry_to_entry(there: Bytes, here: Bytes, src: range, dst: range, at: int, to: int) -> Bytes:
    """In plain torch: batch entry ``at`` of each tensor of the layers to entry ``to``."""
    after = [tensor.clone() for tensor in there]
    for source, destination in zip(src, dst, strict=True):
        for k in range(2):
            row = here[2 * source + k].view(BATCH, -1)[at]
            after[2 * destination + k].view(BATCH, -1)[to][: len(row)] = row
    return after


def entry_to_blocks(there: Bytes, here: Bytes, src: range, dst: range, at: int, blocks: list[int]) -> Bytes:
    """In plain torch: the entry, cut into slices of a block each."""
    after = [tensor.clone() for tensor in there]
    for source, destination in zip(src, dst, strict=True):
        for k in range(2):
            slices = here[2 * source + k].view(BATCH, -1)[at].split(BLOCK)
            for i, block in enumerate(blocks):
                after[2 * destination + k].view(BLOCKS, -1)[block][: len(slices[i])] = slices[i]
    return after


RANGES = [(range(3), range(3)), (range(1, 3), range(0, 2)), (range(2, 3), range(2, 3))]


@pytest.mark.parametrize(("src", "dst"), RANGES)
def test_entry_to_entry_by_key(by_key: Pair, src: range, dst: range) -> None:
    here, there = by_key
    before = caches.look(there, "batch")
    key = CacheKeyByIdAndIndex(THERE, there.caches["batch"].cache_id, 2)

    assert send(here, "batch", TransferWithCacheKeyConfig(key, src, dst, 1)) == OK, here.said

    sent = caches.look(here, "batch")
    check(here, there, "batch", before, entry_to_entry(before, sent, src, dst, 1, 2))
    restore(there, "batch", before)


def restore(state: SimpleNamespace, name: str, before: Bytes) -> None:
    for tensor, bytes_ in zip(state.raw[name], before, strict=True):
        tensor.copy_(bytes_)
    torch.npu.synchronize(state.device)


@pytest.mark.parametrize(("src", "dst"), RANGES)
@pytest.mark.parametrize("blocks", [[4], [7, 1], [5, 0, 3]])
def test_entry_to_blocks_by_either_key(by_key: Pair, src: range, dst: range, blocks: list[int]) -> None:
    here, there = by_key
    before, sent = caches.look(there, "blocks"), caches.look(here, "batch")
    by_id = CacheKeyByIdAndIndex(THERE, there.caches["blocks"].cache_id)
    for config, entry in (
        (TransferWithCacheKeyConfig(BlocksCacheKey(THERE), src, dst), 0),
        (TransferWithCacheKeyConfig(by_id, src, dst, 2), 2),
    ):
        assert send(here, "batch", config, None, blocks, BLOCK) == OK, here.said

        check(here, there, "blocks", before, entry_to_blocks(before, sent, src, dst, entry, blocks))
        restore(there, "blocks", before)


def test_blocks_to_blocks_by_cache_id(by_key: Pair) -> None:
    here, there = by_key
    before, sent = caches.look(there, "blocks"), caches.look(here, "blocks")
    config = TransferWithCacheKeyConfig(by_id(there, "blocks"), range(1), range(2, 3))

    assert send(here, "blocks", config, [1, 2], [6, 0]) == OK

    wanted = [tensor.clone() for tensor in before]
    for k in range(2):
        wanted[4 + k].view(BLOCKS, -1)[[6, 0]] = sent[k].view(BLOCKS, -1)[[1, 2]]
    check(here, there, "blocks", before, wanted)
    restore(there, "blocks", before)


def test_entry_to_a_host_cache(by_key: Pair) -> None:
    """2.8 D→H: from ``allocate_cache`` only (seed 001); a registered one works as well (lifted)."""
    here, there = by_key
    before, sent = caches.look(there, "pool"), caches.look(here, "batch")
    key = CacheKeyByIdAndIndex(THERE, there.caches["pool"].cache_id, 1)

    assert send(here, "batch", TransferWithCacheKeyConfig(key, range(3), range(3))) == OK, here.said

    check(here, there, "pool", before, entry_to_entry(before, sent, range(3), range(3), 0, 1))
    registered = CacheKeyByIdAndIndex(THERE, there.caches["host"].cache_id)
    before = caches.look(there, "host")
    assert send(here, "batch", TransferWithCacheKeyConfig(registered, range(3), range(3))) == OK, here.said
    check(here, there, "host", before, entry_to_entry(before, sent, range(3), range(3), 0, 0))


def by_id(there: SimpleNamespace, name: str, entry: int = 0) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(THERE, there.caches[name].cache_id, entry)


@pytest.mark.parametrize(
    ("source", "key", "batch_index", "blocks", "code"),
    [
        ("batch", ("batch", 3), 0, (), INVALID),
        ("batch", ("batch", 0), 3, (), INVALID),
        ("batch", ("narrow", 0), 0, (), INVALID),
        ("batch", ("blocks", 0), 0, (), INVALID),
        ("batch", None, 0, (), INVALID),
        ("batch", ("batch", 0), 0, (None, [0], BLOCK), INVALID),
        ("batch", ("blocks", 0), 0, (None, [0], ENTRY), INVALID),
        ("batch", ("blocks", 0), 0, (None, [0, 1, 2, 3], BLOCK), INVALID),
        ("batch", ("blocks", 0), 0, (None, [BLOCKS], BLOCK), INVALID),
        ("batch", ("blocks", 1), 0, (None, [0], BLOCK), INVALID),
        ("batch", ("blocks", 0), 0, ([0], [0]), INVALID),
        ("blocks", ("blocks", 0), 0, (None, [0], BLOCK), INVALID),
        ("blocks", ("batch", 0), 0, ([0], [0]), INVALID),
        ("blocks", ("blocks", 1), 0, ([0], [0]), INVALID),
        ("blocks", ("batch", 0), 0, (), INVALID),
    ],
    ids=[
        "2.8 row 11 batch index there", "2.7 batch index here", "2.8 row 7 a smaller entry there",
        "entry to a blocks cache without blocks", "the same by BlocksCacheKey",
        "blocks of a contiguous cache",
        "2.8 row 8 block bytes", "2.8 row 16 more slices than the entry has", "a block that is not there",
        "2.8 row 11 batch index of blocks", "source blocks of a contiguous cache",
        "no blocks of a blocks cache",
        "2.8 B2C", "2.8 row 11 blocks with an index", "block 0 to an entry",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_the_results(
    by_key: Pair, source: str, key: Any, batch_index: int, blocks: Any, code: LLMStatusCode
) -> None:
    """Mended: the original overwrites the next entry."""
    here, there = by_key
    names = ("batch", "blocks", "narrow")
    before = {name: caches.look(there, name) for name in names}
    found = BlocksCacheKey(THERE) if key is None else by_id(there, *key)

    assert (
        send(here, source, TransferWithCacheKeyConfig(found, range(3), range(3), batch_index), *blocks)
        == code
    )

    assert "transfer_configs[0] (cluster 2)" in here.said
    assert all(caches.equal(caches.look(there, name), before[name]) for name in names)


def test_a_cache_that_is_not_there_is_in_the_results(by_key: Pair) -> None:
    key = CacheKeyByIdAndIndex(THERE, 999)

    assert send(by_key[0], "batch", TransferWithCacheKeyConfig(key, range(3), range(3))) == NO_CACHE


# By raw addresses, without remote-accessible mode.


def addresses(
    there: SimpleNamespace, name: str, layers: range, entry_bytes: int, entry: int = 0
) -> list[int]:
    tensors = there.caches[name].tensor_addrs[2 * layers.start : 2 * layers.stop]
    return [address + entry * entry_bytes for address in tensors]


@pytest.mark.parametrize(("src", "dst"), RANGES)
@pytest.mark.parametrize("entry", [0, 2])
def test_entry_to_entry_by_addresses(by_address: Pair, src: range, dst: range, entry: int) -> None:
    """The first address belongs to the first layer of the range; an address may begin a later entry."""
    here, there = by_address
    before, sent = caches.look(there, "batch"), caches.look(here, "batch")

    config = TransferConfig(THERE, addresses(there, "batch", dst, ENTRY, entry), src, 1)
    assert send(here, "batch", config) == OK, here.said

    check(here, there, "batch", before, entry_to_entry(before, sent, src, dst, 1, entry))
    restore(there, "batch", before)


def test_no_range_means_all_layers_and_the_config_stays_as_it_is(by_address: Pair) -> None:
    here, there = by_address
    before, sent = caches.look(there, "batch"), caches.look(here, "batch")
    config = TransferConfig(THERE, addresses(there, "batch", range(3), ENTRY))

    assert send(here, "batch", config) == OK

    check(here, there, "batch", before, entry_to_entry(before, sent, range(3), range(3), 0, 0))
    assert config.src_layer_range is None
    restore(there, "batch", before)


def test_blocks_to_blocks_by_addresses(by_address: Pair) -> None:
    """An address in the middle moves the destination's block 0 there."""
    here, there = by_address
    before, sent = caches.look(there, "blocks"), caches.look(here, "blocks")
    config = TransferConfig(THERE, addresses(there, "blocks", range(1, 3), BLOCK, 2), range(2))

    assert send(here, "blocks", config, [1, 7], [5, 0]) == OK, here.said

    wanted = [tensor.clone() for tensor in before]
    for tensor in range(4):
        wanted[2 + tensor].view(BLOCKS, -1)[[7, 2]] = sent[tensor].view(BLOCKS, -1)[[1, 7]]
    check(here, there, "blocks", before, wanted)
    restore(there, "blocks", before)


def test_entry_to_blocks_by_addresses(by_address: Pair) -> None:
    here, there = by_address
    before, sent = caches.look(there, "blocks"), caches.look(here, "batch")
    config = TransferConfig(THERE, addresses(there, "blocks", range(3), BLOCK), None, 2)

    assert send(here, "batch", config, None, [6, 1, 4], BLOCK) == OK, here.said

    check(here, there, "blocks", before, entry_to_blocks(before, sent, range(3), range(3), 2, [6, 1, 4]))
    restore(there, "blocks", before)


def test_keys_and_values_in_caches_of_their_own(by_address: Pair) -> None:
    """K and V of a layer go to different caches; no tensors lie one after the other there."""
    here, there = by_address
    before = {name: caches.look(there, name) for name in ("keys", "values")}
    sent = caches.look(here, "batch")
    pairs = zip(there.caches["keys"].tensor_addrs, there.caches["values"].tensor_addrs, strict=True)

    assert send(here, "batch", TransferConfig(THERE, [a for pair in pairs for a in pair])) == OK, here.said

    for k, name in enumerate(("keys", "values")):
        wanted = [tensor.clone() for tensor in before[name]]
        for layer, tensor in enumerate(wanted):
            tensor.view(BATCH, -1)[0] = sent[2 * layer + k].view(BATCH, -1)[0]
        check(here, there, name, before[name], wanted)
        restore(there, name, before[name])


def test_layers_in_any_order(by_address: Pair) -> None:
    here, there = by_address
    before, sent = caches.look(there, "batch"), caches.look(here, "batch")
    k0, v0, k1, v1, k2, v2 = there.caches["batch"].tensor_addrs

    assert send(here, "batch", TransferConfig(THERE, [k2, v2, k0, v0, k1, v1])) == OK, here.said

    wanted = [tensor.clone() for tensor in before]
    for layer, to in enumerate((2, 0, 1)):
        for k in range(2):
            wanted[2 * to + k].view(BATCH, -1)[0] = sent[2 * layer + k].view(BATCH, -1)[0]
    check(here, there, "batch", before, wanted)
    restore(there, "batch", before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: [*a[:-1], 4096], "lies in no contiguous cache"),
        (lambda a: [*a[:-1], a[-1] + BATCH * ENTRY], "lies in no contiguous cache"),
        (lambda a: [*a[:-1], a[-1] + 1], "expected a multiple of 64"),
        (lambda a: [0] * len(a), "lies in no contiguous cache"),
    ],
    ids=["nowhere", "behind the cache", "in the middle of an entry", "zeros"],
)
def test_an_address_of_no_cache_is_refused(by_address: Pair, change: Any, words: str) -> None:
    """Seed 001: the caller answers for ``dst_addrs``; here the sender looks, too.

    Mended: the original writes anywhere.
    """
    here, there = by_address
    before = caches.look(there, "batch")
    given = change(addresses(there, "batch", range(3), ENTRY))

    assert send(here, "batch", TransferConfig(THERE, given)) == INVALID

    assert words in here.said
    assert caches.equal(caches.look(there, "batch"), before)


def test_addresses_are_told_to_peers_in_that_mode_only(by_key: Pair, by_address: Pair) -> None:
    known = by_key[0].datadist._running.links.table.get(THERE, "x").remote_caches.values()
    assert not any(record.addresses for record in known)

    known = by_address[0].datadist._running.links.table.get(THERE, "x").remote_caches.values()
    assert [record.addresses for record in known] == [c.tensor_addrs for c in by_address[1].caches.values()]
