"""With ``verify_blocks`` a byte that arrives wrong is found, whatever kind of transfer brought it; without,
nobody would know."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances, transfers
from tests.links import linked_pair, pattern, push, status_of
from tests.peers import Peer
from tests.transfers import BLOCK_BYTES, LAYERS, Always, to
from torch_llm_datadist import BlocksCacheKey, CacheKeyByIdAndIndex, LLMException, Placement, emulator, ops

SRC, DST = [1, 5, 2], [3, 0, 4]
TENSORS, BATCH, ENTRY = 2 * LAYERS, 3, 600
WAIT_S = 30.0
HOST_POOL = json.dumps({"memory_size": 1 << 25, "page_shift": 12})
Pair = tuple[SimpleNamespace, SimpleNamespace]


def pull(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> str:
    return status_of(lambda: instances.pull_blocks(state, cluster_id, src, dst))


def flip_a_byte(state: SimpleNamespace, block: int) -> None:
    """Of the next copy from or to that local block."""
    emulator.faults.flip_byte(offset=100, address=state.raw[0][block].data_ptr())


def local_block(name: str) -> int:
    return SRC[0] if name == "push" else DST[0]


def transfer_of(name: str) -> Callable[..., str]:
    return {"push": push, "pull": pull}[name]


def wrong_bytes(client: Peer, server: Peer, name: str) -> int:
    sink, owner = (server, 1) if name == "push" else (client, 2)
    arrived: Any = sink.call(instances.content)
    return int((arrived[:, DST] != pattern(owner)[:, SRC]).sum())


@pytest.mark.parametrize("name", ["push", "pull"])
def test_a_flipped_byte_between_processes_is_found_and_its_block_is_named(
    peers: Callable[[int], list[Peer]], name: str
) -> None:
    client, server, _ = linked_pair(peers, {"verify_blocks": True, "sync_kv_timeout": 20_000})
    assert client.call(transfer_of(name), 2, SRC, DST) == "LLM_SUCCESS"
    assert wrong_bytes(client, server, name) == 0
    client.call(flip_a_byte, local_block(name))

    said = client.call(transfer_of(name), 2, SRC, DST)

    assert said.startswith(f"LLM_FAILED: {name}_blocks: the transfer with cluster 2 ")
    assert "is not the same at both ends: byte 100 is 0x" in said
    local, remote = (SRC, DST) if name == "push" else (DST, SRC)
    pairs = [f"local block {a} and remote block {b} " for a, b in zip(local, remote, strict=True)]
    assert sum(pair in said for pair in pairs) == 1
    assert client.call(transfer_of(name), 2, SRC, DST) == "LLM_SUCCESS"
    assert wrong_bytes(client, server, name) == 0


@pytest.mark.parametrize("name", ["push", "pull"])
def test_without_verification_a_flipped_byte_is_not_seen(
    peers: Callable[[int], list[Peer]], name: str
) -> None:
    client, server, _ = linked_pair(peers)
    client.call(flip_a_byte, local_block(name))

    assert client.call(transfer_of(name), 2, SRC, DST) == "LLM_SUCCESS"

    assert wrong_bytes(client, server, name) == 1


def start(cluster_id: int, device: int) -> SimpleNamespace:
    """With the blocks cache of tests.transfers, a contiguous one, and blocks in two kinds of host memory."""
    state = transfers.start(
        cluster_id, device, verify_blocks=True, sync_kv_timeout=20_000, host_mem_pool_cfg=HOST_POOL
    )
    blocks, state.raw = state.raw, {"blocks": state.raw}
    assert blocks
    caches.add(state, "batch", 10 * cluster_id, caches.describe(TENSORS, BATCH, ENTRY))
    for number, name in enumerate(("pool", "plain"), 1):
        desc = caches.describe(TENSORS, transfers.BLOCKS, BLOCK_BYTES, Placement.HOST)
        key = BlocksCacheKey(cluster_id, number)
        is_pool = name == "pool"
        caches.add(
            state, name, 10 * cluster_id + number, desc,
            is_blocks=True, key=key, allocate=is_pool, remote_accessible=None if is_pool else True,
        )  # fmt: skip
    return state


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    here, there = start(1, 0), start(2, 1)
    transfers.link(here, there)
    yield here, there
    for state in (here, there):
        state.datadist.finalize()


def code_of(call: Callable[[], object]) -> tuple[int, str]:
    try:
        call()
    except LLMException as error:
        return int(error.status_code), str(error)
    return 0, ""


def read_status(status: torch.Tensor) -> int:
    return int(status.item()) & 0xFFFFFFFF  # LLM_FAILED is -1 there


def push_op(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    """With a status on the stream."""
    with torch.npu.device(0):
        status = torch.zeros(1, dtype=torch.int32, device="npu:0")
        link = here.datadist.link_id(2)
        blocks = torch.tensor(SRC), torch.tensor(DST)
        ops.push_blocks(status, here.cache.tensors, *blocks, link=link, timeout_ms=20_000)
        return [(read_status(status), "")]


def by_layers(here: SimpleNamespace, there: SimpleNamespace, packed: bool = False) -> list[tuple[int, str]]:
    """What its sender's stream saw, the receiver's, and what the sender is told."""
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, SRC, DST, packed=packed)
    if packed:
        there.manager.expect(task.ticket, DST)
    statuses = []
    # The receiver first: a ticket that its sender has given up by then is refused, not waited for.
    ends: list[tuple[SimpleNamespace, Any]] = [(there, task.ticket), (here, task)]
    for state, transfer in ends:
        binding = datadist.Binding(state.device, range(LAYERS))
        binding.bind([transfer], timeout_s=WAIT_S)
        with torch.npu.device(state.device):
            status = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")
            for layer in range(LAYERS):
                (ops.push_layer if state is here else ops.wait_layer)(status, status, layer, binding.id)
            if state is here:
                ops.finish(status, status, binding.id)
        statuses.append((binding, status))
    received, sent = (read_status(status) for _, status in statuses)
    return [(sent, task.state().detail), (received, "")]


def packed(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    return by_layers(here, there, packed=True)


def asynchronous(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], SRC, DST)
    code = task.synchronize(round(WAIT_S * 1000))
    return [(int(code), "")]


def published(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    """What the one that pulls is told, and its holder."""
    with torch.npu.device(0):
        made = here.manager.publish(here.raw["blocks"][0], here.cache, None, 2, timeout_s=WAIT_S)
    with torch.npu.device(1):
        key = BlocksCacheKey(1)
        said = code_of(lambda: there.manager.pull_blocks(key, there.cache, SRC, DST, ticket=made.ticket))
    code_of(lambda: made.wait_taken(WAIT_S))
    return [said, (int(made.state().code), "")]


def push_entry(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    key = CacheKeyByIdAndIndex(2, there.caches["batch"].cache_id, 2)
    return [code_of(lambda: here.manager.push_cache(key, here.caches["batch"], 1))]


def pull_entry(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    key = CacheKeyByIdAndIndex(1, here.caches["batch"].cache_id, 1)
    return [code_of(lambda: there.manager.pull_cache(key, there.caches["batch"], 2))]


def cut_entry(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
    """One batch entry of the peer into blocks."""
    key = CacheKeyByIdAndIndex(1, here.caches["batch"].cache_id, 1)
    return [code_of(lambda: there.manager.pull_blocks(key, there.cache, dst_blocks=DST))]


def push_to_host(name: str) -> Callable[..., list[tuple[int, str]]]:
    def transfer(here: SimpleNamespace, there: SimpleNamespace) -> list[tuple[int, str]]:
        model = {"pool": 1, "plain": 2}[name]
        key = BlocksCacheKey(2, model)
        return [code_of(lambda: here.manager.push_blocks(key, here.cache, SRC, DST))]

    return transfer


Transfer = Callable[[SimpleNamespace, SimpleNamespace], list[tuple[int, str]]]
# What is moved, from which cache at the first instance, to which at the second.
KINDS: dict[str, tuple[Transfer, str, str]] = {
    "push_blocks with a status": (push_op, "blocks", "blocks"),
    "push by layers": (by_layers, "blocks", "blocks"),
    "packed push": (packed, "blocks", "blocks"),
    "transfer_cache_async": (asynchronous, "blocks", "blocks"),
    "pull of a publication": (published, "blocks", "blocks"),
    "push_cache": (push_entry, "batch", "batch"),
    "pull_cache": (pull_entry, "batch", "batch"),
    "pull of an entry into blocks": (cut_entry, "batch", "blocks"),
    "push to pooled host memory": (push_to_host("pool"), "blocks", "pool"),
    "push to plain host memory": (push_to_host("plain"), "blocks", "plain"),
}


def flip(here: SimpleNamespace, kind: str) -> emulator.faults.Armed:
    """In the next copy of what is sent: from the second block, or the second entry."""
    _, source, _ = KINDS[kind]
    if kind == "packed push":  # the blocks of a layer travel as one piece
        return emulator.faults.flip_byte(offset=300, bytes=2 * len(SRC) * BLOCK_BYTES)
    first = here.raw[source][0]
    entry = first.numel() // BATCH if source == "batch" else BLOCK_BYTES
    return emulator.faults.flip_byte(offset=100, address=first.data_ptr() + entry)


def arrived(here: SimpleNamespace, there: SimpleNamespace, kind: str) -> bool:
    """All that was to be moved is the same at both ends."""
    _, source, destination = KINDS[kind]
    for device in range(2):
        torch.npu.synchronize(device)
    pairs = []
    for src, dst in zip(here.raw[source], there.raw[destination], strict=True):
        src, dst = src.cpu().flatten(), dst.cpu().flatten()
        if source == "batch":
            sent = src[ENTRY : 2 * ENTRY]
            if destination == "batch":
                found = dst[2 * ENTRY :]
            else:
                found = torch.cat([dst.view(-1, BLOCK_BYTES)[b] for b in DST])[:ENTRY]
            pairs.append((sent, found))
            continue
        pairs.append((src.view(-1, BLOCK_BYTES)[SRC], dst.view(-1, BLOCK_BYTES)[DST]))
    return all(torch.equal(sent, found) for sent, found in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_in_every_kind_of_transfer(pair: Pair, kind: str) -> None:
    here, there = pair
    transfer, *_ = KINDS[kind]
    fill = itertools.cycle([7])
    for raw in there.raw[KINDS[kind][2]]:
        raw.fill_(next(fill))
    torch.npu.synchronize(1)
    fault = flip(here, kind)

    seen = transfer(here, there)

    assert fault.fired == 1
    failed = int(datadist.LLMStatusCode.LLM_FAILED)
    assert [code for code, _ in seen] == [failed] * len(seen)
    if seen[0][1]:
        by_receiver = kind in ("push by layers", "packed push")  # which adds up what arrived
        words = "found other bytes than were sent" if by_receiver else "is not the same at both ends"
        assert words in seen[0][1]
    assert [code for code, _ in transfer(here, there)] == [0] * len(seen)  # the link is still usable
    assert arrived(here, there, kind)


def test_each_mismatch_names_the_tensor_the_blocks_and_the_byte(pair: Pair) -> None:
    here, there = pair
    flip(here, "push_cache")

    ((_, said),) = push_entry(here, there)

    assert "tensor 0 of local batch entry 1 and remote batch entry 2" in said
    assert "byte 100 is 0x" in said
    assert "What has arrived is of no use; the link is still usable: transfer it again" in said
