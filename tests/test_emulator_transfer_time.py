"""Deadlines of blocking transfers, with streams and links that the emulator makes slow."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests import instances
from tests.links import BLOCKS, Peers, linked_pair, pattern, push
from torch_llm_datadist import emulator


def test_a_slow_producer_is_no_timeout(peers: Peers) -> None:
    """The deadline of sync_kv_timeout starts when earlier work of the stream is done."""
    client, server, _ = linked_pair(peers, {"sync_kv_timeout": 2000})

    assert client.call(push_behind_slow_kernel, 2, 2.5) == "LLM_SUCCESS"

    assert bool((server.call(instances.content)[:, 1] == 9).all())


def push_behind_slow_kernel(state: SimpleNamespace, cluster_id: int, delay_s: float) -> str:
    torch.npu.set_device(state.device)
    emulator.delay_stream(delay_s)
    for raw in state.raw:
        raw.fill_(9)
    return push(state, cluster_id, [0], [1])


def test_a_slow_link_is_a_timeout_that_names_the_peer_and_leaves_the_link(peers: Peers) -> None:
    """Seed 003: an LLMException when sync_kv_timeout is exceeded."""
    client, server, port = linked_pair(peers)
    client.call(slow_down_links, 64 * 1024)

    everything = list(range(BLOCKS))  # 64 KiB: a second
    said = client.call(push_in_a_hurry, 2, everything, 300)

    assert said.startswith("LLM_TIMEOUT: push_blocks: ")
    assert f"127.0.0.1:{port}" in said
    assert "0.3 s" in said or "300 ms" in said
    client.call(wait_drained)
    assert client.call(push, 2, [1], [2]) == "LLM_SUCCESS"  # 8 KiB: an eighth of a second
    assert torch.equal(server.call(instances.content)[:, 2], pattern(1)[:, 1])


def push_in_a_hurry(state: SimpleNamespace, cluster_id: int, blocks: list[int], timeout_ms: int) -> str:
    with instances.in_a_hurry(state, timeout_ms):
        return push(state, cluster_id, blocks, blocks)


def slow_down_links(state: SimpleNamespace, bytes_per_s: int) -> None:
    emulator.set_bandwidth("peer", bytes_per_s)


def wait_drained(state: SimpleNamespace) -> None:
    """What a transfer that was given up had queued ends at its own pace."""
    instance = state.datadist._running.instance
    while instance.is_cache_in_use(state.cache.cache_id):
        torch.npu.synchronize(state.device)
