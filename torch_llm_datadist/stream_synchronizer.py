"""``transfer_cache_async`` whose layers are released by an op in the forward: no thread, no callback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future

import torch

from . import _native, ops
from .binding import Binding, Task, unsettled
from .cache_task import CacheTask
from .errors import LLMException, LLMStatusCode, status_code_of
from .layer_transfer import Pieces
from .messages import refusal
from .transfer import LayerSynchronizer

_POLL_S = 0.001


class StreamLayerSynchronizer(LayerSynchronizer):
    """Says on the stream, from inside the forward, that a layer may be sent. Not in the original.

    ``transfer_cache_async`` binds the transfers of all its configs to the next forward; it asks nobody and
    starts no thread. One call serves one forward. ``record_layer`` is an op: it works in eager code, under
    ``torch.compile``, and in a captured graph that is replayed for each call.

    Args:
        device: index of the NPU that the caches are on.
        layers: the layer indices that the forward records.
        timeout_s: from the call of ``transfer_cache_async`` to the last byte.

    Attributes:
        binding: what the op names; ``bind(())`` is a forward that sends nothing.
        status: int32[1] on the device: 0, or the code of the first transfer that failed.

    >>> synchronizer = llm_datadist.StreamLayerSynchronizer(device=0, layers=range(LAYERS))  # once per model
    >>> config = llm_datadist.TransferWithCacheKeyConfig(BlocksCacheKey(2), range(LAYERS), range(LAYERS))
    >>> task = prefill.cache_manager.transfer_cache_async(source, synchronizer, [config], [0, 1], [4, 5])
    >>> for layer in range(LAYERS):  # the forward, eager or in a graph: after each layer's last write
    ...     synchronizer.record_layer(layer, source.tensors[2 * layer + 1])
    >>> task.synchronize(10_000).name
    'LLM_SUCCESS'
    """

    def __init__(self, device: int, layers: Iterable[int], timeout_s: float = 60.0) -> None:
        self.binding = Binding(device, layers, timeout_s)  # which checks them
        self.status = torch.zeros(1, dtype=torch.int32, device=f"npu:{device}")

    def record_layer(self, layer: int, after: torch.Tensor) -> None:
        """Lets the layer go once the current stream has got here: ``ops.push_layer``.

        Args:
            layer: of the source cache; once per forward.
            after: any tensor that the layer's last kernel produced, so that no compiler moves this ahead.
        """
        ops.push_layer(self.status, after, layer, self.binding.id)

    def finish(self, before: torch.Tensor) -> None:
        """Holds the current stream until all has been sent, or failed: ``ops.finish``. Kernels behind it
        that use ``before`` may overwrite the source. Optional; ``CacheTask`` tells the host.
        """
        ops.finish(self.status, before, self.binding.id)

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Is not called: the layers come from ``record_layer``."""
        raise refusal("layers_are_recorded", value="are released by record_layer in the forward")


class StreamTask(CacheTask):
    """A transfer that the stream releases: polled, since no thread of the library runs it.

    Args:
        sends: per config its task, or the code and the words of what refused it.
    """

    def __init__(self, sends: Sequence[Task | tuple[LLMStatusCode, str]]) -> None:
        self._sends = sends
        polls = [lambda send=send: self._look(send)[0] for send in sends]
        tasks = [send for send in sends if isinstance(send, Task)]

        def stop(why: str) -> None:
            for task in tasks:
                _native.load().task_cancel(task.number, why)

        super().__init__(
            polls,
            lambda: [self._look(send)[1] for send in sends],
            Future(),
            stop,
            lambda: unsettled(tasks),
            lambda: not unsettled(tasks),
        )

    @staticmethod
    def _look(send: Task | tuple[LLMStatusCode, str]) -> tuple[LLMStatusCode | None, str]:
        if not isinstance(send, Task):
            return send
        state = send.state()
        if not state.has_ended and not state.code:
            return None, ""
        return status_code_of(state.code), state.detail if state.code else ""

    def done(self) -> bool:
        return all(self._look(send)[0] is not None for send in self._sends)

    def _wait(self, asked: str, timeout_in_millis: int | None) -> bool:
        self._may_wait(asked, timeout_in_millis)
        limit = float("inf") if timeout_in_millis is None else time.monotonic() + timeout_in_millis / 1000
        while not self.done():
            if time.monotonic() >= limit:
                return False
            time.sleep(_POLL_S)
        return True

    def __await__(self) -> Generator[object, None, LLMStatusCode]:
        self._may_wait("await", None)
        while not self.done():
            yield from asyncio.sleep(_POLL_S).__await__()
        return self.synchronize(0)


def begin(
    synchronizer: StreamLayerSynchronizer,
    names: Sequence[str],
    prepares: Sequence[Callable[[], Task | Pieces]],
) -> StreamTask:
    """Takes the push of each config at its link and binds all of them to the next forward."""
    sends: list[Task | tuple[LLMStatusCode, str]] = []
    for name, prepare in zip(names, prepares, strict=True):
        try:
            sends.append(_in_order(prepare()))
        except LLMException as error:
            sends.append((error.status_code, f"{name}: {error}"))
    tasks = [send for send in sends if isinstance(send, Task)]
    try:
        synchronizer.binding.bind(tasks)
    except LLMException as error:
        refused = (error.status_code, str(error))
        sends = [refused if isinstance(send, Task) else send for send in sends]
    return StreamTask(sends)


def _in_order(prepared: Task | Pieces) -> Task:
    if isinstance(prepared, Task):
        return prepared
    raise refusal("layers_are_not_in_a_row", value="do not lie one after the other")
