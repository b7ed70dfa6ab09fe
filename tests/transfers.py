"""A sender and two receivers in one process, for tests of ``transfer_cache_async``."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from torch_llm_datadist import (
    BlocksCacheKey,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferWithCacheKeyConfig,
    emulator,
)
from torch_llm_datadist.emulator import faults, libraries

LAYERS, BLOCKS, BLOCK_BYTES = 4, 6, 256
OK = LLMStatusCode.LLM_SUCCESS
WITHIN_S = 20.0


def start(cluster_id: int, device: int, **options: Any) -> SimpleNamespace:
    """A listening instance with a cache of ``pattern(cluster_id)``, by default in remote-accessible mode."""
    state = SimpleNamespace()
    state.port = instances.start(state, cluster_id, device, options)
    state.manager = state.datadist.cache_manager
    instances.register(state, cluster_id, 2 * LAYERS, BLOCKS, BLOCK_BYTES)
    return state


def pattern(cluster_id: int) -> torch.Tensor:
    return instances.pattern(cluster_id, 2 * LAYERS, BLOCKS, BLOCK_BYTES)


class HeldMove:
    """What moves out of that memory or into it stands still there, whatever engine moves it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = faults.hold_copy(after=0, address=tensor.data_ptr())
        self._hixl = ctypes.CDLL(str(libraries.hixl_path()))
        self._hixl.emuHixlHoldAt(ctypes.c_uint64(tensor.data_ptr()), ctypes.c_uint64(1))

    def wait(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self._hixl.emuHixlHeld() == 0:
            with contextlib.suppress(TimeoutError):
                return self._copy.wait(0.01)
            assert time.monotonic() < deadline

    def disarm(self) -> None:
        self._copy.disarm()
        self._hixl.emuHixlHoldAt(ctypes.c_uint64(0), ctypes.c_uint64(0))


MOVE_FAILED = ("507057", "503900")


def fail_move(tensor: torch.Tensor) -> None:
    """The next push or pull of the start of that memory fails on its way, whatever engine moves it; of HIXL,
    which knows no addresses, the next one at all."""
    emulator.fail_task(1, 507057, address=tensor.data_ptr())
    hixl = ctypes.CDLL(str(libraries.hixl_path()))
    assert hixl.emuHixlFailNext(b"TransferAsync", 1, 503900) == 0


def restore(state: SimpleNamespace) -> torch.Tensor:
    """Puts the cache's first bytes back; returns them."""
    content = pattern(state.cluster_id)
    for raw, bytes_ in zip(state.raw, content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return content


def link(one: SimpleNamespace, two: SimpleNamespace) -> None:
    assert instances.link(one, two.cluster_id, two.port) == ["LLM_SUCCESS"]


def until(holds: Callable[[], bool]) -> None:
    """Waits for what a watchdog does."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def until_announced(ticket: int) -> None:
    """A bind's own limit then counts for the transfer alone, not for its sender's watchdog."""
    until(lambda: datadist.ticket_state(ticket).detail != "not confirmed by its sender yet")


def error_of(call: Callable[[], object]) -> LLMException:
    with pytest.raises(LLMException) as raised:
        call()
    return raised.value


def hold_cut_off() -> faults.Armed:
    """What streams that are cut off had queued stays in doubt until this is disarmed.

    All of them: a holder that gives up cuts off its own stream, too, when it has not seen yet that this is
    through, and may do so ahead of the reader.
    """
    return faults.delay_call("aclrtStreamAbort", WITHIN_S, times=0)


class Always(LayerSynchronizer):
    """Every layer is ready; remembers what it was asked, and where."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.threads: set[threading.Thread] = set()

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.asked.append((layer_index, timeout_in_millis))
        self.threads.add(threading.current_thread())
        return True


class Calling(LayerSynchronizer):
    """Does for each layer what a function does."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return self.function(layer_index)  # type: ignore[no-any-return]


class Gates(LayerSynchronizer):
    """A layer is ready when a test says so."""

    def __init__(self) -> None:
        self.reached = [threading.Event() for _ in range(LAYERS)]
        self.open = [threading.Event() for _ in range(LAYERS)]

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.reached[layer_index].set()
        return self.open[layer_index].wait(30)


def to(
    cluster_id: int, src: range = range(LAYERS), dst: range | None = None, model_id: int = 0
) -> TransferWithCacheKeyConfig:
    return TransferWithCacheKeyConfig(BlocksCacheKey(cluster_id, model_id), src, src if dst is None else dst)


def moved(
    before: torch.Tensor,
    sent: torch.Tensor,
    src: range,
    dst: range,
    src_blocks: list[int],
    dst_blocks: list[int],
) -> torch.Tensor:
    """What a destination holds afterwards, in plain torch."""
    after = before.clone()
    for source, destination in zip(src, dst, strict=True):
        for tensor in range(2):
            after[2 * destination + tensor][dst_blocks] = sent[2 * source + tensor][src_blocks]
    return after
