"""Ops that write and read a cache which the graph never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import ops


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
    ops.store_layer.default(status, keys, values, slots, layer, cache)


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
    found: tuple[Tensor, Tensor] = ops.read_layer.default(
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
