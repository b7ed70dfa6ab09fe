"""Sequences of messages to an instance that listens: truncated, repeated, out of order, from several
connections at a time, with values that nobody expects.

Whatever comes, a good peer links afterwards, and no error of a kind that nobody foresaw was logged.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import zmq

from tests.fuzz import seeds
from tests.fuzz.mutate import mutate
from torch_llm_datadist import wire

UNFORESEEN = "an error on the control thread"
# Most sequences begin as a handshake does, since what matters lies behind it.
MOSTLY_IN_ORDER = ("Hello", "Join", "Announce", "Sync", "Withdraw", "Keys", "Taken", "Pushed", "Bye")


class Unforeseen(logging.Handler):
    """Collects what the control thread says of errors that it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if UNFORESEEN in text or "ended by an error" in text:
            self.found.append(logging.Formatter().format(record))


class Attack:
    """
    Args:
        port: of the instance, whose cluster is 1.
        is_well: links a good peer and ends that link; raises when that does not work.
    """

    def __init__(self, port: int, seed: int, is_well: Callable[[], None]) -> None:
        self._port, self._is_well = port, is_well
        self._chance = random.Random(seed)
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._unforeseen = Unforeseen()
        self.sent = 0

    def run(self, messages: int, well_every: int = 2000) -> None:
        logger = logging.getLogger("torch_llm_datadist")
        logger.addHandler(self._unforeseen)
        next_look = well_every
        try:
            while self.sent < messages:
                self._sequence()
                if self.sent >= next_look:
                    self._look()
                    next_look = self.sent + well_every
            self._look()
        finally:
            logger.removeHandler(self._unforeseen)
            for socket in self._sockets:
                socket.close(linger=0)
            self._context.term()

    def _look(self) -> None:
        self._is_well()
        assert not self._unforeseen.found, self._unforeseen.found[0]

    def _sequence(self) -> None:
        chance = self._chance
        while len(self._sockets) < 4:
            self._sockets.append(self._connect())
        cluster_id = chance.randrange(2, 6)
        valid = seeds.messages(cluster_id, 1)
        if chance.random() < 0.7:
            kinds = {type(message).__name__: message for message in valid}
            chosen = [kinds[name] for name in MOSTLY_IN_ORDER[: chance.randrange(2, len(MOSTLY_IN_ORDER))]]
        else:
            chosen = chance.choices(valid, k=chance.randrange(1, 8))
        data = [wire.encode(message) for message in chosen]
        everything = [wire.encode(message) for message in valid]
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = mutate(chance, everything)
        if chance.random() < 0.2:
            data.insert(chance.randrange(len(data)), chance.choice(data))
        if chance.random() < 0.2:
            chance.shuffle(data)
        socket = chance.choice(self._sockets)
        for each in data:
            self._send(chance.choice(self._sockets) if chance.random() < 0.1 else socket, each)
        if chance.random() < 0.3:  # in the midst of whatever it has begun
            socket.close(linger=100)
            self._sockets.remove(socket)

    def _send(self, socket: zmq.Socket[bytes], data: bytes) -> None:
        frames = wire.split(data)
        if self._chance.random() < 0.05:
            frames = self._chance.choice(([b""], [*frames, b""], frames * 2, [b"", *frames]))
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            socket.poll(1000, zmq.POLLOUT)
        self.sent += 1
        while socket.poll(0):
            socket.recv_multipart()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        socket.connect(f"tcp://127.0.0.1:{self._port}")
        return socket
