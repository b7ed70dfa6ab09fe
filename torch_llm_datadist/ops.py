"""The transfer ops, as functions. ``torch.ops.torch_llm_datadist.*`` are the same ops for graphs.

Every op orders itself on the caller's current torch_npu stream and returns at once; the bytes move on streams
of the link. ``status`` is an int32[1] NPU tensor that the caller makes once, outside any graph: 0 while all
is well, else an ``LLMStatusCode`` (``LLM_FAILED`` reads as -1). What can be checked is checked before
anything is queued and raises.

Models that compute on the CPU, with their caches in host memory, call the same ops with CPU tensors for
``status`` and for what orders a layer op. There is no stream then: what the calling thread computed is done,
and where a stream would wait the op blocks that thread, without the GIL and until the transfer's deadline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_llm_datadist import _native
from torch_llm_datadist.errors import FeatureNotEnabledError

_native.load()
_ops = torch.ops.torch_llm_datadist
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
    _ops.push_blocks.default(
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
    _ops.pull_blocks.default(
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
    _ops.push_cache.default(
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
    _ops.pull_cache.default(
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
    task: int = _ops.publish.default(after, cache_id, link, first_tensor, num_tensors, timeout_ms)
    return task


@torch.library.register_fake("torch_llm_datadist::publish")
def _(*args: object) -> int:
    raise FeatureNotEnabledError(
        "publish: the ticket of a request cannot be a part of a graph; call it outside, after the graph"
    )


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
    _ops.copy_cache.default(status, dst, src, dst_batch, src_batch, offset, size)


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
    _ops.copy_blocks.default(status, cache, src_blocks, dst_blocks)


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
    _ops.swap_blocks.default(status, src_cache, dst_cache, src_blocks, dst_blocks)


@torch.library.register_fake("torch_llm_datadist::swap_blocks")
def _(*args: object) -> None:
    return None


def push_layer(status: Tensor, after: Tensor, layer: int, binding: int) -> None:
    """Lets the bound tasks send one layer, once the current stream has got here.

    Does not wait: until ``finish`` the layer's source blocks belong to the tasks. Nothing is sent when no
    bound task carries the layer.

    Args:
        status: int32[1] on the caches' device, one per binding; 0 = all is well so far.
        after: any tensor that the layer's last kernel produced; read, so no compiler moves the push ahead of
            it. In a compiled graph whose own kernels write the cache: the cache tensor.
        layer: layer index in the local cache, from 0.
        binding: id of the ``Binding`` that says which transfers this forward serves; constant in a graph.

    Call it once per layer and forward, after the layer's last write.

    Raises:
        LLMException: the binding was never bound, is not for that layer, or the layer was pushed before.

    >>> binding = llm_datadist.Binding(device=0, layers=range(LAYERS))
    >>> binding.bind(())  # a forward without a transfer: see Binding for one with
    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> llm_datadist.ops.push_layer(status, source.tensors[1], 0, binding.id)
    """
    _ops.push_layer.default(status, after, layer, binding)


@torch.library.register_fake("torch_llm_datadist::push_layer")
def _(*args: object) -> None:
    return None


def wait_layer(status: Tensor, before: Tensor, layer: int, binding: int) -> None:
    """Holds the current stream until one layer of the bound tickets has arrived.

    Kernels that use ``before`` after this op, on this stream, may read that layer's blocks. On a dead peer or
    a passed deadline the stream goes on and ``status`` holds the code; the host is not blocked. So read
    ``status`` before the result is used. After a failure the blocks hold whatever was there, and the sender
    may still write them until ``ticket_state(ticket).has_ended``.

    Args:
        status: int32[1] on the caches' device, one per binding; 0 = all is well so far.
        before: any tensor that the next kernel reads (its query, say); marked as written, so no compiler
            moves that kernel ahead of the wait.
        layer: layer index in the local cache, from 0.
        binding: id of the ``Binding`` that says which transfers this forward waits for; constant in a graph.

    Raises:
        LLMException: the binding was never bound, or is not for that layer.

    >>> binding = llm_datadist.Binding(device=0, layers=range(LAYERS))
    >>> binding.bind(())  # a forward without a transfer: see Binding for one with
    >>> status, query = torch.zeros(1, dtype=torch.int32, device="npu:0"), torch.zeros(4, device="npu:0")
    >>> llm_datadist.ops.wait_layer(status, query, 0, binding.id)
    """
    _ops.wait_layer.default(status, before, layer, binding)


@torch.library.register_fake("torch_llm_datadist::wait_layer")
def _(*args: object) -> None:
    return None


def finish(status: Tensor, before: Tensor, binding: int) -> None:
    """Holds the current stream until all bound tasks have sent their last byte, or failed.

    Behind it the source blocks are the caller's again: later kernels on this stream may overwrite them.

    Args:
        status: int32[1] on the caches' device, one per binding.
        before: any tensor that the next kernel reads or writes; marked as written.
        binding: id of the ``Binding``.

    Raises:
        LLMException: the binding was never bound.

    >>> binding = llm_datadist.Binding(device=0, layers=range(LAYERS))
    >>> binding.bind(())  # a forward without a transfer: see Binding for one with
    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> llm_datadist.ops.finish(status, source.tensors[1], binding.id)
    >>> int(status)
    0
    """
    _ops.finish.default(status, before, binding)


@torch.library.register_fake("torch_llm_datadist::finish")
def _(*args: object) -> None:
    return None


def store_layer(
    status: Tensor, keys: Tensor, values: Tensor | None, slots: Tensor, *, layer: int, cache: int
) -> None:
    """Stores new tokens of one layer in the blocks of a registered cache that the graph never sees.

    In plain torch: ``cache[layer].flatten(0, 1)[slots] = keys``, and so for the values.

    Stream: a kernel like any other, on the current stream. In a compiled graph it stays behind what made
    ``keys``, and in its order with the layer ops and ``read_layer`` that are given the same ``status``.

    Args:
        status: int32[1] beside the cache, the one of the layer ops; marked as written, so that no compiler
            drops the store or moves it across them.
        keys: [tokens, *row] of the cache's dtype, for a cache of [num_blocks, block_size, *row].
        values: as ``keys``; None where a layer of the cache has one tensor (MLA).
        slots: int64[tokens] beside the cache, ``block * block_size + offset``; none twice. There is no
            padding: let a padded token write to a block that nobody reads.
        layer: layer index in the cache, from 0.
        cache: ``Cache.handle``, constant in a graph.

    Raises:
        LLMException: the cache was unregistered, or the tensors do not fit it; nothing was stored.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> keys = torch.ones(3, 2, 8, dtype=torch.float16, device="npu:0")  # of three tokens
    >>> slots = torch.tensor([14, 15, 80], device="npu:0")  # the end of block 0, the start of block 5
    >>> llm_datadist.ops.store_layer(status, keys, keys, slots, layer=1, cache=source.handle)
    >>> source.tensors[2][5, 0].sum().item()
    16.0
    """
    _ops.store_layer.default(status, keys, values, slots, layer, cache)


@torch.library.register_fake("torch_llm_datadist::store_layer")
def _(*args: object) -> None:
    return None


def read_layer(
    status: Tensor,
    keys: Tensor,
    values: Tensor | None,
    block_table: Tensor,
    *,
    block_size: int,
    layer: int,
    cache: int,
) -> tuple[Tensor, Tensor]:
    """Gathers one layer of sequences from the blocks of a registered cache that the graph never sees.

    In plain torch: ``cache[layer][block_table].flatten(-row_dims - 2, -row_dims - 1)`` for keys and values.

    Stream: as ``store_layer``; what it returns is fresh memory.

    Args:
        status: as ``store_layer``.
        keys, values: new tokens as ``store_layer`` takes them; only the dtype and the shape of a row are
            looked at, since the result must not depend on what the graph does not see. ``values`` is None
            where a layer of the cache has one tensor (MLA).
        block_table: int64[blocks] or [batch, blocks] beside the cache. Padding (-1) reads block 0: mask it,
            and keep that block finite.
        block_size: tokens of a block.
        layer, cache: as ``store_layer``.

    Returns:
        Keys and values, [blocks * block_size, *row] or [batch, blocks * block_size, *row]; an empty tensor in
        place of absent values.

    Raises:
        LLMException: the cache was unregistered, or the arguments do not fit it.

    >>> status = torch.zeros(1, dtype=torch.int32, device="npu:0")
    >>> new = torch.ones(1, 2, 8, dtype=torch.float16, device="npu:0")
    >>> table = torch.tensor([[5, 0, -1]], device="npu:0")  # a sequence of two blocks, padded to three
    >>> keys, values = llm_datadist.ops.read_layer(
    ...     status, new, new, table, block_size=16, layer=1, cache=source.handle
    ... )
    >>> tuple(keys.shape)
    (1, 48, 2, 8)
    """
    found: tuple[Tensor, Tensor] = _ops.read_layer.default(
        status, keys, values, block_table, block_size, layer, cache
    )
    return found


@torch.library.register_fake("torch_llm_datadist::read_layer")
def _(
    status: Tensor,
    keys: Tensor,
    values: Tensor | None,
    block_table: Tensor,
    block_size: int,
    layer: int,
    cache: int,
) -> tuple[Tensor, Tensor]:
    def gathered(rows: Tensor) -> Tensor:
        *batch, blocks = block_table.shape
        return rows.new_empty((*batch, blocks * block_size, *rows.shape[1:]))

    return gathered(keys), keys.new_empty(0) if values is None else gathered(values)
