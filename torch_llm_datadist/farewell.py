"""Ends links: on request from either end, by a death, and all of them when the instance is finalized."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future

from . import wire
from .errors import LLMStatusCode
from .peer import LinkState, Peer
from .peers import Peers, resolve
from .registry import CacheRegistry

_LEAVE_S = 1.0  # that running transfers have to end when the peer unlinks
_STATUS_POLL_S = 0.1
_DRAIN_POLL_S = 0.01
_DEPARTED_S = 10.0  # that a closed link looks often for the peer's last word
_FROZEN_POLL_S = 2.0  # how often from then on: it is frozen, or cut off


class Farewell:
    def __init__(self, peers: Peers, registry: CacheRegistry) -> None:
        self._peers = peers
        self._table = peers.table
        self._native = peers.native
        self._registry = registry
        self._next_status_poll = 0.0
        self._closed: Future[None] | None = None
        self._close_deadline = 0.0

    # Unlinking.

    def begin(self, cluster_id: int, deadline: float, force: bool, answer: Future[LLMStatusCode]) -> None:
        self.look_for_death(cluster_id)
        peer = self._peers.open(cluster_id)
        if peer is None:
            answer.set_result(LLMStatusCode.LLM_SUCCESS)
        elif force:
            self._peers.end(peer, "unlinked by this end, with force", at_once=True)
            answer.set_result(LLMStatusCode.LLM_SUCCESS)
        else:
            peer.unlinks.append(answer)
            if peer.state == LinkState.LINKED:
                self._leave(peer, LinkState.UNLINKING, deadline)

    def on_bye(self, peer: Peer, message: wire.Bye) -> None:
        if peer.state == LinkState.UNLINKING:
            for answer in peer.unlinks:
                resolve(answer, LLMStatusCode.LLM_SUCCESS)
            self._peers.end(peer, "both ends unlinked")
        else:
            peer.bye_reason = message.reason
            self._leave(peer, LinkState.LEAVING, time.monotonic() + _LEAVE_S)

    def on_closed(self, peer: Peer, message: wire.Closed) -> None:
        peer.is_drained = True
        if peer.is_handshaking:
            self._peers.give_up(peer, message.reason)
        elif peer.state == LinkState.UNLINKING and peer.is_bye_sent:
            self._peers.end(peer, "unlinked by this end")
        elif peer.is_open:
            self._peers.end(peer, f"closed by the peer: {message.reason}")
        else:
            self._peers.forget(peer)

    def _leave(self, peer: Peer, state: LinkState, deadline: float) -> None:
        """No new transfers; those that run may end first."""
        peer.state = state
        peer.deadline = deadline
        self._table.accept(peer.cluster_id, False)
        self._go_on_leaving(peer)

    def _go_on_leaving(self, peer: Peer) -> None:
        if self._table.active(peer.cluster_id):
            return
        if peer.state == LinkState.LEAVING:
            self._peers.end(peer, f"the peer left: {peer.bye_reason}")
        elif not peer.is_bye_sent:
            peer.is_bye_sent = True
            peer.send(wire.Bye("finalized" if self._closed else "unlinked"))

    def on_deadline(self, peer: Peer) -> None:
        if peer.state == LinkState.LEAVING or self._closed:
            self._peers.end(peer, "unlinked; not all of it ended in time", at_once=True)
            return
        # The peer did not answer. The link stays as it was, and the caller may use force.
        peer.state = LinkState.LINKED
        peer.deadline = 0.0
        peer.is_bye_sent = False
        self._table.accept(peer.cluster_id, True)
        unlinks, peer.unlinks = peer.unlinks, []
        for answer in unlinks:
            resolve(answer, LLMStatusCode.LLM_UNLINK_FAILED)

    # Time.

    def tick(self, now: float) -> float | None:
        wanted: list[float | None] = []
        for peer in self._peers:
            if peer.state == LinkState.CLOSED:
                wanted.append(self._look_after_departed(peer, now))
            elif peer.is_open and peer.is_unreachable:
                is_gone = peer.cannot_write()
                why = "its process has exited" if is_gone else "its control connection is lost"
                self._peers.end(peer, why, level=logging.WARNING)
            elif peer.state in (LinkState.UNLINKING, LinkState.LEAVING):
                self._go_on_leaving(peer)
                wanted.append(None if peer.is_bye_sent else _DRAIN_POLL_S)
        if any(peer.is_open for peer in self._peers):
            if now >= self._next_status_poll:
                self._next_status_poll = now + _STATUS_POLL_S
                self._look_for_deaths()
            wanted.append(self._next_status_poll - now)
        self._look_at_close(now)
        return min((w for w in wanted if w is not None), default=None)

    def _look_for_deaths(self) -> None:
        for peer in self._peers:
            # An end that was asked to close is seen as dead shortly before it says so.
            is_answering = peer.is_bye_sent and not peer.cannot_write()
            if peer.is_open and not is_answering:
                self._end_if_dead(peer)

    def look_for_death(self, cluster_id: int) -> None:
        """Ends the link to a cluster now if it is dead, not only at the next poll."""
        peer = self._peers.open(cluster_id)
        if peer is not None and peer.state == LinkState.LINKED:
            self._end_if_dead(peer)

    def _end_if_dead(self, peer: Peer) -> None:
        is_alive, _, what_happened = self._native.link_status(peer.link)
        if not is_alive:
            self._peers.end(peer, what_happened or "it died", level=logging.WARNING)

    def _look_after_departed(self, peer: Peer, now: float) -> float | None:
        """Forgets a peer whose link has ended, once its last word has come or its process is gone."""
        if peer.cannot_write():
            self._peers.forget(peer)
            return None
        if now < peer.departed_at + _DEPARTED_S:
            return _STATUS_POLL_S
        holds_memory = any(peer in held.waiting_for for held in self._registry.held())
        return _STATUS_POLL_S if holds_memory else _FROZEN_POLL_S

    # The end of the instance.

    def begin_close(self, closed: Future[None], deadline: float) -> None:
        self._closed = closed
        self._close_deadline = deadline
        for peer in self._peers:
            if peer.is_handshaking:
                self._peers.fail(peer, LLMStatusCode.LLM_FAILED, "this instance is being finalized")
            elif peer.state == LinkState.LINKED:
                self._leave(peer, LinkState.UNLINKING, deadline)

    def _look_at_close(self, now: float) -> None:
        if self._closed is None or self._closed.done():
            return
        is_linked = any(peer.is_open for peer in self._peers)
        is_late = now >= self._close_deadline
        if is_late:
            for peer in self._peers:
                if peer.is_open:
                    why = "finalized; the peer did not answer in time"
                    self._peers.end(peer, why, level=logging.WARNING, at_once=True)
        if is_late or not (is_linked or self._registry.held()):
            resolve(self._closed, None)
