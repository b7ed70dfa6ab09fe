"""Two processes with a cache each and a link between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.peers import Peer

TENSORS, BLOCKS, BLOCK_BYTES = 2, 8, 4096
KEEP_ALIVE_S = 1.0
LATE_S = 5.0  # what a busy machine may take longer
Peers = Callable[[int], list[Peer]]


def start(state: SimpleNamespace, cluster_id: int, device: int, options: dict[str, Any]) -> int:
    """An instance and a cache; returns its port. ``options`` go to ``LLMConfig``."""
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    config.keep_alive_ms = int(KEEP_ALIVE_S * 1000)
    config.sync_kv_timeout = instances.PATIENT_MS
    for name, value in options.items():
        setattr(config, name, value)
    state.cluster_id, state.device = cluster_id, device
    state.datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    state.datadist.init(config.generate_options())
    instances.register(state, cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
    return state.datadist.listen_port or 0


def pattern(cluster_id: int) -> torch.Tensor:
    return instances.pattern(cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)


def push(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> str:
    """Pushes; returns the name of the status code and what was said."""
    return status_of(lambda: instances.push_blocks(state, cluster_id, src, dst))


def status_of(call: Callable[[], object]) -> str:
    try:
        call()
    except datadist.LLMException as error:
        return f"{error.status_code.name}: {error}"
    return "LLM_SUCCESS"


def unlink(state: SimpleNamespace, cluster_id: int, port: int, timeout: int, force: bool) -> list[str]:
    info = instances.cluster(cluster_id, port)
    return [code.name for code in state.datadist.unlink_clusters([info], timeout=timeout, force=force)[1]]


def push_until_it_fails(state: SimpleNamespace, cluster_id: int, within_s: float) -> tuple[str, float]:
    """Pushes over and over; returns the first failure that says that the link is lost, and when it came."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        said = push(state, cluster_id, [0], [0])
        if said.startswith("LLM_NOT_YET_LINK"):
            return said, time.monotonic() - began
    return f"no failure within {within_s} s, last {said}", within_s


def wait_unlinked(state: SimpleNamespace, cluster_id: int, within_s: float) -> str:
    """Waits until there is no link; returns what a caller is told about it."""
    table = state.datadist._running.links.table
    with table._changed:
        assert table._changed.wait_for(lambda: cluster_id not in table._links, within_s)
    return status_of(lambda: state.datadist.link_id(cluster_id))


def linked_pair(peers: Peers, options: dict[str, Any] | None = None) -> tuple[Peer, Peer, int]:
    """The client is cluster 1, the server cluster 2; returns both and the server's port."""
    client, server = peers(2)
    client.call(start, 1, 0, options or {})
    port = server.call(start, 2, 1, options or {})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    return client, server, port


def linked_to(state: SimpleNamespace) -> list[int]:
    return [info.cluster_id for info in state.datadist.links() if info.state == "linked"]


def finalize(state: SimpleNamespace) -> None:
    state.datadist.finalize()
    state.datadist.finalize()
