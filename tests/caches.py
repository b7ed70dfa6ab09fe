"""Caches of any kind and placement with known bytes, for peers and for instances of the same process.

``tests.instances`` starts and links the instances. What is kept in ``state``: ``caches[name]`` and, as bytes
to look at, ``raw[name]``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as datadist
from tests.instances import TORCH_DTYPES, pattern
from torch_llm_datadist import CacheDesc, DataType, Placement

MODES = {
    "RA": {"enable_remote_cache_accessible": True},
    "non-RA": {"enable_remote_cache_accessible": False},
}


def bytes_of(seed: int, sizes: list[int]) -> list[torch.Tensor]:
    """Random bytes for tensors of these sizes; the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in sizes]


def describe(
    num_tensors: int,
    entries: int,
    entry_bytes: int | list[int],
    placement: Placement = Placement.DEVICE,
    data_type: DataType = DataType.DT_UINT8,
) -> CacheDesc:
    """Equal tensors, or with a list of sizes tensors that repeat per layer."""
    item = TORCH_DTYPES[data_type].itemsize
    if isinstance(entry_bytes, int):
        return CacheDesc(num_tensors, [entries, entry_bytes // item], data_type, placement)
    layers = num_tensors // len(entry_bytes)
    return CacheDesc.of_layers(
        layers, [((entries, size // item), data_type) for size in entry_bytes], placement
    )


def add(
    state: SimpleNamespace,
    name: str,
    seed: int,
    desc: CacheDesc,
    *,
    is_blocks: bool = False,
    key: Any = None,
    keys: Any = (),
    allocate: bool = False,
    remote_accessible: bool | None = None,
) -> int:
    """Registers or allocates a cache whose bytes are ``bytes_of(seed, …)``; returns its cache_id."""
    manager = state.datadist.cache_manager
    content = bytes_of(seed, desc.tensor_sizes)
    on_host = desc.placement == Placement.HOST
    if allocate:
        cache = manager.allocate_blocks_cache(desc, key) if is_blocks else manager.allocate_cache(desc, keys)
        raw = [tensor.view(-1).view(torch.uint8) for tensor in cache.tensors]
        for tensor, bytes_ in zip(raw, content, strict=True):
            tensor.copy_(bytes_)
    else:
        raw = [bytes_.clone() if on_host else bytes_.to(f"npu:{state.device}") for bytes_ in content]
        tensors = [
            tensor.view(TORCH_DTYPES[data_type]).view(shape)
            for tensor, (shape, data_type) in zip(raw, desc.tensors, strict=True)
        ]
        if is_blocks:
            cache = manager.register_blocks_cache(desc, tensors, key, remote_accessible)
        else:
            cache = manager.register_cache(desc, tensors, keys, remote_accessible)
    for field in ("caches", "raw"):
        if not hasattr(state, field):
            setattr(state, field, {})
    state.caches[name], state.raw[name] = cache, raw
    torch.npu.synchronize(state.device)
    return cache.cache_id


def start_mode(state: SimpleNamespace, cluster_id: int, device: int, **options: Any) -> int:
    from tests import instances

    return instances.start(state, cluster_id, device, options)


def look(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    """The bytes that the cache holds now, on the CPU."""
    torch.npu.synchronize(state.device)
    return [tensor.cpu().clone() for tensor in state.raw[name]]


def rows(tensors: list[torch.Tensor], entries: int) -> list[torch.Tensor]:
    """As [entries, bytes], views."""
    return [tensor.view(entries, -1) for tensor in tensors]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a, b.view(-1)) for a, b in zip(found, expected, strict=True)
    )


__all__ = [
    "MODES",
    "add",
    "bytes_of",
    "datadist",
    "describe",
    "equal",
    "look",
    "pattern",
    "rows",
    "start_mode",
]
