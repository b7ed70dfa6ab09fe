"""A stream that stands still until a test lets it go on: how long that takes is nobody's luck, as with a slow
kernel, which a busy machine may be later than."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from torch_llm_datadist.emulator import faults

HANGS_AFTER_S = 30.0


@contextlib.contextmanager
def standing_still(stream: torch.npu.Stream | None = None) -> Iterator[None]:
    """What is queued on a stream, by default the current one, runs after the block and no earlier.

    Who waits for it inside goes on after ``HANGS_AFTER_S``, and finds it done.
    """
    frozen = torch.npu.current_stream() if stream is None else stream
    faults.freeze_stream(frozen)
    hangs = threading.Timer(HANGS_AFTER_S, faults.thaw_stream, [frozen])
    hangs.daemon = True
    hangs.start()
    try:
        yield
    finally:
        hangs.cancel()
        faults.thaw_stream(frozen)
