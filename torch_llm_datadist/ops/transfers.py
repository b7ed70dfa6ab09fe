"""Ops that move blocks and batch entries to and from a peer, and the one that lets a peer pull."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..messages import refusal
from ._library import ops

_NO_BLOCKS = torch.empty(0, dtype=torch.int64)


def push_blocks(
    status: Tensor,
    cache: Sequence[Tensor],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    *,
    link: int,
    model_id: int = 0,
    src_layer: int = 0,
    dst_layer: int = 0,
    num_layers: int = -1,
    tensors_per_layer: int = 2,
    timeout_ms: int = 0,
    hold_stream: bool = True,
    transfer: int = 0,
) -> None:
    """Copies blocks of a local cache into blocks of a peer's, after what is queued on the current stream.

    In plain torch, were the peer's cache here: ``remote[t][dst_blocks] = cache[t][src_blocks]`` for each
    tensor ``t`` of the layers.

    Stream: the copies start when the current stream gets here. With ``hold_stream`` the stream goes on when
    the bytes have left, so later kernels may overwrite the source blocks; without it the source blocks
    belong to the transfer until ``transfer`` was waited for. The receiver is not told; use
    ``CacheManager.prepare_push`` for that.

    Args:
        status: int32[1] on the cache's device; written when ``hold_stream``.
        cache: all tensors of one registered blocks cache, in the order in which it was registered.
        src_blocks: int64[n] on the CPU, block ids in ``cache``; a pair of -1 is padding.
        dst_blocks: int64[n] on the CPU, block ids in the peer's cache; none twice.
        link: ``LLMDataDist.link_id(cluster_id)``.
        model_id: of the peer's ``BlocksCacheKey``.
        src_layer, dst_layer: first layer here and there.
        num_layers: -1 for all that follow.
        tensors_per_layer: tensors of a layer lie next to one another (K0, V0, K1, V1 …).
        timeout_ms: from when the stream got here to the last byte; 0 is the link's default.
        hold_stream: see above.
        transfer: handle of a host that waits; 0 for none.

    Raises:
        LLMException: with the code and what is still usable; nothing was queued.

    Source: seed 003, push_blocks.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> src, dst = torch.tensor([0, 1]), torch.tensor([4, 5])
    >>> llm_datadist.ops.push_blocks(status, source.tensors, src, dst, link=prefill.link_id(2))
    >>> int(status)  # waits for the stream
    0
    """
    ops.push_blocks.default(
        status, cache, src_blocks, dst_blocks, link, model_id, src_layer, dst_layer, num_layers,
        tensors_per_layer, timeout_ms, hold_stream, transfer,
    )  # fmt: skip


@torch.library.register_fake("torch_llm_datadist::push_blocks")
def _(*args: object) -> None:
    return None


def pull_blocks(
    status: Tensor,
    cache: Sequence[Tensor],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    *,
    link: int,
    model_id: int = 0,
    src_layer: int = 0,
    dst_layer: int = 0,
    num_layers: int = -1,
    tensors_per_layer: int = 2,
    timeout_ms: int = 0,
    hold_stream: bool = True,
    transfer: int = 0,
    ticket: int = 0,
) -> None:
    """Copies blocks of a peer's cache into blocks of a local one, after what is queued on the current stream.

    In plain torch, were the peer's cache here: ``cache[t][dst_blocks] = remote[t][src_blocks]`` for each
    tensor ``t`` of the layers.

    Stream: with ``hold_stream`` later kernels on the current stream see the blocks. With ``ticket`` a stream
    of the link waits for the peer's blocks, and the peer learns when they were pulled; without it, whether
    they are ready is the caller's to know, as in the original.

    Args: as ``push_blocks``, with ``src_blocks`` and ``src_layer`` at the peer, ``dst_blocks`` and
        ``dst_layer`` here, and
        ticket: of the peer's ``publish``; 0 for none. The call blocks only while a ticket that was just
            issued has not been confirmed by its holder's watchdog.

    Raises:
        LLMException: with the code and what is still usable; nothing was queued.

    Source: manual page pull_blocks.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> src, dst = torch.tensor([0, 1]), torch.tensor([4, 5])
    >>> llm_datadist.ops.pull_blocks(status, source.tensors, src, dst, link=prefill.link_id(2))
    >>> int(status)
    0
    """
    ops.pull_blocks.default(
        status, cache, src_blocks, dst_blocks, link, model_id, src_layer, dst_layer, num_layers,
        tensors_per_layer, timeout_ms, hold_stream, transfer, ticket,
    )  # fmt: skip


@torch.library.register_fake("torch_llm_datadist::pull_blocks")
def _(*args: object) -> None:
    return None


def push_cache(
    status: Tensor,
    cache: Sequence[Tensor],
    dst_blocks: Tensor | None = None,
    *,
    link: int,
    cache_id: int,
    src_batch: int = 0,
    dst_batch: int = 0,
    size: int = -1,
    src_layer: int = 0,
    dst_layer: int = 0,
    num_layers: int = -1,
    tensors_per_layer: int = 2,
    timeout_ms: int = 0,
    hold_stream: bool = True,
    transfer: int = 0,
) -> None:
    """Copies a batch entry of a local contiguous cache into an entry, or into blocks, of a peer's.

    In plain torch, were the peer's cache here, for each tensor ``t`` of the layers:
    ``remote[t][dst_batch] = cache[t][src_batch]``, or
    ``remote[t][dst_blocks[i]] = cache[t][src_batch].flatten()[i * block : (i + 1) * block]``.

    Stream: as ``push_blocks``.

    Args:
        status: int32[1] on the instance's device; written when ``hold_stream``.
        cache: all tensors of one registered contiguous cache, in the order in which it was registered.
        dst_blocks: int64[n] on the CPU, blocks of the peer's cache; none twice. None: into an entry.
        link: ``LLMDataDist.link_id(cluster_id)``.
        cache_id: of the peer's cache, which is contiguous, or with ``dst_blocks`` has blocks.
        src_batch, dst_batch: the entry here and there.
        size: bytes of each tensor, from the start of the entry; -1 is the whole local entry. Not with
            ``dst_blocks``.
        src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer: as
            ``push_blocks``.

    Raises:
        LLMException: with the code and what is still usable; nothing was queued.

    Source: seed 004, push_cache.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> llm_datadist.ops.push_cache(
    ...     status, ours.tensors, link=prefill.link_id(2), cache_id=theirs.cache_id, src_batch=1, dst_batch=2
    ... )
    >>> int(status)
    0
    """
    ops.push_cache.default(
        status, cache, _NO_BLOCKS if dst_blocks is None else dst_blocks, link, cache_id, src_batch, dst_batch,
        size, src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer,
    )  # fmt: skip


@torch.library.register_fake("torch_llm_datadist::push_cache")
def _(*args: object) -> None:
    return None


def pull_cache(
    status: Tensor,
    cache: Sequence[Tensor],
    dst_blocks: Tensor | None = None,
    *,
    link: int,
    cache_id: int,
    src_batch: int = 0,
    dst_batch: int = 0,
    size: int = -1,
    src_layer: int = 0,
    dst_layer: int = 0,
    num_layers: int = -1,
    tensors_per_layer: int = 2,
    timeout_ms: int = 0,
    hold_stream: bool = True,
    transfer: int = 0,
    ticket: int = 0,
) -> None:
    """Copies a batch entry of a peer's contiguous cache into an entry, or into blocks, of a local one.

    In plain torch, were the peer's cache here, for each tensor ``t`` of the layers:
    ``cache[t][dst_batch] = remote[t][src_batch]``, or
    ``cache[t][dst_blocks[i]] = remote[t][src_batch].flatten()[i * block : (i + 1) * block]``.

    Stream: as ``pull_blocks``.

    Args: as ``push_cache``, with ``src_batch`` and ``src_layer`` at the peer; ``cache`` has blocks where
        ``dst_blocks`` is given, and is contiguous otherwise.

    Raises:
        LLMException: with the code and what is still usable; nothing was queued.

    Source: manual page pull_cache.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> llm_datadist.ops.pull_cache(
    ...     status, ours.tensors, link=prefill.link_id(2), cache_id=theirs.cache_id, src_batch=1, dst_batch=2
    ... )
    >>> int(status)
    0
    """
    ops.pull_cache.default(
        status, cache, _NO_BLOCKS if dst_blocks is None else dst_blocks, link, cache_id, src_batch, dst_batch,
        size, src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer, ticket,
    )  # fmt: skip


@torch.library.register_fake("torch_llm_datadist::pull_cache")
def _(*args: object) -> None:
    return None


def publish(
    after: Tensor, *, cache_id: int, link: int, first_tensor: int, num_tensors: int, timeout_ms: int
) -> int:
    """Lets the peer of a link pull these tensors, once the current stream has got here.

    ``CacheManager.publish`` calls it and gives the handle its life. Outside graphs only.

    >>> task = llm_datadist.ops.publish(
    ...     source.tensors[0], cache_id=source.cache_id, link=prefill.link_id(2), first_tensor=0,
    ...     num_tensors=-1, timeout_ms=1000,
    ... )

    Args:
        after: any tensor that the last kernel produced which writes them.
        cache_id: of the local cache.
        link: ``LLMDataDist.link_id(cluster_id)``.
        first_tensor, num_tensors: of the cache; -1 for all that follow.
        timeout_ms: from now until the peer has pulled.

    Returns:
        The number of a task; ``_C.task_ticket`` has its ticket.

    Raises:
        LLMException: with the code and what is still usable; nothing was queued.
    """
    task: int = ops.publish.default(after, cache_id, link, first_tensor, num_tensors, timeout_ms)
    return task


@torch.library.register_fake("torch_llm_datadist::publish")
def _(*args: object) -> int:
    raise refusal("ticket_in_a_graph", value="the ticket of a request")
