"""Slow kernels on demand."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_npu.npu import Stream


def delay_stream(seconds: float, stream: Stream | None = None) -> None:
    """Queues a task that takes ``seconds`` on a stream, in order with the ops around it; returns at once.

    Args:
        seconds: how long the task keeps the stream busy.
        stream: a ``torch.npu.Stream``; the current one by default.
    """
    import torch
    from torch_npu import npu

    npu.init()  # a queue is there once the device is
    on_stream = contextlib.nullcontext() if stream is None else npu.stream(stream)
    with on_stream:
        torch.ops.torch_llm_datadist_emulator.delay_stream(round(seconds * 1e6))
