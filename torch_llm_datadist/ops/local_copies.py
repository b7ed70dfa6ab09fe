"""Ops that copy within the caches of this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import ops


def copy_cache(
    status: Tensor,
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    *,
    dst_batch: int = 0,
    src_batch: int = 0,
    offset: int = 0,
    size: int = -1,
) -> None:
    """Copies a part of a batch entry to the same part of another one, on the current stream.

    In plain torch, on tensors of bytes: ``dst[t][dst_batch][offset:offset + size] =
    src[t][src_batch][offset:offset + size]`` for each tensor ``t``.

    Stream: behind what is queued there, and before what is queued next.

    Args:
        status: int32[1] on the NPU whose current stream is meant; written when the runtime refuses.
        dst, src: as many contiguous tensors, on that NPU or the CPU; dimension 0 is the batch.
        dst_batch, src_batch: the entries.
        offset: bytes into both entries.
        size: bytes of each tensor; -1 is the rest of the source's entry.

    Raises:
        LLMException: a value that does not fit the tensors; nothing was queued.

    Source: manual page copy_cache.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> tensor = torch.tensor([[1, 2], [3, 4]], device="npu:0")
    >>> llm_datadist.ops.copy_cache(status, [tensor], [tensor], dst_batch=1, src_batch=0)
    >>> tensor.tolist()
    [[1, 2], [1, 2]]
    """
    ops.copy_cache.default(status, dst, src, dst_batch, src_batch, offset, size)


@torch.library.register_fake("torch_llm_datadist::copy_cache")
def _(*args: object) -> None:
    return None


def copy_blocks(status: Tensor, cache: Sequence[Tensor], src_blocks: Tensor, dst_blocks: Tensor) -> None:
    """Copies blocks within a cache, on the current stream.

    In plain torch: ``cache[t][dst_blocks] = cache[t][src_blocks]`` for each tensor ``t``.

    Stream: behind what is queued there, and before what is queued next.

    Args:
        status: as ``copy_cache``.
        cache: contiguous tensors, on that NPU or the CPU; dimension 0 counts the blocks.
        src_blocks: int64[n] on the CPU; a block may be listed often.
        dst_blocks: int64[n] on the CPU; none twice, and none that another copy reads.

    Raises:
        LLMException: a value that does not fit the tensors; nothing was queued.

    Source: manual page copy_blocks.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> tensor = torch.tensor([[1, 2], [3, 4], [5, 6]], device="npu:0")
    >>> llm_datadist.ops.copy_blocks(status, [tensor], torch.tensor([0, 0]), torch.tensor([1, 2]))
    >>> tensor.tolist()
    [[1, 2], [1, 2], [1, 2]]
    """
    ops.copy_blocks.default(status, cache, src_blocks, dst_blocks)


@torch.library.register_fake("torch_llm_datadist::copy_blocks")
def _(*args: object) -> None:
    return None


def swap_blocks(
    status: Tensor,
    src_cache: Sequence[Tensor],
    dst_cache: Sequence[Tensor],
    src_blocks: Tensor,
    dst_blocks: Tensor,
) -> None:
    """Copies blocks from one cache to another, on the current stream: between the host and the device, say.

    In plain torch: ``dst_cache[t][dst_blocks] = src_cache[t][src_blocks]`` for each tensor ``t``.

    Stream: behind what is queued there, and before what is queued next. Host memory that is not page-locked
    makes the runtime wait for the stream first.

    Args:
        status: as ``copy_cache``.
        src_cache, dst_cache: as many contiguous tensors, on that NPU or the CPU, with blocks of the same
            size.
        src_blocks, dst_blocks: int64[n] on the CPU; no destination twice.

    Raises:
        LLMException: a value that does not fit the tensors; nothing was queued.

    Source: manual page swap_blocks.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> on_device = torch.tensor([[1, 2], [3, 4]], device="npu:0")
    >>> on_host = torch.zeros(2, 2, dtype=torch.int64)
    >>> llm_datadist.ops.swap_blocks(status, [on_device], [on_host], torch.tensor([1]), torch.tensor([0]))
    >>> torch.npu.synchronize()
    >>> on_host.tolist()
    [[3, 4], [0, 0]]
    """
    ops.swap_blocks.default(status, src_cache, dst_cache, src_blocks, dst_blocks)


@torch.library.register_fake("torch_llm_datadist::swap_blocks")
def _(*args: object) -> None:
    return None
