"""Many transfers polled in one call, as an engine's scheduler wants it once per step."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from . import _native
from .binding import Publication, Task, TransferState
from .blocks_in_doubt import DISCARDED
from .cache_task import CacheTask
from .checks import integers, is_integer, ticket
from .errors import LLMStatusCode, status_code_of
from .messages import refusal

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class FailedTransfer:
    """How a transfer failed.

    Attributes:
        blocks: what was given for it: the blocks whose bytes are not to be trusted.
    """

    code: LLMStatusCode
    detail: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Finished(Generic[Name]):
    """What has ended since the last poll.

    Attributes:
        sent: tasks whose last byte has left, and publications that were pulled: their source blocks are free.
        arrived: tickets all of whose layers have arrived and were waited for, or were pulled.
        failed: the others, also tickets that were discarded: nothing of them is read or written any more.
        in_doubt: they failed just now, and something may still be read or written: their results are not to
            be trusted, and their blocks are not to be used yet. They stay watched and come again in
            ``failed``.
    """

    sent: set[Name] = field(default_factory=set)
    arrived: set[Name] = field(default_factory=set)
    failed: dict[Name, FailedTransfer] = field(default_factory=dict)
    in_doubt: dict[Name, FailedTransfer] = field(default_factory=dict)


class TransferWatch(Generic[Name]):
    """The transfers of an engine by the names it gives them, its request ids say. Not in the original.

    >>> watch = llm_datadist.TransferWatch()
    >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0], [1])
    >>> watch.add("request 7", task, blocks=[0])
    >>> watch.poll()  # once per step of the scheduler
    Finished(sent=set(), arrived=set(), failed={}, in_doubt={})

    Thread-safe. Each name is reported once and then forgotten; one that is in doubt is reported twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[Name, tuple[Task | Publication | CacheTask | int, tuple[int, ...]]] = {}
        self._doubted: set[Name] = set()

    def add(
        self, name: Name, transfer: Task | Publication | CacheTask | int, blocks: Sequence[int] = ()
    ) -> None:
        """Watches one more transfer.

        Args:
            name: hashable; not in use.
            transfer: a ``Task`` or a ``CacheTask`` that sends, a ``Publication`` that a peer pulls, or a
                ticket (int) of something that arrives here.
            blocks: list or tuple of local block ids, handed back if it fails.

        Raises:
            TypeError, ValueError: another kind of transfer, a name in use.
        """
        if not isinstance(transfer, (Task, Publication, CacheTask)):
            if not is_integer(transfer):
                raise refusal(
                    "bad_type",
                    name="TransferWatch.add: transfer",
                    value=repr(transfer),
                    expected="a Task, a Publication, a CacheTask or a ticket (int)",
                )
            # A number that the core cannot take would end each poll, and silence all the others.
            transfer = ticket("TransferWatch.add: transfer", transfer)
        if not isinstance(name, Hashable):
            raise refusal(
                "bad_type", name="TransferWatch.add: name", value=repr(name), expected="something hashable"
            )
        held = tuple(integers("TransferWatch.add: blocks", blocks))
        with self._lock:
            if name in self._watched:
                raise refusal("is_watched_already", value=repr(name))
            self._watched[name] = (transfer, held)

    def forget(self, name: Name) -> None:
        """Watches it no longer; the transfer itself goes on."""
        with self._lock:
            self._watched.pop(name, None)
            self._doubted.discard(name)

    def __len__(self) -> int:
        return len(self._watched)

    def poll(self) -> Finished[Name]:
        """What has ended since the last call; never blocks, and asks the core once for all of them."""
        # There the core knows none of them, and would say that all have failed.
        _native.load().require_not_forked("TransferWatch.poll")
        finished: Finished[Name] = Finished()
        with self._lock:
            for name, state in zip(list(self._watched), self._states(), strict=True):
                if not state.has_ended:
                    if state.code and name not in self._doubted:
                        self._doubted.add(name)
                        finished.in_doubt[name] = _failed(state, self._watched[name][1])
                    continue
                self._doubted.discard(name)
                transfer, blocks = self._watched.pop(name)
                if state.code != LLMStatusCode.LLM_SUCCESS or state.detail == DISCARDED:
                    finished.failed[name] = _failed(state, blocks)
                elif isinstance(transfer, int):
                    finished.arrived.add(name)
                else:
                    finished.sent.add(name)
        return finished

    def _states(self) -> list[TransferState]:
        transfers = [transfer for transfer, _ in self._watched.values()]
        tasks = [t.number for t in transfers if isinstance(t, (Task, Publication))]
        tickets = [t for t in transfers if isinstance(t, int)]
        of_tasks, of_tickets = _native.load().poll(tasks, tickets) if tasks or tickets else ([], [])
        next_task, next_ticket = iter(of_tasks), iter(of_tickets)
        states = []
        for transfer in transfers:
            if isinstance(transfer, CacheTask):
                states.append(_state_of(transfer))
            else:
                states.append(TransferState(*next(next_ticket if isinstance(transfer, int) else next_task)))
        return states


def _failed(state: TransferState, blocks: tuple[int, ...]) -> FailedTransfer:
    # One that was discarded ends without a code: its other end may have sent all of it.
    code = status_code_of(state.code) if state.code else LLMStatusCode.LLM_FAILED
    return FailedTransfer(code, state.detail, blocks)


def _state_of(task: CacheTask) -> TransferState:
    if not task.done():
        return TransferState(False, 0, "")
    details = "; ".join(filter(None, task.details()))
    return TransferState(task.is_settled(), int(task.synchronize(0)), details)
