"""The links of an instance as its callers' threads see them. The control thread writes, everyone reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .arrivals import Arrivals
from .messages import refusal
from .wire import CacheRecord

_REMEMBERED_ENDS = 1024


@dataclass(frozen=True)
class LinkInfo:
    """One link.

    Attributes:
        link: handle of the native link.
        peer: address and pid of the peer.
        state: "linked", "unlinking" while it is being closed, or "lost".
        transport: what it goes over: "mapped", or the name of an engine.
        passed_over: what was tried first, and why it was not taken.
    """

    cluster_id: int
    link: int
    peer: str
    state: str
    transport: str = "mapped"
    passed_over: str = ""


@dataclass(eq=False)
class Link:
    """An open link: its native handle, and the caches the peer has announced."""

    cluster_id: int
    handle: int
    peer: str
    remote_caches: Mapping[int, CacheRecord]
    transport: str = "mapped"
    passed_over: str = ""
    is_accepting: bool = True
    active: int = 0  # blocking transfers that use it right now

    def remote_cache(self, model_id: int) -> CacheRecord | None:
        """The blocks cache that the peer registered last with this model_id."""
        found = [c for c in list(self.remote_caches.values()) if c.is_blocks and c.model_id == model_id]
        return max(found, key=lambda c: c.cache_id, default=None)


class LinkTable:
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._changed = threading.Condition()
        self._links: dict[int, Link] = {}
        self._ended: dict[int, tuple[str, float]] = {}

    # For the control thread.

    def add(self, link: Link) -> None:
        with self._changed:
            self._links[link.cluster_id] = link
            self._ended.pop(link.cluster_id, None)
            self._arrivals.linked(link.cluster_id)
            self._changed.notify_all()

    def remove(self, cluster_id: int, handle: int) -> None:
        with self._changed:
            link = self._links.get(cluster_id)
            if link is not None and link.handle == handle:
                del self._links[cluster_id]
                self._arrivals.ended(cluster_id)
            self._changed.notify_all()

    def remember_end(self, cluster_id: int, reason: str) -> None:
        """What to tell those who ask for a link that is not there."""
        with self._changed:
            self._ended.pop(cluster_id, None)
            self._ended[cluster_id] = (reason, time.monotonic())
            while len(self._ended) > _REMEMBERED_ENDS:
                del self._ended[next(iter(self._ended))]
            self._changed.notify_all()

    def accept(self, cluster_id: int, is_accepting: bool) -> None:
        """Lets new transfers start on the link, or not while it is being closed."""
        with self._changed:
            if cluster_id in self._links:
                self._links[cluster_id].is_accepting = is_accepting

    def active(self, cluster_id: int) -> int:
        with self._changed:
            link = self._links.get(cluster_id)
            return link.active if link else 0

    # For callers.

    def get(self, cluster_id: int, asked: str) -> Link:
        """The link, or ``NotYetLinkError`` that says why there is none. ``asked`` begins the message."""
        with self._changed:
            return self._get(cluster_id, asked)

    @contextmanager
    def using(self, cluster_id: int, asked: str) -> Iterator[Link]:
        """As ``get``; an orderly unlink waits for the body."""
        with self._changed:
            link = self._get(cluster_id, asked)
            link.active += 1
        try:
            yield link
        finally:
            with self._changed:
                link.active -= 1

    def wait_linked(self, cluster_ids: Iterable[int], timeout_s: float) -> None:
        wanted = set(cluster_ids)
        with self._changed:
            if not self._changed.wait_for(lambda: wanted <= self._links.keys(), timeout_s):
                missing = sorted(wanted - self._links.keys())
                why = "; ".join(filter(None, (self._why_none(c) for c in missing)))
                raise refusal(
                    "not_linked_in_time",
                    value=", ".join(map(str, missing)),
                    timeout=timeout_s,
                    why=f": {why}" if why else "",
                )

    def cluster_ids(self) -> list[int]:
        with self._changed:
            return list(self._links)

    def infos(self) -> list[LinkInfo]:
        with self._changed:
            return [
                LinkInfo(
                    link.cluster_id,
                    link.handle,
                    link.peer,
                    "linked" if link.is_accepting else "unlinking",
                    link.transport,
                    link.passed_over,
                )
                for link in self._links.values()
            ]

    def _get(self, cluster_id: int, asked: str) -> Link:
        link = self._links.get(cluster_id)
        if link is not None and link.is_accepting:
            return link
        why = "it is being unlinked" if link else self._why_none(cluster_id)
        raise refusal("no_link_to_cluster", asked=asked, value=cluster_id, why=f": {why}" if why else "")

    def _why_none(self, cluster_id: int) -> str:
        if cluster_id not in self._ended:
            return ""
        reason, when = self._ended[cluster_id]
        return f"{reason} ({time.monotonic() - when:.1f} s ago)"
