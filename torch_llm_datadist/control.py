"""The control thread of an instance: reads messages, hands each to its handler, keeps the deadlines."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import zmq

from . import wire
from .announcements import Announcements, segment_record
from .arrivals import Arrivals, Tag
from .cluster import endpoint
from .comms import Comms
from .errors import (
    EngineFailedError,
    LinkFailedError,
    LLMException,
    LLMStatusCode,
)
from .farewell import Farewell
from .gatekeeper import Gatekeeper
from .handshake import Handshake, Target
from .identity import Identity, why_not_protocol
from .link_keys import LinkKeys
from .link_table import LinkTable
from .loop import LINGER_MS, ControlLoop
from .messages import refusal
from .peer import LinkState, Peer, RouterChannel
from .peers import Peers, resolve
from .rank_table import CommRequest
from .registry import CacheRegistry, HeldCache, LocalCache

if TYPE_CHECKING:
    from . import _C

logger = logging.getLogger("torch_llm_datadist")

_CLOSING_S = 1.0  # that a closed socket may keep its port


@dataclass(frozen=True)
class Listener:
    socket: zmq.Socket[bytes]
    ip: str
    port: int


class Control:
    """Everything but ``loop``, ``table`` and ``lost_peers`` is for the control thread only."""

    def __init__(
        self,
        native: _C.Instance,
        make_segment: Callable[[bytes, int, int, int], _C.Segment],
        identity: Identity,
        registry: CacheRegistry,
        keys: LinkKeys | None,
        make_loop: Callable[[str, Callable[[], float | None]], ControlLoop] = ControlLoop,
    ) -> None:
        self.arrivals = Arrivals()
        self.table = LinkTable(self.arrivals)
        self._native = native
        self._peers = Peers(native, identity, self.table)
        self._announcements = Announcements(native, make_segment, registry)
        self._farewell = Farewell(self._peers, registry)
        self._listener: Listener | None = None  # listen_ip_info
        self._meetings: dict[tuple[str, int], Listener] = {}  # where members of two-sided links meet
        self._serials = itertools.count(1)
        self.comms = Comms(self._peers, self.begin_link, self._listen_for_members)
        self.loop = make_loop(f"llm_datadist-{identity.cluster_id}", self._tick)
        self._gatekeeper = Gatekeeper(self.loop, keys)
        self._handshake = Handshake(self._peers, self._announcements, self.loop, keys, self.begin_link)
        self._handshake.why_not_join = self.comms.why_not_join

    def lost_peers(self) -> list[tuple[int, int, str]]:
        """For any thread: see ``LinkService``."""
        return [
            (peer.cluster_id, peer.link, f"{peer} was lost and may still write")
            for peer in self._peers
            if peer.link
            and not peer.is_fenced  # what it still writes lands in staging that nobody reads
            and self._is_over(peer)
            and not peer.cannot_write()
        ]

    def _is_over(self, peer: Peer) -> bool:
        """A link that died is over before the control thread has had a look at it."""
        if peer.state == LinkState.CLOSED:
            return True
        try:
            return peer.is_open and not self._native.link_status(peer.link)[0]
        except LLMException:  # it has just been closed
            return True

    # Requests.

    def listen(self, ip: str, port: int) -> int:
        """Starts to listen, or moves to another address; returns the port."""
        old = self._listener
        if old is not None and (old.ip, old.port) == (ip, port):
            return port
        is_same_port = old is not None and old.port == port
        if is_same_port:
            self.stop_listening()  # the new address may contain the old one
        listener = self._open(ip, port, "listen_ip_info", _CLOSING_S if is_same_port else 0.0)
        self.stop_listening()
        self._listener = listener
        return listener.port

    def stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._gatekeeper.close(listener.socket)
            self.loop.close_socket(listener.socket, LINGER_MS)

    def switch_role(self, listen: tuple[str, int] | None) -> int | None:
        """Listens there, or nowhere; returns the port. ``ExistLinkError`` while there is a link."""
        for peer in self._peers:
            self._farewell.look_for_death(peer.cluster_id)
        linked = sorted({peer.cluster_id for peer in self._peers if peer.is_open or peer.is_handshaking})
        if linked:
            raise refusal("links_forbid_switch_role", value=linked)
        if listen is None:
            self.stop_listening()
            return None
        return self.listen(*listen)

    def _listen_for_members(self, ip: str, port: int) -> None:
        """From now on: members of a later two-sided link find this instance at the same place."""
        if (ip, port) in self._meetings:
            return
        try:
            self._meetings[ip, port] = self._open(ip, port, "the rank table and link_port")
        except EngineFailedError as error:
            raise LinkFailedError(str(error).replace("init:", "link:", 1)) from None

    def _open(self, ip: str, port: int, setting: str, patience_s: float = 0.0) -> Listener:
        """``patience_s``: an own socket at that port is still being closed."""
        router = self.loop.socket(zmq.ROUTER)
        router.setsockopt(zmq.IPV6, ":" in ip)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.SNDHWM, wire.MAX_QUEUED)
        router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES_ON_THE_WAY)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gatekeeper.protect(router)
        try:
            _bind(router, f"tcp://{endpoint(ip, port)}", patience_s)
        except zmq.ZMQError as error:
            self._gatekeeper.close(router)
            self.loop.close_socket(router)
            raise refusal(
                "cannot_listen", value=endpoint(ip, port), setting=setting, why=error.strerror
            ) from None
        self.loop.on_message(router, partial(self._on_router_message, router))
        bound = router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        listener = Listener(router, ip, int(bound.rstrip(b"\0").rpartition(b":")[2]))
        self._gatekeeper.open(router, ip, listener.port)
        return listener

    def begin_link(self, target: Target, deadline: float, answer: Future[LLMStatusCode]) -> None:
        self._farewell.look_for_death(target.cluster_id)
        peer = self._handshake.begin(target, deadline, answer)
        if peer is not None:
            self.loop.on_message(peer.channel.socket, partial(self._on_dealer_message, peer))  # type: ignore[attr-defined]

    def begin_comm(self, request: CommRequest, deadline: float) -> int:
        for cluster_id in request.members:
            self._farewell.look_for_death(cluster_id)
        return self.comms.begin(request, deadline)

    def begin_unlink(
        self, cluster_id: int, deadline: float, force: bool, answer: Future[LLMStatusCode]
    ) -> None:
        self._farewell.begin(cluster_id, deadline, force, answer)

    def tell_pushed(self, cluster_id: int, tag: Tag, code: int, detail: str) -> None:
        peer = self._peers.open(cluster_id)
        if peer is not None:
            peer.send(wire.Pushed(tag, code, detail[:4096]))

    def begin_sync(self, cluster_id: int, answer: Future[bool]) -> None:
        peer = self._peers.open(cluster_id)
        if peer is None:
            resolve(answer, False)
            return
        serial = next(self._serials)
        peer.syncs[serial] = answer
        peer.send(wire.Sync(serial))

    def begin_taken(self, cluster_id: int, message: wire.Taken, answer: Future[bool]) -> None:
        """Tells a peer what was pulled; the answer comes when the peer has acted on it."""
        peer = self._peers.open(cluster_id)
        if peer is not None:
            peer.send(message)
        self.begin_sync(cluster_id, answer)

    def begin_close(self, closed: Future[None], deadline: float) -> None:
        self._handshake.is_refusing = True
        self._gatekeeper.close_all()
        self._farewell.begin_close(closed, deadline)

    def announce(self, local: LocalCache) -> None:
        self._announcements.announce(local, self._peers)

    def announce_staging(self, link: int, memory: _C.Segment, size_bytes: int) -> None:
        for peer in self._peers:
            if peer.link == link and peer.is_open:
                peer.send(wire.Staging(segment_record(memory, peer), size_bytes))

    def announce_keys(self, cache_id: int) -> None:
        self._announcements.announce_keys(cache_id, self._peers)

    def withdraw(self, held: HeldCache) -> None:
        self._announcements.withdraw(held, self._peers)

    def hold(self, all_held: Sequence[HeldCache]) -> None:
        self._announcements.hold(all_held, self._peers)

    # Time.

    def _tick(self) -> float | None:
        now = time.monotonic()
        wanted = [self._announcements.tick(), self._farewell.tick(now), self.comms.tick(now)]
        for peer in self._peers:
            if peer.deadline and now >= peer.deadline:
                self._on_deadline(peer)
        wanted += [peer.deadline - now for peer in self._peers if peer.deadline]
        return min((max(0.0, w) for w in wanted if w is not None), default=None)

    def _on_deadline(self, peer: Peer) -> None:
        if peer.is_open:
            self._farewell.on_deadline(peer)
        elif peer.state == LinkState.CONNECTING and peer.is_client_end:
            self._peers.fail(peer, LLMStatusCode.LLM_LINK_FAILED, self._handshake.why_no_answer(peer))
        else:
            self._peers.fail(peer, LLMStatusCode.LLM_TIMEOUT, "the handshake did not end in time")

    # Messages.

    def _on_router_message(self, router: zmq.Socket[bytes], frames: list[zmq.Frame]) -> None:
        route, *parts = frames
        if not parts:
            self._peers.log_odd("an unknown sender", "a message without a frame")
            return
        self._gatekeeper.on_message(router, parts[0])
        channel = RouterChannel(router, route.bytes)
        peer = self._peers.by_route.get(channel.key)
        address = _address_of(parts[0])
        try:
            message = wire.decode(wire.join(parts))
        except wire.MalformedMessageError as error:
            self._peers.log_odd(peer or address, f"a malformed message ({error})")
        except wire.OtherProtocolError as error:
            refusal = why_not_protocol(error.version)
            self._peers.log_odd(peer or address, refusal.reason)
            channel.send(wire.encode(wire.Refused(refusal.code, refusal.reason)))
        else:
            if peer is not None:
                self._on_peer_message(peer, message)
            elif isinstance(message, wire.Hello) and message.comm is None and self._is_meeting(router):
                channel.send(
                    wire.encode(
                        wire.Refused(
                            LLMStatusCode.LLM_LINK_FAILED,
                            "members of two-sided links meet there; link_clusters needs the address of "
                            "listen_ip_info",
                        )
                    )
                )
            elif isinstance(message, wire.Hello):
                self._handshake.on_hello(message, channel, address)
            elif not isinstance(message, wire.Closed):
                self._peers.log_odd(address, f"{type(message).__name__} without a link")
                channel.send(wire.encode(wire.Closed("this instance knows no link on that connection")))

    def _is_meeting(self, router: zmq.Socket[bytes]) -> bool:
        return any(listener.socket is router for listener in self._meetings.values())

    def _on_dealer_message(self, peer: Peer, frames: list[zmq.Frame]) -> None:
        try:
            message = wire.decode(wire.join(frames))
        except wire.MalformedMessageError as error:
            self._peers.log_odd(peer, f"a malformed message ({error})")
        except wire.OtherProtocolError as error:
            refusal = why_not_protocol(error.version)
            if peer.is_handshaking:
                self._peers.fail(peer, refusal.code, refusal.reason)
        else:
            self._on_peer_message(peer, message)

    def _on_peer_message(self, peer: Peer, message: wire.Message) -> None:
        try:
            self._dispatch(peer, message)
        except Exception as error:
            code = error.status_code if isinstance(error, LLMException) else LLMStatusCode.LLM_LINK_FAILED
            logger.debug("%s: %s failed", peer, type(message).__name__, exc_info=True)
            reason = f"{type(message).__name__.lower()} failed: {error}"
            if peer.is_handshaking:
                self._peers.fail(peer, code, reason)
            elif peer.is_open:
                self._peers.end(peer, reason, level=logging.WARNING)

    def _dispatch(self, peer: Peer, message: wire.Message) -> None:
        is_client_end, is_open = peer.is_client_end, peer.is_open
        match message, peer.state:
            case wire.Closed(), _ if peer.is_handshaking and self._handshake.has_run_out(peer):
                peer.is_drained = True
                self._handshake.greet_again(peer)
            case wire.Closed(), _:
                self._farewell.on_closed(peer, message)
            case wire.Welcome(), LinkState.CONNECTING if is_client_end:
                self._handshake.on_welcome(peer, message)
            case wire.Refused(), (LinkState.CONNECTING | LinkState.JOINING) if is_client_end:
                self._handshake.on_refused(peer, message)
            case wire.Joined(), LinkState.JOINING if is_client_end:
                self._handshake.on_joined(peer, message)
            case wire.Join(), LinkState.CONNECTING if not is_client_end:
                self._handshake.on_join(peer, message)
            case wire.Announce(), _ if is_open:
                self._announcements.learn(peer, message.cache)
            case wire.Withdraw(), _ if is_open:
                self._announcements.on_withdraw(peer, message.cache_id)
            case wire.Withdrawn(), _ if is_open:
                self._announcements.on_withdrawn(peer, message.cache_id)
            case wire.Keys(), _ if is_open:
                self._announcements.learn_keys(peer, message)
            case wire.Taken(), _ if is_open:
                self._announcements.on_taken(peer, message)
            case wire.Sync(), _ if is_open:
                # What was registered before the question was asked is announced before the answer.
                self.loop.run_commands()
                peer.send(wire.Synced(message.serial))
            case wire.Synced(), _ if is_open:
                resolve(peer.syncs.pop(message.serial, None), True)
            case wire.Pushed(), _ if is_open:
                self.arrivals.add(peer.cluster_id, message.tag, message.code, message.detail)
            case wire.Staging(), _ if is_open:
                self._announcements.learn_staging(peer, message)
            case wire.Bye(), _ if is_open:
                self._farewell.on_bye(peer, message)
            case _, LinkState.CLOSED:
                pass  # it was under way when this end was closed
            case _:
                self._peers.log_odd(peer, f"{type(message).__name__} while {peer.state.value}")


def _bind(socket: zmq.Socket[bytes], address: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.bind(address)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


def _address_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown address"
