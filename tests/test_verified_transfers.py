"""With ``verify_blocks`` a byte that arrives wrong is found; without, nobody would know."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests import instances
from tests.links import linked_pair, pattern, push, status_of
from tests.peers import Peer
from torch_llm_datadist import emulator

SRC, DST = [1, 5, 2], [3, 0, 7]


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
def test_a_flipped_byte_is_found_and_its_block_is_named(
    peers: Callable[[int], list[Peer]], name: str
) -> None:
    client, server, _ = linked_pair(peers, {"verify_blocks": True})
    assert client.call(transfer_of(name), 2, SRC, DST) == "LLM_SUCCESS"
    assert wrong_bytes(client, server, name) == 0
    client.call(flip_a_byte, local_block(name))

    said = client.call(transfer_of(name), 2, SRC, DST)

    assert said.startswith(f"LLM_FAILED: {name}_blocks: 1 blocks are not the same at both ends")
    assert "cluster 2" in said
    local, remote = (SRC, DST) if name == "push" else (DST, SRC)
    pairs = [f"local block {a} and remote block {b}" for a, b in zip(local, remote, strict=True)]
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
