"""``CacheTask``: what the caller of ``transfer_cache_async`` holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from . import _native, checks
from .errors import LLMStatusCode

if TYPE_CHECKING:
    from .blocks_in_doubt import BlocksInDoubt

Poll = Callable[[], LLMStatusCode | None]


class CacheTask:
    """A layer-by-layer transfer that is under way; made by ``CacheManager.transfer_cache_async``.

    Nothing of it raises for a transfer that failed: the codes say how each config ended.

    Source: manual page CacheTask; ``done``, ``details``, ``is_settled`` and ``await`` are additions.

    >>> class Ready(llm_datadist.LayerSynchronizer):
    ...     def synchronize_layer(self, layer_index, timeout_in_millis):
    ...         return True
    >>> config = llm_datadist.TransferWithCacheKeyConfig(BlocksCacheKey(2), range(LAYERS), range(LAYERS))
    >>> task = prefill.cache_manager.transfer_cache_async(source, Ready(), [config], [0], [7])
    >>> task.get_results(10_000)
    [<LLMStatusCode.LLM_SUCCESS: 0>]
    """

    def __init__(
        self,
        polls: Sequence[Poll],
        details: Callable[[], list[str]],
        ended: Future[None],
        stop: Callable[[str], None],
        may_write: Callable[[], list[BlocksInDoubt]],
        is_settled: Callable[[], bool],
    ) -> None:
        """For ``CacheManager``.

        Args:
            polls: for each config its code, or None while it runs.
            details: what happened to each config, in words; "" where all is well.
            ended: done when every config has a code.
            stop: ends what still runs, for the reason given.
            may_write: what its tasks may still write.
            is_settled: nothing of it is written any more.
        """
        self._polls = polls
        self._details = details
        self._ended = ended
        self._stop = stop
        self._may_write = may_write
        self._is_settled = is_settled

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Waits until every config has ended.

        Args:
            timeout_in_millis: uint32; None: as long as it takes, 0: does not wait.

        Returns:
            ``LLM_TIMEOUT`` when something still runs, which goes on; else the first code in the order of the
            configs that is not ``LLM_SUCCESS``, or ``LLM_SUCCESS``.

        Source: manual page CacheTask.
        """
        if not self._wait("CacheTask.synchronize", timeout_in_millis):
            return LLMStatusCode.LLM_TIMEOUT
        return next((code for code in self._codes() if code), LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Waits as ``synchronize`` and returns one code per config, in their order.

        A config that still runs has ``LLM_TIMEOUT``; one that has ended has its own code, whatever became of
        the others. No entry is None.

        Source: manual page CacheTask.
        """
        self._wait("CacheTask.get_results", timeout_in_millis)
        return list(self._codes())

    def details(self) -> list[str]:
        """For each config what went wrong, in words; "" where nothing did, or not yet."""
        _native.load().require_not_forked("CacheTask.details")
        return self._details()

    def done(self) -> bool:
        """Every config has ended. Never blocks."""
        return self._ended.done()

    def is_settled(self) -> bool:
        """``done()``, and nothing of it is read or written any more: also of configs that failed with copies
        queued. Never blocks.
        """
        _native.load().require_not_forked("CacheTask.is_settled")
        return self.done() and self._is_settled()

    def give_up(self, why: str) -> None:
        """For ``CacheManager.cancel``, which waits: ends every config that still runs."""
        _native.load().require_not_forked("CacheTask.give_up")
        self._stop(why)

    def in_doubt(self) -> list[BlocksInDoubt]:
        """For ``CacheManager.cancel``: what may still be written."""
        _native.load().require_not_forked("CacheTask.in_doubt")
        return self._may_write()

    def __await__(self) -> Generator[object, None, LLMStatusCode]:
        """``await task`` waits without blocking the event loop and gives what ``synchronize`` returns."""
        self._may_wait("await", None)
        yield from asyncio.wrap_future(self._ended).__await__()
        return self.synchronize(0)

    def _wait(self, asked: str, timeout_in_millis: int | None) -> bool:
        self._may_wait(asked, timeout_in_millis)
        wait([self._ended], None if timeout_in_millis is None else timeout_in_millis / 1000)
        return self._ended.done()

    @staticmethod
    def _may_wait(asked: str, timeout_in_millis: int | None) -> None:
        # What would end it runs in the parent.
        _native.load().require_not_forked(asked)
        if timeout_in_millis is not None:
            checks.uint32(f"{asked}: timeout_in_millis", timeout_in_millis)

    def _codes(self) -> list[LLMStatusCode]:
        found = (poll() for poll in self._polls)
        return [LLMStatusCode.LLM_TIMEOUT if code is None else code for code in found]

    def __repr__(self) -> str:
        return f"CacheTask({', '.join(code.name for code in self._codes())})"
