"""The table of products of each seed: what it is about runs on Atlas A3 and on Atlas 800I A2. The other rows,
hardware that the emulated runtime does not have, say no.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from tests import caches, instances
from tests.peers import Peer
from tests.transfers import Always
from torch_llm_datadist import BlocksCacheKey, CacheKeyByIdAndIndex, LLMStatusCode, TransferWithCacheKeyConfig

# The name of the chip by which a program tells the products apart.
PRODUCTS = {"A2": "Ascend910B", "A3": "Ascend910_93"}
SEEDS = [
    "000 TransferWithCacheKeyConfig", "001 transfer_cache_async", "002 BlocksCacheKey", "003 push_blocks",
    "004 push_cache",
]  # fmt: skip
TENSORS, ENTRIES, BYTES = 4, 4, 64
Pair = tuple[Peer, Peer]


@pytest.fixture(scope="module", params=PRODUCTS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_LLM_DATADIST_EMULATE_PROFILE", request.param)
        is_default = request.param == "A2"
        one, two = Peer(afresh=not is_default), Peer(afresh=not is_default)
    for cluster_id, peer in ((1, one), (2, two)):
        peer.send(prepare, cluster_id, PRODUCTS[request.param])
    _, port = one.answer(), two.answer()
    assert one.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    yield one, two
    one.stop()
    two.stop()


def prepare(state: SimpleNamespace, cluster_id: int, chip: str) -> int:
    """Of each kind a cache: blocks are cache 1, entries are cache 2."""
    port = instances.start(state, cluster_id, cluster_id - 1)
    assert torch.npu.get_device_name(0).startswith(chip)
    desc = caches.describe(TENSORS, ENTRIES, BYTES)
    key = BlocksCacheKey(cluster_id)
    assert caches.add(state, "blocks", 10 * cluster_id, desc, is_blocks=True, key=key) == 1
    assert caches.add(state, "batch", 10 * cluster_id + 5, desc) == 2
    return port


def transfer(state: SimpleNamespace, seed: str) -> None:
    """From what is 1 here to what is 2 there."""
    manager, blocks, batch = state.datadist.cache_manager, state.caches["blocks"], state.caches["batch"]
    by_model, by_id = BlocksCacheKey(2), CacheKeyByIdAndIndex(2, 2, 2)
    if seed.startswith(("000", "001")):
        is_config = seed.startswith("000")
        config = TransferWithCacheKeyConfig(
            by_id if is_config else by_model, range(2), range(2), int(is_config)
        )
        lists = ([], []) if is_config else ([1], [2])
        task = manager.transfer_cache_async(batch if is_config else blocks, Always(), [config], *lists)
        assert task.get_results(30_000) == [LLMStatusCode.LLM_SUCCESS], task.details()
    elif seed.startswith("004"):
        manager.push_cache(by_id, batch, 1)
    else:
        manager.push_blocks(by_model, blocks, [1], [2])


def found(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    rows = caches.rows(caches.look(state, name), ENTRIES)
    content = caches.bytes_of(
        10 * state.cluster_id + (5 if name == "batch" else 0), [ENTRIES * BYTES] * TENSORS
    )
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)  # for the next one
    torch.npu.synchronize(state.device)
    return rows


@pytest.mark.parametrize("seed", SEEDS)
def test_products_atlas_a2_and_a3_are_served(pair: Pair, seed: str) -> None:
    one, two = pair
    name = "batch" if seed.startswith(("000", "004")) else "blocks"

    one.call(transfer, seed)

    number = 5 if name == "batch" else 0
    sizes = [ENTRIES * BYTES] * TENSORS
    sent, expected = (caches.rows(caches.bytes_of(10 * c + number, sizes), ENTRIES) for c in (1, 2))
    for source, destination in zip(sent, expected, strict=True):
        destination[2] = source[1]
    assert all(map(torch.equal, two.call(found, name), expected))
