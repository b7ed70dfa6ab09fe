"""Ops of a forward: layers leave, layers are waited for, all has left. A ``Binding`` says whose they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import ops


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
    ops.push_layer.default(status, after, layer, binding)


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
    ops.wait_layer.default(status, before, layer, binding)


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
    ops.finish.default(status, before, binding)


@torch.library.register_fake("torch_llm_datadist::finish")
def _(*args: object) -> None:
    return None
