"""Misbehaviour on demand, in this process: slow tasks, slow copies, calls and tasks that fail."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from torch_llm_datadist.emulator import libraries, switch

if TYPE_CHECKING:
    from torch_npu.npu import Stream

# The numbers of emu.h.
_DIRECTIONS = {"h2d": 0, "d2h": 1, "d2d": 2, "peer": 3}
_NO_SUCH = 100000


def _runtime() -> ctypes.CDLL:
    if not switch.is_enabled():
        raise RuntimeError("emulation is off in this process, and a real NPU takes no orders to fail")
    return libraries.runtime()


def set_task_delay(seconds: float) -> None:
    """Makes each task from now on take this much longer; 0 ends it."""
    _runtime().emuSetTaskDelay(ctypes.c_uint64(round(seconds * 1e6)))


def set_bandwidth(direction: str, bytes_per_s: float) -> None:
    """Makes "h2d", "d2h", "d2d" or "peer" copies take at least size / bandwidth from now on; 0 lifts it."""
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction = {direction!r}, expected one of {', '.join(_DIRECTIONS)}")
    _runtime().emuSetBandwidth(_DIRECTIONS[direction], ctypes.c_uint64(round(bytes_per_s)))


def calls(function: str) -> int:
    """How often an ACL function was called in this process."""
    _runtime().emuCalls.restype = ctypes.c_int64
    count: int = _runtime().emuCalls(function.encode())
    if count < 0:
        raise ValueError(f"function = {function!r}: the emulated runtime has no such entry point")
    return count


def fail_next(function: str, nth: int, code: int) -> None:
    """Makes the nth following call (1: the next) of an ACL function only return ``code``; nth 0 disarms."""
    if _runtime().emuFailNext(function.encode(), nth, code) == _NO_SUCH:
        raise ValueError(f"function = {function!r}: the emulated runtime has no such entry point")


def fail_task(nth: int, code: int, stream: Stream | None = None, direction: str | None = None) -> None:
    """Makes the nth following copy task (1: the next) fail with ``code`` and copy nothing; nth 0 disarms.

    On any stream, or on the given one; or of one direction, as in ``set_bandwidth``. One such fault is armed
    at a time.
    """
    if direction is not None:
        if direction not in _DIRECTIONS or stream is not None:
            raise ValueError(
                f"direction = {direction!r}: one of {', '.join(_DIRECTIONS)} was expected, and no stream"
            )
        _runtime().emuFailCopy(_DIRECTIONS[direction], nth, code)
        return
    handle = None if stream is None else ctypes.c_void_p(stream.npu_stream)
    _runtime().emuFailTask(handle, nth, code)
