"""Which local blocks a transfer that failed, or that was given up, may still write."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .binding import ticket_state
from .errors import LLMException
from .link import LinkService
from .registry import CacheRegistry

if TYPE_CHECKING:
    from . import _C

_SWEEP_AT = 256  # tickets known before those that have ended are looked for


@dataclass(frozen=True)
class BlocksInDoubt:
    """Blocks of one local cache that are not to be handed out again yet.

    Attributes:
        cache_id: of the local cache.
        blocks: block ids, or batch entries of a contiguous cache. All of them where a peer is lost and may
            have had pushes under way that nobody here was told of.
        cluster_id: the peer.
        link: handle of the link.
        ticket: of the transfer; None where there is none.
        why: what happened.
    """

    cache_id: int
    blocks: Sequence[int]
    cluster_id: int
    link: int
    ticket: int | None
    why: str


class Doubts:
    """Thread-safe."""

    def __init__(self, instance: _C.Instance, links: LinkService, registry: CacheRegistry) -> None:
        self._instance = instance
        self._links = links
        self._registry = registry
        self._lock = threading.Lock()
        self._assigned: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._sweep_at = _SWEEP_AT
        self._pulls: list[BlocksInDoubt] = []

    def assign(self, ticket: int, cache_id: int, blocks: tuple[int, ...]) -> None:
        with self._lock:
            self._assigned[ticket] = (cache_id, blocks)
            if len(self._assigned) >= self._sweep_at:
                self._sweep()
                self._sweep_at = max(_SWEEP_AT, 2 * len(self._assigned))

    def pull_failed(self, found: BlocksInDoubt) -> None:
        """What it had queued may still run, on a stream of this instance."""
        with self._lock:
            self._pulls = [pull for pull in self._pulls if self._is_in_use(pull.cache_id)] + [found]

    def all(self) -> list[BlocksInDoubt]:
        lost = {link: (cluster_id, why) for cluster_id, link, why in self._links.lost_peers()}
        with self._lock:
            self._sweep()
            self._pulls = [pull for pull in self._pulls if self._is_in_use(pull.cache_id)]
            found = list(self._pulls)
            assigned = dict(self._assigned)
        clusters = {info.link: info.cluster_id for info in self._links.table.infos()}
        for ticket, (cache_id, blocks) in assigned.items():
            link = ticket >> 32
            code, why = _failure_of(ticket)
            if code and (link in lost or link in clusters):
                cluster_id = lost[link][0] if link in lost else clusters[link]
                found.append(BlocksInDoubt(cache_id, blocks, cluster_id, link, ticket, why))
        for link, (cluster_id, why) in lost.items():
            for local in self._registry.reachable():
                everything = range(local.cache.num_entries)
                found.append(BlocksInDoubt(local.cache.cache_id, everything, cluster_id, link, None, why))
        return found

    def _sweep(self) -> None:
        """Forgets tickets whose blocks nobody writes any more."""
        lost = {link for _, link, _ in self._links.lost_peers()}
        for ticket in list(self._assigned):
            has_ended, code = _end_of(ticket)
            if has_ended and not (code and ticket >> 32 in lost):
                del self._assigned[ticket]

    def _is_in_use(self, cache_id: int) -> bool:
        try:
            return self._instance.is_cache_in_use(cache_id)
        except LLMException:
            return False


def _end_of(ticket: int) -> tuple[bool, int]:
    try:
        state = ticket_state(ticket)
    except LLMException as error:  # its link is gone, or its slot serves another: it has ended
        return True, int(error.status_code)
    return state.has_ended, state.code


def _failure_of(ticket: int) -> tuple[int, str]:
    try:
        state = ticket_state(ticket)
    except LLMException as error:
        return int(error.status_code), str(error)
    return state.code, state.detail
