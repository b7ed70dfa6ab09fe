"""The library's own device memory never shares a block with what kernels of the caller have yet to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tests import instances
from torch_llm_datadist import emulator

SIZES = (8, 4096, 64 << 10, 1 << 20, 5 << 20)
LATE_S = 0.5


def copy_and_free_then_start(state: SimpleNamespace) -> list[int]:
    """Sources of queued copies are freed, as the allocator allows; then the library takes memory and fills
    it. Returns how many bytes of each copy are wrong."""
    torch.npu.set_device(0)
    targets = [torch.zeros(size, dtype=torch.uint8, device="npu") for size in SIZES]
    sources = [torch.full((size,), 7, dtype=torch.uint8, device="npu") for size in SIZES]
    torch.npu.synchronize()
    emulator.delay_stream(LATE_S)
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
    del sources, source

    instances.start(state, 1, 0)

    torch.npu.synchronize()
    return [int(target.ne(7).sum()) for target in targets]


def test_memory_that_a_queued_kernel_still_reads_is_not_taken_for_words_and_pages(peers: Any) -> None:
    (process,) = peers(1)

    assert process.call(copy_and_free_then_start) == [0] * len(SIZES)
