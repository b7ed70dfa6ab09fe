"""Messages between the launcher and its workers: one JSON object per line, over a socket pair.

It stands for what carries an engine's request metadata. No key or value ever travels here.
"""

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


class ChannelClosedError(Exception):
    """The other end is gone."""


class Channel:
    """One end of a connection that carries whole messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unread = b""

    @staticmethod
    def pair() -> tuple["Channel", socket.socket]:
        """(the launcher's end, the socket that a worker inherits)."""
        ours, theirs = socket.socketpair()
        return Channel(ours), theirs

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, **fields: object) -> None:
        try:
            self._socket.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self) -> list[Message]:
        """All messages that are there. Call it when `fileno` is readable."""
        try:
            received = self._socket.recv(1 << 20)
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not received:
            raise ChannelClosedError("end of file")
        *lines, self._unread = (self._unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._socket.close()


class Inbox:
    """A worker's side of a channel: takes the messages in the order in which the worker asks for them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: list[Message] = []

    def take(
        self, kind: str, while_waiting: Callable[[], None] = lambda: None, timeout_s: float = 600
    ) -> Message:
        """Returns the next message of this kind; until then calls `while_waiting` ten times a second."""
        deadline = time.monotonic() + timeout_s
        while True:
            for index, message in enumerate(self._waiting):
                if message["kind"] == kind:
                    return self._waiting.pop(index)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the launcher sent no '{kind}' within {timeout_s:g} s")
            while_waiting()
            if select.select([self._channel], [], [], 0.1)[0]:
                self._waiting += self._channel.receive()
