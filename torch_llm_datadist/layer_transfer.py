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

import torch
import torch_npu

from . import ops
from .binding import Binding, Task
from .cache_task import CacheTask
from .errors import LLMException, LLMStatusCode, status_code_of
from .transfer import LayerSynchronizer
from .worker_pool import WorkerPool

logger = logging.getLogger("torch_llm_datadist")

_NO_LIMIT_S = 10.0**6  # until the last layer was released: how long the model takes is not ours to say


@dataclass(frozen=True)
class LayerSend:
    """One config, checked.

    Attributes:
        name: for messages: "transfer_configs[0] (cluster 2)".
        layers: layers of the source.
        prepare: takes the push at the link; raises ``LLMException`` when there is none to take.
    """

    name: str
    layers: range
    prepare: Callable[[], Task]


class _Send:
    """One config under way. ``fail`` and ``poll`` are for any thread, the rest for the worker."""

    def __init__(self, native: ModuleType, device: int, wanted: LayerSend, timeout_s: float) -> None:
        self._native = native
        self._device = device
        self._timeout_s = timeout_s
        self.name = wanted.name
        self.layers = wanted.layers
        self._prepare: Callable[[], Task] | None = wanted.prepare
        self._lock = threading.Lock()
        self._failure: tuple[LLMStatusCode, str] | None = None
        self._task: Task | None = None
        self._binding: Binding | None = None
        self._allowed_until = 0.0

    def poll(self) -> LLMStatusCode | None:
        with self._lock:
            if self._failure is not None:
                return self._failure[0]
            task = self._task
        if task is None:
            return None
        has_ended, code, _ = task.state()
        return status_code_of(code) if has_ended else None

    def detail(self) -> str:
        with self._lock:
            if self._failure is not None:
                return self._failure[1]
            return self._task.state().detail if self._task is not None else ""

    def fail(self, code: LLMStatusCode, why: str) -> None:
        """Ends it, unless it has ended: the layers that were not released are not sent."""
        if self.poll() is not None:
            return
        with self._lock:
            self._failure = (code, f"{self.name}: {why}")
            task = self._task
        if task is not None:
            self._native.task_cancel(task.number, why)

    def start(self) -> None:
        prepare, self._prepare = self._prepare, None
        assert prepare is not None
        with self._failing():
            task = prepare()
            binding = Binding(self._device, self.layers, _NO_LIMIT_S)
            binding.bind([task])
            self._binding = binding
            with self._lock:
                self._task = task
                failure = self._failure
            if failure is not None:  # meanwhile
                self._native.task_cancel(task.number, failure[1])

    def release(self, layer: int, status: torch.Tensor) -> None:
        """Lets the layer go, once the current stream has got here."""
        assert self._task is not None
        assert self._binding is not None
        # As if each layer were a call of its own with a deadline of its own, one after the other.
        now = time.monotonic()
        self._allowed_until = max(self._allowed_until, now) + self._timeout_s
        with self._failing():
            if layer == self.layers[-1]:
                left_ms = max(1, round((self._allowed_until - now) * 1000))
                self._native.task_limit(self._task.number, left_ms)
            ops.push_layer(status, status, layer, self._binding.id)

    def wait(self) -> None:
        if self._task is not None:
            self._native.task_wait(self._task.number)
        self._binding = None
        code = self.poll()
        if code:
            logger.warning("transfer_cache_async: %s: %s", code.name, self.detail())

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
        return CacheTask([s.poll for s in self._sends], lambda: [s.detail() for s in self._sends], self.ended)

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
            self._worker.stream = torch_npu.npu.Stream(self._device)
            self._worker.status = torch.zeros(1, dtype=torch.int32, device=f"npu:{self._device}")
            torch_npu.npu.current_stream(self._device).synchronize()
        stream: torch_npu.npu.Stream = self._worker.stream
        return stream
