"""Simulated time: what a run would take on the emulated product, without waiting for it.

``TORCH_LLM_DATADIST_EMULATE_TIME=simulated`` switches it on, ``TORCH_LLM_DATADIST_EMULATE_PROFILE`` picks the
product. Tasks then run as fast as they can and carry modelled durations on clocks of their own; events tell
simulated times, too.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_llm_datadist.emulator import libraries, switch

if TYPE_CHECKING:
    from torch_npu.npu import Stream


@dataclass(frozen=True)
class Cost:
    """One number of the cost table: its name ends with its unit."""

    name: str
    value: float
    source: str


def _runtime() -> ctypes.CDLL:
    if not switch.is_enabled():
        raise RuntimeError("emulation is off in this process: only an emulated NPU has simulated time")
    return libraries.runtime()


def _check(code: int) -> None:
    if code != 0:
        raise RuntimeError(
            f"there is no simulated time to tell (error {code}): start the process with "
            "TORCH_LLM_DATADIST_EMULATE_TIME=simulated"
        )


def now(stream: Stream | None = None) -> float:
    """The simulated time in seconds since the start or the last ``reset``.

    Of the calling thread: it goes on with each submit, and with each wait to the end of what was waited for.
    Or of a stream: when the last task that it ran has ended.
    """
    handle = None if stream is None else ctypes.c_void_p(stream.npu_stream)
    ns = ctypes.c_uint64()
    _check(_runtime().emuClockNow(handle, ctypes.byref(ns)))
    return ns.value / 1e9


def reset() -> None:
    """Makes this moment 0 on all clocks of the process; call it while nothing runs."""
    _check(_runtime().emuClockReset())


def profile() -> dict[str, Cost]:
    """The numbers that the model of the emulated product is made of, each with its source."""
    costs = {}
    name, value, source = ctypes.c_char_p(), ctypes.c_double(), ctypes.c_char_p()
    for index in range(64):
        found = _runtime().emuCost(index, ctypes.byref(name), ctypes.byref(value), ctypes.byref(source))
        if found != 0:
            break
        text = (name.value or b"").decode()
        costs[text] = Cost(text, value.value, (source.value or b"").decode())
    return costs
