"""Makes a link: HELLO, WELCOME, JOIN, JOINED, from either end. Memory is exported only after WELCOME."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import zmq

from . import process_token, wire
from .announcements import Announcements, segment_record
from .checks import as_int64
from .cluster import endpoint
from .errors import LLMException, LLMStatusCode
from .identity import Identity, Refusal, different_versions, may_share_super_pod, why_not_link
from .link_keys import LinkKeys
from .link_secret import SECRET_VARIABLE
from .link_table import Link
from .loop import ControlLoop
from .messages import coded, refusal
from .peer import Channel, DealerChannel, LinkState, Peer
from .peers import Peers, resolve
from .transports import choose

logger = logging.getLogger("torch_llm_datadist")

MAX_LINKS = 512
_MAX_HANDSHAKES = 256  # that a server has under way at one time
_MAX_CLOSINGS = 3  # of one connection in the handshake of ZeroMQ, one after the other
_HANDSHAKE_S = 5.0  # that a server gives a client between HELLO and JOIN


@dataclass(frozen=True)
class Target:
    """A peer to link to, and where it listens."""

    cluster_id: int
    ip: str
    port: int
    comm: wire.CommRecord | None = None
    fenced: bool = False


def _nobody_joins(comm: wire.CommRecord, cluster_id: int) -> tuple[LLMStatusCode, str] | None:
    return coded("nobody_joins_here", value=repr(comm.name))


def _why_not_this_process(own: Identity, identity: Identity, shown: bytes, expected: bytes) -> Refusal | None:
    """Its addresses would be used as they are, and it would be told ours."""
    claims_it = own.is_in_this_process() and identity.is_in_this_process()
    if not claims_it or process_token.is_right(shown, expected):
        return None
    return Refusal(*coded("not_in_this_process", cluster_id=identity.cluster_id, value=identity.pid))


class Handshake:
    def __init__(
        self,
        peers: Peers,
        announcements: Announcements,
        loop: ControlLoop,
        keys: LinkKeys | None,
        begin_again: Callable[[Target, float, Future[LLMStatusCode]], None],
    ) -> None:
        """``begin_again``: makes a peer that greets the target anew."""
        self._peers = peers
        self._own = peers.identity
        self._native = peers.native
        self._announcements = announcements
        self._loop = loop
        self._keys = keys
        self._begin_again = begin_again
        self.is_refusing = False
        self._opened_s = 0.0  # that this thread has spent on opening links
        # Whether a member of a two-sided link is expected; set by ``Control``.
        self.why_not_join: Callable[[wire.CommRecord, int], tuple[LLMStatusCode, str] | None] = _nobody_joins

    # The client's end.

    def begin(self, target: Target, deadline: float, answer: Future[LLMStatusCode]) -> Peer | None:
        """Greets a server; returns the peer to read from, or None when that is over already."""
        refusal = self._why_not_begin(target)
        if refusal is not None:
            logger.warning(
                "link_clusters: cluster %d: %s (%s)", target.cluster_id, refusal.reason, refusal.code.name
            )
            answer.set_result(refusal.code)
            return None
        address = endpoint(target.ip, target.port)
        try:
            channel = DealerChannel(self._loop, target.ip, target.port, self._keys)
        except zmq.ZMQError as error:
            logger.warning("link_clusters: cluster %d at %s: %s", target.cluster_id, address, error.strerror)
            answer.set_result(LLMStatusCode.LLM_LINK_FAILED)
            return None
        peer = Peer(target.cluster_id, address, channel, LinkState.CONNECTING, deadline, True, attempt=answer)
        channel.on_event = partial(self._on_connection_failed, peer)
        peer.comm = target.comm.name if target.comm else ""
        peer.is_fenced = target.fenced
        self._peers.add(peer)
        token = b""
        if process_token.is_here(target.ip, target.port):
            token = process_token.of_hello(self._own.instance, target.cluster_id)
        peer.target, peer.is_tokenless = target, not token
        peer.greeted_at, peer.opened_before_s = time.monotonic(), self._opened_s
        peer.send(
            wire.Hello(
                wanted_cluster_id=target.cluster_id,
                identity=self._own,
                comm=target.comm,
                token=token,
                fenced=target.fenced,
            )
        )
        return peer

    def _on_connection_failed(self, peer: Peer, kind: int, value: int) -> None:
        """ZeroMQ's own handshake failed. One that has another secret is not told so: the connection is just
        closed, as it is by a listener that is ending; so it is tried a few times.
        """
        if peer.state != LinkState.CONNECTING:
            return
        peer.closings += 1
        is_named = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
        if is_named and kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            has, lacks = "this instance", "the peer"
            if self._keys is None:
                has, lacks = lacks, has
            why = coded("only_one_secret", value=has, lacks=lacks)[1]
            self._peers.fail(peer, LLMStatusCode.LLM_LINK_FAILED, why)
        elif peer.closings >= _MAX_CLOSINGS or kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._peers.fail(peer, LLMStatusCode.LLM_LINK_FAILED, self.why_no_answer(peer))

    def why_no_answer(self, peer: Peer) -> str:
        if not peer.closings:
            return coded("nobody_answers", value="no answer in time")[1]
        if self._keys is None:
            return coded("closes_without_a_word", value=peer.closings)[1]
        return coded("secret_is_refused", value=peer.closings, variable=SECRET_VARIABLE)[1]

    def _why_not_begin(self, target: Target) -> Refusal | None:
        if self.is_refusing:
            return Refusal(*coded("instance_is_ending", value="this instance"))
        if target.cluster_id == self._own.cluster_id:
            return Refusal(*coded("link_to_itself", value=target.cluster_id))
        if self._peers.open(target.cluster_id):
            return Refusal(*coded("linked_already", value=target.cluster_id, by=""))
        if self._peers.handshaking(target.cluster_id):
            return Refusal(*coded("link_is_being_made", value=target.cluster_id))
        return self._why_full()

    def _why_full(self) -> Refusal | None:
        if sum(peer.is_open for peer in self._peers) >= MAX_LINKS:
            return Refusal(*coded("links_are_full", cluster_id=self._own.cluster_id, value=MAX_LINKS))
        return None

    def on_welcome(self, peer: Peer, message: wire.Welcome) -> None:
        peer.identity = message.identity
        if message.identity.cluster_id != peer.cluster_id:
            found = message.identity.cluster_id
            self._peers.fail(peer, *coded("other_instance_there", value=peer.cluster_id, found=found))
            return
        expected = process_token.of_welcome(message.identity.instance, self._own.instance)
        refusal = why_not_link(self._own, message.identity) or _why_not_this_process(
            self._own, message.identity, message.token, expected
        )
        if refusal is not None:
            self._peers.fail(peer, refusal.code, refusal.reason)
            return
        if self._opened_s - peer.opened_before_s > _HANDSHAKE_S / 2:
            # Engines are made one after the other. While others were, this server's time has nearly run out.
            self.greet_again(peer)
            return
        self._warn_of_versions(peer, message.identity)
        peer.state = LinkState.JOINING
        with self._opening():
            page, proofs = self._open_link(peer)
            address = self._native.link_address(peer.link)
            caches = self._announcements.export_to(peer)
        peer.send(wire.Join(peer.link, page, caches, peer.transport, address, proofs))

    def on_refused(self, peer: Peer, message: wire.Refused) -> None:
        target = peer.target
        if target is not None and peer.is_tokenless and process_token.is_here(target.ip, target.port):
            # This process listens there by now. Whoever refused may be somebody else, who had the address
            # before: the token goes through a connection that is made now.
            self.greet_again(peer)
            return
        try:
            code = LLMStatusCode(message.code) or LLMStatusCode.LLM_LINK_FAILED
        except ValueError:
            code = LLMStatusCode.LLM_LINK_FAILED
        self._peers.fail(peer, code, f"it refused: {message.reason}")

    def has_run_out(self, peer: Peer) -> bool:
        """Of a client's end: what a server gives between HELLO and JOIN is over."""
        return peer.is_client_end and time.monotonic() - peer.greeted_at >= _HANDSHAKE_S

    def greet_again(self, peer: Peer) -> None:
        """Through a connection of its own, with what is left of the caller's time."""
        target, attempt, deadline = peer.target, peer.attempt, peer.deadline
        assert target is not None
        assert attempt is not None
        self._peers.drop(peer)
        self._begin_again(target, deadline, attempt)

    def on_joined(self, peer: Peer, message: wire.Joined) -> None:
        self._connect(peer, message)
        self._linked(peer)

    # The server's end.

    def on_hello(self, message: wire.Hello, channel: Channel, address: str) -> None:
        client = message.identity
        refusal = self._why_refuse(message)
        if refusal is not None:
            is_early = message.comm is not None and refusal.code == LLMStatusCode.LLM_PROCESSING_LINK
            logger.log(
                logging.DEBUG if is_early else logging.WARNING,
                "refused a link to cluster %d (%s, pid %d): %s",
                client.cluster_id,
                address,
                client.pid,
                refusal.reason,
            )
            channel.send(wire.encode(wire.Refused(refusal.code, refusal.reason)))
            return
        deadline = time.monotonic() + _HANDSHAKE_S
        peer = Peer(
            client.cluster_id, address, channel, LinkState.CONNECTING, deadline, False, identity=client
        )
        peer.comm = message.comm.name if message.comm else ""
        peer.is_fenced = message.fenced
        self._peers.add(peer)
        token = b""
        if client.is_in_this_process():
            token = process_token.of_welcome(self._own.instance, client.instance)
        peer.send(wire.Welcome(identity=self._own, token=token))

    def _why_refuse(self, message: wire.Hello) -> Refusal | None:
        client = message.identity
        if self.is_refusing:
            return Refusal(*coded("peer_is_ending", value=f"cluster {self._own.cluster_id}"))
        if message.wanted_cluster_id != self._own.cluster_id:
            wanted, found = message.wanted_cluster_id, self._own.cluster_id
            return Refusal(*coded("other_instance_there", value=wanted, found=found))
        if message.comm is not None:
            refused = self.why_not_join(message.comm, client.cluster_id)
            if refused is not None:
                return Refusal(*refused)
        if sum(peer.is_handshaking and not peer.is_client_end for peer in self._peers) >= _MAX_HANDSHAKES:
            return Refusal(*coded("too_many_handshakes", value=_MAX_HANDSHAKES))
        expected = process_token.of_hello(client.instance, self._own.cluster_id)
        return (
            why_not_link(self._own, client)
            or _why_not_this_process(self._own, client, message.token, expected)
            or self._why_full()
            or self._why_crossing(client)
        )

    def _why_crossing(self, client: Identity) -> Refusal | None:
        """Two instances that link to each other at the same time: the attempt of the lower cluster_id goes
        on.
        """
        is_calling = any(peer.is_client_end for peer in self._peers.handshaking(client.cluster_id))
        if is_calling and self._own.cluster_id < client.cluster_id:
            return Refusal(*coded("links_cross", value=self._own.cluster_id, peer=client.cluster_id))
        return None

    def on_join(self, peer: Peer, message: wire.Join) -> None:
        holder = self._other_holder(peer)
        if holder is not None:
            code, reason = coded("linked_already", value=peer.cluster_id, by=f", by {holder}")
            peer.send(wire.Refused(code, reason))
            self._peers.fail(peer, code, reason)
            return
        assert peer.identity is not None
        self._warn_of_versions(peer, peer.identity)
        peer.state = LinkState.JOINING
        try:
            with self._opening():
                page, proofs = self._open_link(peer)
                address = self._native.link_address(peer.link)
                self._connect(peer, message)
                caches = self._announcements.export_to(peer)
            joined = wire.Joined(peer.link, page, caches, peer.transport, address, proofs)
        except Exception as error:
            code = error.status_code if isinstance(error, LLMException) else LLMStatusCode.LLM_LINK_FAILED
            peer.send(wire.Refused(code, str(error)[:4096]))
            raise
        self._linked(peer, joined)

    def _other_holder(self, peer: Peer) -> Peer | None:
        """Who holds the link of that cluster and is still alive. A stale link of the same client is ended."""
        old = self._peers.open(peer.cluster_id)
        if old is None or old.identity is None or peer.identity is None:
            return None
        if old.identity.instance == peer.identity.instance:
            # It asks because it has no link any more, so its end is closed.
            old.is_drained = True
            self._peers.end(old, "the peer has closed its end and links anew")
        elif old.identity.is_gone() or not self._native.link_status(old.link)[0]:
            self._peers.end(old, "a new instance of the peer links", level=logging.WARNING)
        else:
            return old
        return None

    # Both ends.

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._opened_s += time.monotonic() - began

    def _open_link(self, peer: Peer) -> tuple[wire.SegmentRecord, wire.SegmentRecord | None]:
        identity = peer.identity
        assert identity is not None
        choice = choose(self._own, identity)
        peer.transport, peer.passed_over = choice.name, choice.passed_over
        peer.link, page = self._native.open_link(
            as_int64(peer.cluster_id),
            str(peer),
            identity.device,
            identity.pid,
            identity.start_time,
            identity.is_in_this_process(),
            peer.is_fenced,
            identity.host == self._own.host,
            may_share_super_pod(self._own, identity),
            peer.transport,
        )
        peer.is_cut_off = self._native.cut_off_of(peer.link)
        proofs = self._native.export_proofs(peer.link)
        return segment_record(page, peer), None if proofs is None else segment_record(proofs, peer)

    def _connect(self, peer: Peer, message: wire.Join | wire.Joined) -> None:
        if message.transport != peer.transport:
            raise refusal(
                "transports_differ", peer=peer, value=repr(message.transport), own=repr(peer.transport)
            )
        page = self._announcements.segment(message.page)
        proofs = None if message.proofs is None else self._announcements.segment(message.proofs)
        self._native.connect_link(peer.link, message.link, page, message.address, proofs)
        for record in message.caches:
            self._announcements.learn(peer, record)

    def _linked(self, peer: Peer, answer: wire.Joined | None = None) -> None:
        """The server's callers find the link before the client's do: ``answer`` lets the client go on."""
        assert peer.identity is not None
        for old in self._peers:
            is_stale = old.state == LinkState.CLOSED and old.identity is not None
            if is_stale and old.identity and old.identity.instance == peer.identity.instance:
                old.is_drained = True  # the peer has closed its old end before it made this one
        peer.state = LinkState.LINKED
        peer.deadline = 0.0
        self._peers.table.add(
            Link(
                peer.cluster_id,
                peer.link,
                f"{peer.address}, pid {peer.identity.pid}",
                peer.remote_caches,
                peer.transport,
                peer.passed_over,
            )
        )
        if answer is not None:
            peer.send(answer)
        self._announcements.catch_up(peer)
        passed_over = f" ({peer.passed_over})" if peer.passed_over else ""
        logger.info("linked to %s over %s%s", peer, peer.transport, passed_over)
        resolve(peer.attempt, LLMStatusCode.LLM_SUCCESS)

    def _warn_of_versions(self, peer: Peer, identity: Identity) -> None:
        differences = different_versions(self._own, identity)
        if differences:
            logger.warning("%s runs other versions: %s", peer, differences)
