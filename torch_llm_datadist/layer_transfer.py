"""What runs behind ``transfer_cache_async``: for each config a layered push, released on a worker thread.

The worker asks the synchronizer for a layer and opens that layer's gate of every push that carries it; the
bytes go on streams of the links, so a slow destination holds up neither the next layer nor the others.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, TypeAlias

import torch
import torch_npu

from . import ops
from .binding import Binding, Task, unsettled
from .blocks_in_doubt import BlocksInDoubt
from .cache_task import CacheTask
from .errors import LinkBusyError, LLMException, LLMStatusCode, status_code_of
from .transfer import LayerSynchronizer
from .worker_pool import WorkerPool

logger = logging.getLogger("torch_llm_datadist")

_NO_LIMIT_S = 10.0**6  # until the last layer was released: how long the model takes is not ours to say


class Piece(NamedTuple):
    """A push that is released whole. ``layer`` is what its only layer is called in it."""

    layer: int
    task: Task


# Takes the pushes of one layer, for a destination whose layers do not lie one after the other.
Pieces: TypeAlias = Callable[[int], list[Piece]]


@dataclass(frozen=True)
class LayerSend:
    """One config, checked.

    Attributes:
        name: for messages: "transfer_configs[0] (cluster 2)".
        layers: layers of the source.
        prepare: takes the push of all layers at the link, or says how to take those of one; raises
            ``LLMException`` when there is none to take.
    """

    name: str
    layers: range
    prepare: Callable[[], Task | Pieces]


class _Send:
    """One config under way. ``fail``, ``poll`` and ``detail`` are for any thread, the rest for the worker."""

    def __init__(self, native: ModuleType, device: int, wanted: LayerSend, timeout_s: float) -> None:
        self._native = native
        self._device = device
        self._timeout_s = timeout_s
        self.name = wanted.name
        self.layers = wanted.layers
        self._prepare: Callable[[], Task | Pieces] | None = wanted.prepare
        self._pieces: Pieces | None = None
        self._lock = threading.Lock()
        self._working = threading.Lock()  # held while the worker takes or releases something
        self._failure: tuple[LLMStatusCode, str] | None = None
        self._tasks: list[Task] = []
        self._is_complete = False  # no more tasks come
        self._bindings: list[Binding] = []
        self._allowed_until = 0.0

    def poll(self) -> LLMStatusCode | None:
        code, _ = self._look()
        return code

    def detail(self) -> str:
        _, detail = self._look()
        return detail

    def _look(self) -> tuple[LLMStatusCode | None, str]:
        with self._lock:
            if self._failure is not None:
                return self._failure
            tasks, is_complete = list(self._tasks), self._is_complete
        states = [task.state() for task in tasks]
        for _, code, detail in states:
            if code:
                return status_code_of(code), f"{self.name}: {detail}"
        is_done = is_complete and all(state.has_ended for state in states)
        return (LLMStatusCode.LLM_SUCCESS if is_done else None), ""

    def has_failed(self) -> bool:
        with self._lock:
            return self._failure is not None

    def fail(self, code: LLMStatusCode, why: str) -> None:
        """Ends it, unless it has ended: the layers that were not released are not sent."""
        if self.poll() is not None:
            return
        with self._lock:
            self._failure = (code, f"{self.name}: {why}")
            tasks = list(self._tasks)
        for task in tasks:
            self._native.task_cancel(task.number, why)

    def may_write(self) -> list[BlocksInDoubt]:
        """What its tasks may still write."""
        with self._lock:
            tasks = list(self._tasks)
        return unsettled(tasks)

    def is_settled(self) -> bool:
        """It has ended, and nothing of it is written any more. Never blocks."""
        if self.poll() is None or not self._working.acquire(blocking=False):
            return False  # a worker that is taking something has yet to see that it failed
        try:
            return not self.may_write()
        finally:
            self._working.release()

    def start(self) -> None:
        prepare, self._prepare = self._prepare, None
        assert prepare is not None
        with self._working, self._failing():
            if self.has_failed():
                return
            prepared = prepare()
            if isinstance(prepared, Task):
                self._add(prepared, self.layers)
                self._is_complete = True
            else:
                self._pieces = prepared

    def release(self, layer: int, status: torch.Tensor) -> None:
        """Lets the layer go, once the current stream has got here."""
        with self._working, self._failing():
            if self.has_failed():
                return
            if self._pieces is None:
                self._release_layer(layer, status)
                return
            for piece in self._pieces(layer):
                self._add(piece.task, range(piece.layer, piece.layer + 1))
                self._native.task_limit(piece.task.number, max(1, round(self._timeout_s * 1000)))
                ops.push_layer(status, status, piece.layer, self._bindings[-1].id)
            if layer == self.layers[-1]:
                self._is_complete = True

    def _release_layer(self, layer: int, status: torch.Tensor) -> None:
        # As if each layer were a call of its own with a deadline of its own, one after the other.
        now = time.monotonic()
        self._allowed_until = max(self._allowed_until, now) + self._timeout_s
        if layer == self.layers[-1]:
            left_ms = max(1, round((self._allowed_until - now) * 1000))
            self._native.task_limit(self._tasks[0].number, left_ms)
        ops.push_layer(status, status, layer, self._bindings[0].id)

    def _add(self, task: Task, layers: range) -> None:
        binding = Binding(self._device, layers, _NO_LIMIT_S)
        while True:
            try:
                binding.bind([task])
                break
            except LinkBusyError:
                running = next((t for t in self._tasks if not t.state().has_ended), None)
                if running is None:
                    raise
                self._native.task_wait_drained(running.number, 1000)
        self._bindings.append(binding)
        with self._lock:
            self._tasks.append(task)
            failure = self._failure
        if failure is not None:  # meanwhile
            self._native.task_cancel(task.number, failure[1])

    def wait(self) -> None:
        for task in self._tasks:
            self._native.task_wait(task.number)
        self._bindings.clear()
        code, detail = self._look()
        if code:
            logger.warning("transfer_cache_async: %s: %s", code.name, detail)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except LLMException as error:
            self.fail(error.status_code, str(error))
        except Exception as error:
            logger.exception("transfer_cache_async: %s", self.name)
            self.fail(LLMStatusCode.LLM_FAILED, f"{type(error).__name__}: {error}")


class _Transfer:
    """One call of ``transfer_cache_async``."""

    def __init__(self, synchronizer: LayerSynchronizer, sends: Sequence[_Send]) -> None:
        self._synchronizer = synchronizer
        self._sends = sends
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # whoever gives up waiting does not end it
        self._lock = threading.Lock()

    def task(self) -> CacheTask:
        return CacheTask(
            [s.poll for s in self._sends],
            lambda: [s.detail() for s in self._sends],
            self.ended,
            lambda why: self.stop(LLMStatusCode.LLM_FAILED, why),
            lambda: [found for s in self._sends for found in s.may_write()],
            lambda: all(s.is_settled() for s in self._sends),
        )

    def run(self, status: torch.Tensor) -> None:
        """On a worker, whose stream is the current one."""
        try:
            for send in self._running():
                send.start()
            for layer in sorted({layer for send in self._sends for layer in send.layers}):
                carriers = [send for send in self._running() if layer in send.layers]
                if carriers:
                    self._go_on(layer, carriers, status)
            for send in self._sends:
                send.wait()
        finally:
            if not self._running():
                self._end()

    def stop(self, code: LLMStatusCode, why: str) -> None:
        """Ends what still runs, and answers who waits. For any thread."""
        for send in self._sends:
            send.fail(code, why)
        self._end()

    def _running(self) -> list[_Send]:
        return [send for send in self._sends if send.poll() is None]

    def _go_on(self, layer: int, carriers: Sequence[_Send], status: torch.Tensor) -> None:
        code, why = LLMStatusCode.LLM_SUCCESS, ""
        try:
            if not self._synchronizer.synchronize_layer(layer, None):
                code = LLMStatusCode.LLM_PARAM_INVALID
                why = f"the synchronizer said that layer {layer} is not to be sent"
        except Exception as error:
            logger.exception("transfer_cache_async: the synchronizer raised for layer %d", layer)
            code = LLMStatusCode.LLM_FAILED
            why = f"the synchronizer raised for layer {layer}: {type(error).__name__}: {error}"
        for send in carriers:
            if code:
                send.fail(code, why)
            elif send.poll() is None:
                send.release(layer, status)

    def _end(self) -> None:
        with self._lock:
            if not self.ended.done():
                self.ended.set_result(None)


class LayerTransfers:
    """The layer-by-layer transfers of one instance.

    Args:
        limit: worker threads, and so transfers that run at one time; others wait for their turn.
    """

    def __init__(self, native: ModuleType, device: int, timeout_ms: int, name: str, limit: int) -> None:
        self._native = native
        self._device = device
        self._timeout_s = timeout_ms / 1000
        self.pool = WorkerPool(name, limit)
        self._lock = threading.Lock()
        self._under_way: set[_Transfer] = set()
        self._worker = threading.local()

    def begin(self, synchronizer: LayerSynchronizer, wanted: Sequence[LayerSend]) -> CacheTask:
        sends = [_Send(self._native, self._device, each, self._timeout_s) for each in wanted]
        transfer = _Transfer(synchronizer, sends)
        with self._lock:
            self._under_way.add(transfer)
        if not self.pool.submit(lambda: self._run(transfer)):
            self._finalized(transfer)
        return transfer.task()

    def close(self, timeout_s: float) -> None:
        """Ends all of them. One whose synchronizer does not return is answered all the same."""
        with self._lock:
            under_way = list(self._under_way)
        for transfer in under_way:
            self._finalized(transfer)
        if not self.pool.close(timeout_s):
            logger.warning("finalize: a synchronizer of transfer_cache_async has not returned")

    def _finalized(self, transfer: _Transfer) -> None:
        transfer.stop(LLMStatusCode.LLM_ENGINE_FINALIZED, "the instance is finalized")

    def _run(self, transfer: _Transfer) -> None:
        try:
            with torch_npu.npu.device(self._device), torch_npu.npu.stream(self._stream()):
                transfer.run(self._worker.status)
        except Exception as error:  # of ours or of the runtime; a waiter is answered all the same
            logger.exception("transfer_cache_async: a worker failed")
            transfer.stop(LLMStatusCode.LLM_FAILED, f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._under_way.discard(transfer)

    def _stream(self) -> torch_npu.npu.Stream:
        """A stream per worker: gates on the default one would wait for the whole forward that it holds."""
        if not hasattr(self._worker, "stream"):
            stream = torch_npu.npu.Stream(self._device)
            with torch_npu.npu.stream(stream):
                self._worker.status = torch.zeros(1, dtype=torch.int32, device=f"npu:{self._device}")
            stream.synchronize()
            self._worker.stream = stream
        known: torch_npu.npu.Stream = self._worker.stream
        return known
