"""The part of ``CacheManager`` that gives transfers up, and that knows which blocks one that failed may still
write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from . import checks
from .binding import Publication, Task, TransferState, unsettled
from .blocks_in_doubt import BlocksInDoubt, Doubts
from .cache import Cache
from .cache_store import CacheStore
from .cache_task import CacheTask
from .errors import LLMException
from .link_table import Link
from .messages import refusal

_CONFIRMED_WITHIN_S = 10.0
_LOOK_S = 0.005
_BY_ITS_SENDER = "cancelled by its sender"


class DoubtfulBlocks(CacheStore):
    def assign_blocks(self, ticket: int, cache: Cache, blocks: Sequence[int]) -> None:
        """Says which local blocks the transfer behind a ticket writes, so that ``blocks_in_doubt`` can name
        them. Only the two applications know that.

        Args:
            ticket: of a task that a peer prepared for this instance.
            cache: a cache of this instance.
            blocks: list or tuple of its blocks, or batch entries.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there, ``LLM_PARAM_INVALID`` for
                a block outside of it.
        """
        asked = "assign_blocks"
        number = checks.ticket(f"{asked}: ticket", ticket)
        found = checks.instance(f"{asked}: cache", cache, Cache)
        local = self._find(asked, "cache", found, is_blocks=found.is_blocks_cache)
        given = checks.integers(f"{asked}: blocks", blocks)
        for i, block in enumerate(given):
            if block >= local.cache.num_entries:
                raise refusal(
                    "assigned_block_outside", asked=asked, at=i, value=block, count=local.cache.num_entries
                )
        self._doubts.assign(number, found.cache_id, tuple(given))

    def blocks_in_doubt(self, link: int | None = None) -> list[BlocksInDoubt]:
        """The blocks that a transfer which failed or was given up may still write: do not hand them out again
        before they have left this list.

        They leave it when the sender has confirmed that the streams of its link are drained, or when its
        process is known to be gone. The list holds

        * the blocks of failed tickets, where ``assign_blocks`` has told them;
        * the destination blocks of pulls and, marked ``is_at_peer``, of pushes that failed, until what they
          had queued is done;
        * all blocks of all caches that a lost peer could reach, one entry per cache: a frozen peer may have
          had pushes under way that nobody here was told of. Blocks that were never given to that peer are
          safe all the same.

        A call of the peer's that had not taken its link yet is not under way: it names this cluster, and goes
        over the next link to it. Link anew only when such calls have returned, or prepare what may be late
        by layers: a task belongs to its link.

        Args:
            link: ``LLMDataDist.link_id(cluster_id)``, taken while there was a link; None: of all links, also
                those that have ended.

        Raises:
            TypeError, ValueError: wrong types.

        Not in the original.
        """
        self._require_usable("blocks_in_doubt")
        wanted = None if link is None else checks.int64("blocks_in_doubt: link", link)
        return [doubt for doubt in self._doubts.all() if wanted is None or doubt.link == wanted]

    def wait_until_settled(self, link: int | None = None, *, timeout_s: float = _CONFIRMED_WITHIN_S) -> None:
        """Blocks until ``blocks_in_doubt(link)`` is empty.

        Args:
            link: as ``blocks_in_doubt``.
            timeout_s: seconds.

        Raises:
            LLMException: ``LLM_TIMEOUT``; ``blocks_in_doubt`` of the exception lists what is left.

        Not in the original.
        """
        asked = "wait_until_settled"
        deadline = time.monotonic() + checks.seconds_as_ms(f"{asked}: timeout_s", timeout_s) / 1000
        while found := self.blocks_in_doubt(link):
            if time.monotonic() >= deadline:
                raise _in_doubt(refusal("not_settled_in_time", asked=asked, value=timeout_s), found)
            time.sleep(_LOOK_S)

    def cancel(
        self, transfer: Task | Publication | CacheTask | int, *, timeout_s: float = _CONFIRMED_WITHIN_S
    ) -> None:
        """Gives a transfer up, also one that runs, and returns when nothing of it is read or written any
        more: its blocks may be handed out again.

        Waits of either end go on, with a code. One that has ended stays as it is.

        Args:
            transfer: at the sender a task, bound or not, or a ``CacheTask``, all of whose configs end (its
                synchronizer may be asked for one more layer); at the holder a publication; at the other end
                of a task or a publication the ticket, also one that a forward waits for or that is being
                pulled with.
            timeout_s: seconds that the confirmation may take.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_TIMEOUT`` when the end that moves the bytes has not confirmed in time that
                what it had queued is done: it is given up all the same, and ``blocks_in_doubt`` of the
                exception lists what it may still write (read, of a publication). ``LLM_PARAM_INVALID`` for a
                number that is no ticket of a link of this process.

        Not in the original. ``discard`` does not wait, and leaves alone what is bound.

        >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0, 1], [5, 6])
        >>> prefill.cache_manager.cancel(task)
        >>> task.state().detail
        'cancelled by its sender'
        """
        asked = "cancel"
        self._require_usable(asked)
        timeout_ms = checks.seconds_as_ms(f"{asked}: timeout_s", timeout_s)
        if isinstance(transfer, CacheTask):
            transfer.give_up(_BY_ITS_SENDER)
            deadline = time.monotonic() + timeout_ms / 1000
            while not transfer.is_settled():
                if time.monotonic() >= deadline:
                    raise _in_doubt(_unconfirmed(asked, timeout_s), transfer.in_doubt())
                time.sleep(_LOOK_S)
        elif isinstance(transfer, Task):
            self._native.task_cancel(transfer.number, _BY_ITS_SENDER)
            if not self._native.task_wait_drained(transfer.number, timeout_ms):
                raise _in_doubt(_unconfirmed(asked, timeout_s), unsettled([transfer]))
        elif isinstance(transfer, Publication):
            self._native.task_cancel(transfer.number, "cancelled by its holder")
            if not self._native.task_wait_drained(transfer.number, timeout_ms):
                raise _may_be_read(asked, timeout_s, transfer)
        else:
            ticket = checks.ticket(f"{asked}: transfer", transfer)
            state = TransferState(*self._native.ticket_cancel(ticket, timeout_ms))
            if not state.has_ended:
                found = self._doubts.of_ticket(ticket, state.detail)
                raise _in_doubt(_unconfirmed(asked, timeout_s), found)

    def _unfinished(
        self, link: Link, cache_id: int, blocks: torch.Tensor | Sequence[int], *, is_at_peer: bool
    ) -> Callable[[int, LLMException], LLMException]:
        """For ``BlockingCall``: what a transfer into these blocks leaves when it fails with copies queued."""

        def failed(task: int, error: LLMException) -> LLMException:
            named = tuple(blocks.tolist() if isinstance(blocks, torch.Tensor) else blocks)
            found = BlocksInDoubt(cache_id, named, link.cluster_id, link.handle, None, str(error), is_at_peer)
            self._doubts.failed(task, found)
            return _in_doubt(error, [found])

        return failed

    @cached_property
    def _doubts(self) -> Doubts:
        return Doubts(self._native, self._instance, self._links, self._registry)


def _unconfirmed(asked: str, timeout_s: float) -> Exception:
    return refusal("drain_is_unconfirmed", asked=asked, value=timeout_s)


def _may_be_read(asked: str, timeout_s: float, publication: Publication) -> Exception:
    found = () if publication.is_read is None else (publication.is_read,)
    what = "; ".join(map(_named, found))
    error = refusal("pull_is_unconfirmed", asked=asked, value=timeout_s, what=what)
    assert isinstance(error, LLMException)
    error.blocks_in_doubt = found
    return error


def _in_doubt(error: Exception, found: Sequence[BlocksInDoubt]) -> LLMException:
    """The same error, which now says what may still be written."""
    assert isinstance(error, LLMException)
    named = type(error)(
        f"{str(error).rstrip('.')}. Until what was queued is done, which wait_until_settled() waits for, "
        f"{'; '.join(map(_named, found)) or 'blocks that nobody has told'} may still be written.",
        status_code=error.status_code,
    )
    named.blocks_in_doubt = tuple(found)
    return named


def _named(found: BlocksInDoubt) -> str:
    blocks = list(found.blocks)
    listed = ", ".join(map(str, blocks[:8])) + (f", ... ({len(blocks)})" if len(blocks) > 8 else "")
    where = f"cache {found.cache_id}" + (f" at cluster {found.cluster_id}" if found.is_at_peer else "")
    return f"block{'s' * (len(blocks) != 1)} {listed} of {where}"
