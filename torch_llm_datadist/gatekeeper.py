"""Who may talk to the listening sockets of an instance: checks the key of each connection, names in the log
what was refused, and bounds how many connections there are that have not said anything yet.

Everything here runs on the control thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import resource
import socket
from dataclasses import dataclass, field

import zmq
from zmq.utils.monitor import parse_monitor_message

from . import process_token
from .cluster import endpoint
from .link_keys import LinkKeys
from .link_secret import SECRET_VARIABLE
from .loop import ControlLoop

logger = logging.getLogger("torch_llm_datadist")

HANDSHAKE_MS = 2000  # that a connection may take until its keys are checked
MAX_SILENT = 512  # connections without a first message; the oldest is closed for the next one
_BACKLOG = 1024  # that the kernel keeps; where it is full, the next one waits for a second
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Gatekeeper:
    """
    Args:
        keys: None for an instance without a secret: it takes whoever comes.
    """

    def __init__(self, loop: ControlLoop, keys: LinkKeys | None) -> None:
        self._loop = loop
        self._keys = keys
        self._doors: dict[zmq.Socket[bytes], _Door] = {}
        self._max_silent = min(MAX_SILENT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._refused = 0
        self._has_warned = False
        self._asked: zmq.Socket[bytes] | None = None

    def protect(self, router: zmq.Socket[bytes]) -> None:
        """A listening socket, before it is bound."""
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.BACKLOG, _BACKLOG)
        if self._keys is not None:
            self._answer_for_keys()
            self._keys.protect_server(router)
        door = self._doors[router] = _Door()
        self._loop.watch(router, _EVENTS, lambda frames: self._on_event(door, frames))

    def open(self, router: zmq.Socket[bytes], ip: str, port: int) -> None:
        """It is bound, there."""
        self._doors[router].ip, self._doors[router].port = ip, port
        process_token.listens(ip, port)
        if self._keys is None and not _is_loopback(ip) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "listening at %s without a link_secret: whoever reaches that address may link, and read and "
                "write all memory that is registered here; set LLMConfig.link_secret or %s, or listen at "
                "127.0.0.1",
                endpoint(ip, port),
                SECRET_VARIABLE,
            )

    def close_all(self) -> None:
        """The sockets are closed by whoever owns them."""
        for router in list(self._doors):
            self.close(router)

    def close(self, router: zmq.Socket[bytes]) -> None:
        door = self._doors.pop(router, None)
        if door is not None and door.ip:
            process_token.listens_no_more(door.ip, door.port)

    def on_message(self, router: zmq.Socket[bytes], frame: zmq.Frame) -> None:
        """The sender of the message has passed all checks: its connection is not closed for another's."""
        door = self._doors.get(router)
        fd = _fd_of(frame)
        if door is None or fd is None or fd in door.speaking:
            return
        self._loop.read_events(router)  # its arrival may not have been read yet
        door.silent.pop(fd, None)
        door.speaking.add(fd)

    def _on_event(self, door: _Door, frames: list[zmq.Frame]) -> None:
        event = parse_monitor_message([frame.bytes for frame in frames])
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_ACCEPTED:
            door.speaking.discard(value)
            door.silent[value] = None
            if len(door.silent) > self._max_silent:
                oldest = next(iter(door.silent))
                del door.silent[oldest]
                _shut_down(oldest, door.port)
        elif kind == zmq.EVENT_DISCONNECTED:
            door.silent.pop(value, None)
            door.speaking.discard(value)
        else:
            self._log_refusal(door, kind, value)

    def _log_refusal(self, door: _Door, kind: int, value: int) -> None:
        """The first, second, fourth, … is logged, so that nobody can flood the log."""
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:
            why = self._why_refused(kind, value)
            logger.warning(
                "refused a connection to %s: %s (%d so far)", endpoint(door.ip, door.port), why, self._refused
            )

    def _why_refused(self, kind: int, value: int) -> str:
        if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            same = "has it the same link_secret?"
            return f"it ended in the handshake, or was silent for {HANDSHAKE_MS} ms; {same}"
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            needs = "it has no link_secret, and this instance needs one"
            return needs if self._keys else "it has a link_secret, and this instance has none"
        if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC or kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "it has another link_secret"
        return f"it speaks another protocol (0x{value:x})"

    # RFC 27: libzmq asks here for each connection whose keys fit so far.

    def _answer_for_keys(self) -> None:
        if self._asked is None:
            self._asked = self._loop.socket(zmq.REP)
            self._asked.bind(_ZAP_ADDRESS)
            self._loop.on_message(self._asked, self._on_request)

    def _on_request(self, frames: list[zmq.Frame]) -> None:
        assert self._asked is not None
        parts = [frame.bytes for frame in frames]
        is_known = (
            len(parts) == 7
            and parts[5] == b"CURVE"
            and self._keys is not None
            and self._keys.is_client(parts[6])
        )
        code, text = (b"200", b"OK") if is_known else (b"400", b"another link_secret")
        request_id = parts[1] if len(parts) > 1 else b""
        self._asked.send_multipart([b"1.0", request_id, code, text, b"", b""])


@dataclass(eq=False)
class _Door:
    """One listening socket. Its connections go by their file descriptors.

    Attributes:
        silent: those that no message came from yet, the oldest first.
    """

    ip: str = ""
    port: int = 0
    silent: dict[int, None] = field(default_factory=dict)
    speaking: set[int] = field(default_factory=set)


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip.partition("%")[0]).is_loopback


def _fd_of(frame: zmq.Frame) -> int | None:
    try:
        return int(frame.get("__fd"))
    except (zmq.ZMQError, ValueError):
        return None


def _shut_down(fd: int, port: int) -> None:
    """Ends a connection of libzmq's, which then closes it. It may have ended by itself, and its number be
    that of another file by now: only a connection to that port is touched.
    """
    with contextlib.suppress(OSError):
        copy = os.dup(fd)
        try:
            with socket.socket(fileno=copy) as connection:
                copy = -1  # it closes it
                if connection.getsockname()[1] == port:
                    connection.shutdown(socket.SHUT_RDWR)
        finally:
            if copy >= 0:
                os.close(copy)
