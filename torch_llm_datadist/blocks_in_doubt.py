"""Which local blocks a transfer that failed, or that was given up, may still write."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from .binding import Task, TransferState, ticket_state
from .errors import LLMException
from .link import LinkService
from .registry import CacheRegistry

if TYPE_CHECKING:
    from . import _C

DISCARDED = "discarded"  # the core's word for a ticket that was discarded, which is no failure
_SWEEP_AT = 256  # tickets known before those that have ended are looked for


@dataclass(frozen=True)
class BlocksInDoubt:
    """Blocks of one local cache that are not to be handed out again yet.

    Attributes:
        cache_id: of the local cache, or of the peer's where ``is_at_peer``.
        blocks: block ids, or batch entries of a contiguous cache. All of them where a peer is lost and may
            have had pushes under way that nobody here was told of.
        cluster_id: the peer.
        link: handle of the link.
        ticket: of the transfer; None where there is none.
        why: what happened.
        is_at_peer: they are the peer's, and a push of this instance that failed may still write them.
    """

    cache_id: int
    blocks: Sequence[int]
    cluster_id: int
    link: int
    ticket: int | None
    why: str
    is_at_peer: bool = False


class _Assigned(NamedTuple):
    cache_id: int
    blocks: tuple[int, ...]
    cluster_id: int


class _Unfinished(NamedTuple):
    """A transfer of this instance that failed and has something queued."""

    task: int
    found: BlocksInDoubt


class Doubts:
    """Thread-safe."""

    def __init__(
        self, native: ModuleType, instance: _C.Instance, links: LinkService, registry: CacheRegistry
    ) -> None:
        self._native = native
        self._instance = instance
        self._links = links
        self._registry = registry
        self._lock = threading.Lock()
        self._assigned: dict[int, _Assigned] = {}
        self._sweep_at = _SWEEP_AT
        self._unfinished: list[_Unfinished] = []
        self._tasks: dict[int, weakref.ref[Task]] = {}
        self._dropped: dict[int, BlocksInDoubt | None] = {}  # bound tasks that nobody refers to any more

    def assign(self, ticket: int, cache_id: int, blocks: tuple[int, ...]) -> None:
        cluster_id = self._cluster_of(ticket >> 32)
        with self._lock:
            self._assigned[ticket] = _Assigned(cache_id, blocks, cluster_id)
            if len(self._assigned) >= self._sweep_at:
                self._sweep()
                self._sweep_at = max(_SWEEP_AT, 2 * len(self._assigned))

    def task(self, number: int, writes: BlocksInDoubt) -> Task:
        """The handle of a push by layers, whose blocks are in doubt when it fails in whatever way."""
        task = Task(number, writes, self._drop)
        self._tasks[number] = weakref.ref(task)
        if len(self._dropped) >= _SWEEP_AT:
            with self._lock:
                self._failed_tasks()
        return task

    def _drop(self, number: int, writes: BlocksInDoubt | None) -> None:
        """Called by the garbage collector, at any place: takes no lock."""
        self._tasks.pop(number, None)
        if _is_over(self._native, number):
            self._native.task_free(number)
        else:
            self._dropped[number] = writes

    def _failed_tasks(self) -> list[BlocksInDoubt]:
        """With the lock."""
        for number in self._dropped.copy():
            if _is_over(self._native, number):
                del self._dropped[number]
                self._native.task_free(number)
        watched = self._dropped.copy()
        alive = [task for known in self._tasks.copy().values() if (task := known()) is not None]
        watched |= {task.number: task.writes for task in alive}
        states, _ = self._native.poll(list(watched), []) if watched else ([], [])
        return [
            replace(writes, why=why)
            for (number, writes), (has_ended, code, why) in zip(watched.items(), states, strict=True)
            if code and not has_ended and writes is not None and not self._native.task_way(number)[1]
        ]

    def failed(self, task: int, found: BlocksInDoubt) -> None:
        """What it had queued may still run, on a stream of this instance. Takes the task's number."""
        with self._lock:
            self._forget_finished()
            self._unfinished.append(_Unfinished(task, found))

    def of_ticket(self, ticket: int, why: str) -> list[BlocksInDoubt]:
        """What the transfer behind a ticket may write; anything, where ``assign`` was not told."""
        link = ticket >> 32
        with self._lock:
            known = self._assigned.get(ticket)
        if known is not None:
            return [BlocksInDoubt(known.cache_id, known.blocks, known.cluster_id, link, ticket, why)]
        return self._everything(self._cluster_of(link), link, ticket, why)

    def all(self) -> list[BlocksInDoubt]:
        with self._lock:
            self._sweep()
            self._forget_finished()
            found = [unfinished.found for unfinished in self._unfinished]
            found += self._failed_tasks()
            assigned = dict(self._assigned)
        for ticket, (cache_id, blocks, cluster_id) in assigned.items():
            has_ended, code, why = _state_of(ticket)
            if not has_ended and (code or why == DISCARDED):
                found.append(BlocksInDoubt(cache_id, blocks, cluster_id, ticket >> 32, ticket, why))
        for cluster_id, link, why in self._links.lost_peers():
            found += self._everything(cluster_id, link, None, why)
        return found

    def _everything(self, cluster_id: int, link: int, ticket: int | None, why: str) -> list[BlocksInDoubt]:
        return [
            BlocksInDoubt(local.cache.cache_id, range(local.cache.num_entries), cluster_id, link, ticket, why)
            for local in self._registry.reachable()
        ]

    def _cluster_of(self, link: int) -> int:
        known = {info.link: info.cluster_id for info in self._links.table.infos()}
        known |= {lost: cluster_id for cluster_id, lost, _ in self._links.lost_peers()}
        return known.get(link, 0)

    def _sweep(self) -> None:
        """Forgets tickets whose blocks nobody writes any more."""
        for ticket in list(self._assigned):
            if _state_of(ticket).has_ended:
                del self._assigned[ticket]

    def _forget_finished(self) -> None:
        running = []
        for unfinished in self._unfinished:
            if not self._native.task_wait_drained(unfinished.task, 0):
                running.append(unfinished)
            else:
                self._native.task_free(unfinished.task)
        self._unfinished = running


def _is_over(native: ModuleType, task: int) -> bool:
    """Nothing of it is written any more, or ever will be."""
    return not native.task_is_bound(task) or TransferState(*native.task_state(task)).has_ended


def _state_of(ticket: int) -> TransferState:
    try:
        return ticket_state(ticket)
    except LLMException as error:  # its link is gone for good, or its slot serves another: it has ended
        return TransferState(True, int(error.status_code), str(error))
