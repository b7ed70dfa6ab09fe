"""One peer as the control thread sees it: its identity, the state of the link to it, and the channel to reach
it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from . import wire
from .cluster import endpoint
from .errors import LLMStatusCode
from .identity import Identity
from .link_keys import LinkKeys
from .loop import LINGER_MS, ControlLoop

if TYPE_CHECKING:
    from .handshake import Target


class LinkState(Enum):
    """CONNECTING → JOINING → LINKED → UNLINKING (asked the peer to close) or LEAVING (was asked) → CLOSED."""

    CONNECTING = "connecting"
    JOINING = "joining"
    LINKED = "linked"
    UNLINKING = "unlinking"
    LEAVING = "leaving"
    CLOSED = "closed"


class Channel(Protocol):
    def send(self, data: bytes) -> bool:
        """False when the peer cannot be reached any more; never blocks."""

    def close(self) -> None: ...


_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class DealerChannel:
    """The client's end: a socket of its own.

    Attributes:
        on_event: called with (kind, value) when ZeroMQ's own handshake fails; it is tried again.
    """

    def __init__(self, loop: ControlLoop, ip: str, port: int, keys: LinkKeys | None) -> None:
        self._loop = loop
        self.on_event: Callable[[int, int], None] = lambda kind, value: None
        self.socket = loop.socket(zmq.DEALER)
        try:
            if keys is not None:
                keys.protect_client(self.socket)
            self.socket.setsockopt(zmq.IPV6, ":" in ip)
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.setsockopt(zmq.SNDHWM, wire.MAX_QUEUED)
            self.socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES_ON_THE_WAY)
            loop.watch(self.socket, _EVENTS, self._on_event)
            self.socket.connect(f"tcp://{endpoint(ip, port)}")
        except zmq.ZMQError:
            loop.close_socket(self.socket)
            raise

    def _on_event(self, frames: list[zmq.Frame]) -> None:
        event = parse_monitor_message([frame.bytes for frame in frames])
        if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._loop.unwatch(self.socket)
        else:
            self.on_event(event["event"], event["value"])

    def send(self, data: bytes) -> bool:
        return _send(self.socket, wire.split(data))

    def close(self) -> None:
        self._loop.close_socket(self.socket, LINGER_MS)


class RouterChannel:
    """The server's end: one route of the listening socket."""

    def __init__(self, socket: zmq.Socket[bytes], route: bytes) -> None:
        self.socket = socket
        self.route = route

    @property
    def key(self) -> tuple[int, bytes]:
        """Different for every channel, also over several sockets."""
        return id(self.socket), self.route

    def send(self, data: bytes) -> bool:
        return _send(self.socket, [self.route, *wire.split(data)])

    def close(self) -> None:
        pass


def _send(socket: zmq.Socket[bytes], frames: list[bytes]) -> bool:
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.ZMQError:  # the queue is full, or the route is gone
        return False
    return True


@dataclass(eq=False)
class Peer:
    """
    Attributes:
        address: where it listens, or where it came from.
        link: handle of the native link; 0 before there is one.
        announced: caches of this instance that were announced to it.
        remote_caches: caches that it announced, by its cache id; remote_bytes: of what it said of each.
        target: what was greeted, at a client's end; greeted_at: when; opened_before_s: what the control
            thread had spent on opening links until then.
        is_tokenless: it was greeted as an instance of another process, since this one did not listen there.
        closings: how often the connection was closed before the keys of both ends were known.
        deadline: by when the current state must have ended; 0 for a state that may last.
        comm: name of the two-sided link that it is a member of, or "".
        attempt: result of ``link_clusters`` for it, in the states before LINKED.
        unlinks: results of ``unlink_clusters`` for it.
        syncs: answers that are awaited, by serial.
        transport: what the link goes over; passed_over: what was tried first, and why it was not taken.
        is_fenced: either end writes to the other's staging only.
        is_drained: it has closed its end: nothing of it can touch this instance's memory.
        is_cut_off: whether the closed link has taken that from it, without its help.
    """

    cluster_id: int
    address: str
    channel: Channel
    state: LinkState
    deadline: float
    is_client_end: bool
    identity: Identity | None = None
    link: int = 0
    comm: str = ""
    transport: str = "mapped"
    passed_over: str = ""
    is_fenced: bool = False
    announced: set[int] = field(default_factory=set)
    remote_caches: dict[int, wire.CacheRecord] = field(default_factory=dict)
    remote_bytes: dict[int, int] = field(default_factory=dict)
    attempt: Future[LLMStatusCode] | None = None
    unlinks: list[Future[LLMStatusCode]] = field(default_factory=list)
    syncs: dict[int, Future[bool]] = field(default_factory=dict)
    is_bye_sent: bool = False
    bye_reason: str = ""  # why the peer leaves, in its words
    is_unreachable: bool = False
    is_drained: bool = False
    is_cut_off: Callable[[], bool] = lambda: False
    departed_at: float = 0.0
    closings: int = 0
    target: Target | None = None
    greeted_at: float = 0.0
    opened_before_s: float = 0.0
    is_tokenless: bool = False

    def __str__(self) -> str:
        pid = f", pid {self.identity.pid}" if self.identity else ""
        return f"cluster {self.cluster_id} ({self.address}{pid})"

    @property
    def is_handshaking(self) -> bool:
        return self.state in (LinkState.CONNECTING, LinkState.JOINING)

    @property
    def is_open(self) -> bool:
        """This end of the link exists."""
        return self.state in (LinkState.LINKED, LinkState.UNLINKING, LinkState.LEAVING)

    def cannot_write(self) -> bool:
        """Nothing of it can touch this instance's memory any more."""
        if self.is_drained or (self.identity is not None and self.identity.is_gone()):
            return True
        # Before this end is closed, what it has queued itself may still bring bytes of the peer's.
        return self.state == LinkState.CLOSED and self.is_cut_off()

    def send(self, message: wire.Message) -> None:
        if not self.channel.send(wire.encode(message)):
            self.is_unreachable = True
