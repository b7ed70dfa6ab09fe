"""What the processes of a call sequence do, a function per step; the order of a test's calls is the barrier.

They say ``llm_datadist`` as code written for the original does.
"""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as llm_datadist
from tests.test_two_sided_links import rank_table as rank_table
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    RegisterMemStatus,
)

POOL = json.dumps({"memory_size": 8 * 2**20})


def start(state: SimpleNamespace, role: str, cluster_id: int, device: int, options: dict[str, Any]) -> int:
    """Returns the port, 0 for an instance that does not listen."""
    torch.npu.set_device(device)
    state.cluster_id, state.device = cluster_id, device
    state.datadist = LLMDataDist(LLMRole[role], cluster_id)
    config = LLMConfig()
    config.device_id = device
    for name, value in options.items():
        setattr(config, name, value)
    state.datadist.init(config.generate_options())
    state.manager = state.datadist.cache_manager
    state.tensors, state.caches = {}, {}
    return state.datadist.listen_port or 0


def finalize(state: SimpleNamespace) -> None:
    state.datadist.finalize()


# Links.


def link(state: SimpleNamespace, name: str, members: dict[int, int], table: str) -> None:
    """Two-sided, polled as the clients poll."""
    state.comm_id = state.datadist.link(name, members, table)
    pause = threading.Event()
    while (status := state.datadist.query_register_mem_status(state.comm_id)) == RegisterMemStatus.PREPARING:
        pause.wait(0.02)
    assert status == RegisterMemStatus.OK


def unlink(state: SimpleNamespace) -> None:
    state.datadist.unlink(state.comm_id)


def cluster(cluster_id: int, port: int | None) -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    if port is not None:
        info.append_remote_ip_info("127.0.0.1", port)
    return info


def link_clusters(state: SimpleNamespace, servers: list[tuple[int, int]], timeout: int = 5000) -> None:
    found = state.datadist.link_clusters([cluster(*server) for server in servers], timeout)
    assert found == (LLMStatusCode.LLM_SUCCESS, [LLMStatusCode.LLM_SUCCESS] * len(servers))


def unlink_clusters(
    state: SimpleNamespace, servers: list[tuple[int, int | None]], force: bool = False
) -> None:
    found = state.datadist.unlink_clusters([cluster(*server) for server in servers], force=force)
    assert found == (LLMStatusCode.LLM_SUCCESS, [LLMStatusCode.LLM_SUCCESS] * len(servers))


# Caches. Float16 tensors, each filled by a seed that any process can compute.


def values(seed: int, shape: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1000, 1000, shape, generator=generator).to(torch.float16)


def fill(state: SimpleNamespace, name: str, seed: int) -> None:
    for i, tensor in enumerate(state.tensors[name]):
        tensor.copy_(values(seed + i, list(tensor.shape)))
    torch.npu.synchronize()


def register(
    state: SimpleNamespace,
    name: str,
    seed: int,
    count: int,
    shape: list[int],
    key: Any = None,
    *,
    by_address: bool = True,
) -> int:
    """A blocks cache; by addresses, as the original's callers do. Returns its cache_id."""
    state.tensors[name] = [
        torch.empty(shape, dtype=torch.float16, device=f"npu:{state.device}") for _ in range(count)
    ]
    fill(state, name, seed)
    desc = CacheDesc(count, shape, DataType.DT_FLOAT16)
    addresses = [int(tensor.data_ptr()) for tensor in state.tensors[name]]
    state.caches[name] = state.manager.register_blocks_cache(desc, addresses, key)
    return state.caches[name].cache_id


def allocate(
    state: SimpleNamespace,
    name: str,
    seed: int,
    count: int,
    shape: list[int],
    keys: list[CacheKey] | None = None,
) -> int:
    """A contiguous cache from the pool; returns its cache_id."""
    desc = CacheDesc(count, shape, DataType.DT_FLOAT16)
    cache = state.manager.allocate_cache(desc, keys) if keys else state.manager.allocate_cache(desc)
    state.caches[name], state.tensors[name] = cache, cache.tensors
    fill(state, name, seed)
    return cache.cache_id


def content(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    torch.npu.synchronize()
    return [tensor.cpu() for tensor in state.tensors[name]]


def filled(seed: int, count: int, shape: list[int]) -> list[torch.Tensor]:
    """What ``fill`` writes."""
    return [values(seed + i, shape) for i in range(count)]


def call(state: SimpleNamespace, method: str, *arguments: Any) -> None:
    """A method of the cache manager; a str names a cache, a dict at the end holds named arguments."""
    named: dict[str, Any] = {}
    if arguments and isinstance(arguments[-1], dict):
        *arguments, named = arguments  # type: ignore[assignment]
    found = [state.caches[a] if isinstance(a, str) else a for a in arguments]
    getattr(state.manager, method)(*found, **named)


def key(cluster_id: int, model_id: int = 0) -> BlocksCacheKey:
    return llm_datadist.BlocksCacheKey(cluster_id, model_id)
