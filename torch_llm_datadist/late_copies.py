"""Local copies whose call gave up before they were done: what they read and write stays alive until their
stream is through.

A copy is queued by raw addresses, its status too, and neither has an owner once the call has raised. The list
is the process's, since a stream outlives the instance that queued on it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cache import Cache

if TYPE_CHECKING:
    import torch
    import torch_npu

_late: list[_LateCopy] = []
_lock = threading.Lock()


@dataclass(eq=False)
class _LateCopy:
    """
    Attributes:
        end: recorded behind the copy; None where the stream did not take it: when it is through nobody knows.
        tensors: of the caches, and the status. A cache that is deallocated meanwhile lets go of its own.
    """

    device: int
    end: torch_npu.npu.Event | None
    caches: Sequence[Cache]
    tensors: Sequence[torch.Tensor]

    def is_through(self) -> bool:
        if self.end is None:
            return False
        import torch_npu

        try:
            with torch_npu.npu.device(self.device):  # whatever thread asks
                return bool(self.end.query())
        except RuntimeError:  # the device is lost, and may still write
            return False


def hold(device: int, caches: Sequence[Cache], status: torch.Tensor) -> None:
    """Until the current stream of the device has passed what is queued there now."""
    import torch_npu

    tensors = [status, *(tensor for cache in caches for tensor in cache.tensors)]
    late = _LateCopy(device, None, caches, tensors)
    with _lock:
        _late.append(late)  # first, whatever becomes of the event
    try:
        end = torch_npu.npu.Event()
        end.record(torch_npu.npu.current_stream(device))
    except RuntimeError:
        return
    late.end = end


def touch(cache: Cache) -> bool:
    """Whether one may still write that cache, or read it."""
    let_go()
    with _lock:
        return any(cache is each for late in _late for each in late.caches)


def let_go() -> None:
    """Drops those that are through."""
    if _late:
        with _lock:
            through = [late for late in _late if late.is_through()]
            _late[:] = [late for late in _late if late not in through]
