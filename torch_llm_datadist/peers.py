"""All peers of an instance, and the two ways in which a link to one ends: it never came to be, or it is
closed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, TypeVar

from . import wire
from .errors import LLMStatusCode
from .identity import Identity
from .link_table import LinkTable
from .peer import LinkState, Peer, RouterChannel

if TYPE_CHECKING:
    from . import _C

T = TypeVar("T")
logger = logging.getLogger("torch_llm_datadist")

_GREETS_ANEW = "it greets anew"


def resolve(answer: Future[T] | None, value: T) -> None:
    """Answers a waiter who may have been answered before."""
    if answer is not None:
        with contextlib.suppress(InvalidStateError):
            answer.set_result(value)


class Peers:
    """Every peer whose link is being made, is open, or is closed without the peer's last word."""

    def __init__(self, native: _C.Instance, identity: Identity, table: LinkTable) -> None:
        self.identity = identity
        self.native = native
        self.table = table
        self.by_route: dict[tuple[int, bytes], Peer] = {}
        self._all: list[Peer] = []
        self._odd_messages = 0

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._all))

    def open(self, cluster_id: int) -> Peer | None:
        return next((p for p in self._all if p.cluster_id == cluster_id and p.is_open), None)

    def handshaking(self, cluster_id: int) -> list[Peer]:
        return [p for p in self._all if p.cluster_id == cluster_id and p.is_handshaking]

    def add(self, peer: Peer) -> None:
        self._all.append(peer)
        if isinstance(peer.channel, RouterChannel):
            self.by_route[peer.channel.key] = peer

    def forget(self, peer: Peer) -> None:
        if peer in self._all:
            self._all.remove(peer)
        if isinstance(peer.channel, RouterChannel):
            self.by_route.pop(peer.channel.key, None)
        peer.channel.close()

    def give_up(self, peer: Peer, reason: str) -> None:
        """The peer says that a link that was being made is not to be."""
        why = f"the peer gave up: {reason}"
        self.fail(peer, LLMStatusCode.LLM_LINK_FAILED, why, is_greeting_anew=reason == _GREETS_ANEW)

    def drop(self, peer: Peer) -> None:
        """Whoever waits for the link gets no answer yet: the target is greeted through another connection."""
        self._close(peer, _GREETS_ANEW)

    def fail(self, peer: Peer, code: LLMStatusCode, reason: str, *, is_greeting_anew: bool = False) -> None:
        """A link that was being made is not to be."""
        where = "linking" if peer.is_client_end else "a link asked for by a peer"
        is_late = bool(peer.deadline) and time.monotonic() >= peer.deadline
        is_to_be_tried_again = is_greeting_anew or (
            bool(peer.comm) and (is_late or code == LLMStatusCode.LLM_PROCESSING_LINK)
        )
        logger.log(
            logging.DEBUG if is_to_be_tried_again else logging.WARNING,
            "%s: %s: %s (%s)",
            where,
            peer,
            reason,
            code.name,
        )
        self.table.remember_end(peer.cluster_id, f"the link to {peer} was not made: {reason}")
        attempt = peer.attempt
        self._close(peer, reason)
        resolve(attempt, code)

    def end(self, peer: Peer, reason: str, *, level: int = logging.INFO, at_once: bool = False) -> None:
        """Closes this end of an open link, says so to the peer, and answers all who wait for it.

        ``at_once``: what runs on it is not waited for.
        """
        logger.log(level, "the link to %s ended: %s", peer, reason)
        self.table.remember_end(peer.cluster_id, f"the link to {peer} ended: {reason}")
        was_asked = peer.state == LinkState.UNLINKING
        code = (
            LLMStatusCode.LLM_SUCCESS if peer.is_drained or not was_asked else LLMStatusCode.LLM_UNLINK_FAILED
        )
        unlinks, syncs = peer.unlinks, list(peer.syncs.values())
        peer.unlinks, peer.syncs = [], {}
        self._close(peer, reason, at_once)
        for answer in unlinks:
            resolve(answer, code)
        for waiter in syncs:
            resolve(waiter, False)

    def _close(self, peer: Peer, reason: str, at_once: bool = False) -> None:
        peer.state = LinkState.CLOSED
        peer.deadline = 0.0
        peer.departed_at = time.monotonic()
        if peer.link:
            self.table.remove(peer.cluster_id, peer.link)
            try:
                self.native.close_link(peer.link, 0 if at_once else None)
            except Exception:
                logger.exception("closing the link to %s failed", peer)
        peer.send(wire.Closed(reason[:4096]))
        if peer.is_drained or not peer.announced:
            self.forget(peer)

    def log_odd(self, sender: object, what: str) -> None:
        """Dropped messages are counted; the first, second, fourth, … is logged, so that nobody can flood the
        log.
        """
        self._odd_messages += 1
        if self._odd_messages & (self._odd_messages - 1) == 0:
            logger.warning("dropped %s from %s (%d so far)", what, sender, self._odd_messages)
