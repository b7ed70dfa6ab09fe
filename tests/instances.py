"""Calls that most tests send to their peers: an instance, a blocks cache with known bytes, a link."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as datadist
from torch_llm_datadist import DataType

TORCH_DTYPES = {
    DataType.DT_FLOAT: torch.float32,
    DataType.DT_FLOAT16: torch.float16,
    DataType.DT_INT8: torch.int8,
    DataType.DT_INT32: torch.int32,
    DataType.DT_UINT8: torch.uint8,
    DataType.DT_INT16: torch.int16,
    DataType.DT_UINT16: torch.uint16,
    DataType.DT_UINT32: torch.uint32,
    DataType.DT_INT64: torch.int64,
    DataType.DT_UINT64: torch.uint64,
    DataType.DT_DOUBLE: torch.float64,
    DataType.DT_BOOL: torch.bool,
    DataType.DT_BF16: torch.bfloat16,
}


# A transfer's deadline wherever a test says nothing of it: a busy machine is no fault.
PATIENT_MS = 20_000


def start(state: SimpleNamespace, cluster_id: int, device: int, options: dict[str, Any] | None = None) -> int:
    """Starts an instance that listens; returns its port."""
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = PATIENT_MS
    for name, value in (options or {}).items():
        setattr(config, name, value)
    state.device = device
    state.cluster_id = cluster_id
    torch.npu.set_device(device)
    state.datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    state.datadist.init(config.generate_options())
    state.status = torch.zeros(1, dtype=torch.int32).to(f"npu:{device}")
    return state.datadist.listen_port


@contextlib.contextmanager
def in_a_hurry(
    state: SimpleNamespace, timeout_ms: int = PATIENT_MS, stream_timeout_ms: int = PATIENT_MS
) -> Iterator[None]:
    """The transfers that begin inside have a ``sync_kv_timeout`` and a ``stream_timeout`` of their own: those
    that are to succeed need not do so within what is short for those that are to fail."""
    manager = state.datadist.cache_manager
    blocking, by_layers = manager._call, manager._layer_transfers
    usual = blocking._options
    blocking._options = dataclasses.replace(
        usual, sync_kv_timeout_ms=timeout_ms, stream_timeout_ms=stream_timeout_ms
    )
    by_layers._timeout_s = timeout_ms / 1000
    try:
        yield
    finally:
        blocking._options = usual
        by_layers._timeout_s = usual.sync_kv_timeout_ms / 1000


def pattern(seed: int, num_tensors: int, num_blocks: int, block_bytes: int) -> torch.Tensor:
    """Random bytes, uint8[num_tensors, num_blocks, block_bytes] on the CPU; the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tensors, num_blocks, block_bytes)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def register(
    state: SimpleNamespace,
    seed: int,
    num_tensors: int,
    num_blocks: int,
    block_bytes: int,
    data_type: DataType = DataType.DT_UINT8,
    model_id: int = 0,
    apart: bool = False,
) -> None:
    """Registers a blocks cache whose bytes are ``pattern(seed, …)``.

    Small tensors share an allocation, where one copy may serve several; ``apart``, each has its own.
    """
    dtype = TORCH_DTYPES[data_type]
    content = pattern(seed, num_tensors, num_blocks, block_bytes)
    elements = block_bytes // dtype.itemsize
    # Bytes cross as they are: a view, since random bytes are no valid bool or float.
    state.raw = [content[t].contiguous().to(f"npu:{state.device}") for t in range(num_tensors)]
    if apart:
        state.raw = [_alone(raw) for raw in state.raw]
    tensors = [raw.view(dtype).view(num_blocks, elements) for raw in state.raw]
    desc = datadist.CacheDesc(num_tensors, [num_blocks, elements], data_type)
    key = datadist.BlocksCacheKey(state.cluster_id, model_id)
    state.cache = state.datadist.cache_manager.register_blocks_cache(desc, tensors, key)


def register_raw(state: SimpleNamespace) -> None:
    """Registers ``state.raw``, uint8[num_blocks, block_bytes] each, as a blocks cache."""
    desc = datadist.CacheDesc(len(state.raw), list(state.raw[0].shape), DataType.DT_UINT8)
    key = datadist.BlocksCacheKey(state.cluster_id, 0)
    state.cache = state.datadist.cache_manager.register_blocks_cache(desc, state.raw, key)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in an allocation of its own: the allocator divides smaller ones between tensors."""
    whole = torch.empty(11 << 20, dtype=torch.uint8, device=tensor.device)
    return whole[: tensor.numel()].view(tensor.shape).copy_(tensor)


def content(state: SimpleNamespace) -> torch.Tensor:
    """The bytes that the cache holds now, uint8[num_tensors, num_blocks, block_bytes] on the CPU."""
    torch.npu.synchronize(state.device)
    return torch.stack([raw.cpu() for raw in state.raw])


def cluster(cluster_id: int, port: int, address: str = "127.0.0.1") -> datadist.LLMClusterInfo:
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(address, port)
    return info


def link(
    state: SimpleNamespace, cluster_id: int, port: int, timeout: int = 10_000, address: str = "127.0.0.1"
) -> list[str]:
    state.peer = cluster(cluster_id, port, address)
    _, each = state.datadist.link_clusters([state.peer], timeout=timeout)
    return [code.name for code in each]


def wait_linked(state: SimpleNamespace, cluster_id: int) -> None:
    state.datadist.wait_linked([cluster_id], timeout_s=10)


def push_blocks(
    state: SimpleNamespace,
    cluster_id: int,
    src: list[int],
    dst: list[int],
    model_id: int = 0,
    **arguments: Any,
) -> None:
    key = datadist.BlocksCacheKey(cluster_id, model_id)
    state.datadist.cache_manager.push_blocks(key, state.cache, src, dst, **arguments)


def pull_blocks(
    state: SimpleNamespace,
    cluster_id: int,
    src: list[int],
    dst: list[int],
    model_id: int = 0,
    **arguments: Any,
) -> None:
    key = datadist.BlocksCacheKey(cluster_id, model_id)
    state.datadist.cache_manager.pull_blocks(key, state.cache, src, dst, **arguments)
