"""The control thread's sockets and loop in simulated time, in the place of ``ControlLoop`` and ZeroMQ.

One thread takes one input after the other; what an input sends leaves when its time has been spent.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from .process import Process

Reader = Callable[[list["Frame"]], None]


class Frame:
    __slots__ = ("bytes", "sender")

    def __init__(self, data: bytes, sender: str = "") -> None:
        self.bytes, self.sender = data, sender

    def __len__(self) -> int:
        return len(self.bytes)

    def get(self, name: str) -> str:
        return self.sender if name == "Peer-Address" else ""


class Network:
    """Who listens where, and who answers on which route. What is sent to nobody is lost."""

    def __init__(self) -> None:
        self.listeners: dict[str, Socket] = {}
        self.routes: dict[bytes, Socket] = {}
        self.messages = 0
        self.bytes = 0
        self._numbers = itertools.count(1)

    def new_route(self, socket: Socket) -> bytes:
        route = next(self._numbers).to_bytes(5, "big")
        self.routes[route] = socket
        return route


class Socket:
    def __init__(self, loop: ModelLoop, kind: int) -> None:
        self._loop = loop
        self._kind = kind
        self._network = loop.process.fleet.network
        self._address = ""
        self._route = b""

    def setsockopt(self, option: int, value: object) -> None:
        pass

    def getsockopt(self, option: int) -> bytes:
        return self._address.encode() + b"\0"

    def bind(self, address: str) -> None:
        self._address = address
        self._network.listeners[address] = self

    def connect(self, address: str) -> None:
        self._address = address
        self._route = self._network.new_route(self)

    def send_multipart(self, frames: list[bytes], flags: int = 0) -> None:
        self._network.messages += 1
        self._network.bytes += sum(map(len, frames))
        if self._kind == zmq.ROUTER:
            route, *rest = frames
            self._loop.send(lambda: self._deliver(self._network.routes.get(route), rest))
        else:
            parts = [self._route, *frames]
            self._loop.send(lambda: self._deliver(self._network.listeners.get(self._address), parts))

    def _deliver(self, to: Socket | None, parts: list[bytes]) -> None:
        if to is None:
            return
        here, there = self._loop.process, to._loop.process
        open_at = max(here.cut_until, there.cut_until)
        if open_at > here.fleet.simulation.now:  # TCP keeps it
            here.fleet.simulation.at(open_at, lambda: self._deliver(to, parts))
        else:
            to._loop.receive(to, [Frame(part, here.ip) for part in parts])

    def close(self, linger: int = 0) -> None:
        if self._network.listeners.get(self._address) is self:
            del self._network.listeners[self._address]
        self._network.routes.pop(self._route, None)


class ModelLoop:
    """In the place of ``ControlLoop``."""

    def __init__(self, process: Process, on_tick: Callable[[], float | None]) -> None:
        self.process = process
        self._simulation = process.fleet.simulation
        self._on_tick = on_tick
        self._inputs: deque[tuple[str, Callable[[], object]]] = deque()
        self._readers: dict[Socket, Reader] = {}
        self._outbox: list[Callable[[], object]] = []
        self._free_at = self._simulation.now
        self._turn_at = float("inf")
        self.step = ""  # of the input under way; ``Process`` names it more closely

    # As ControlLoop has them.

    def post(self, command: Callable[[], object]) -> bool:
        self._take("command", command)
        return True

    def call(self, command: Callable[[], Any], timeout_s: float) -> Any:
        result = command()
        self._flush(self._simulation.now)
        return result

    def socket(self, kind: int) -> Socket:
        return Socket(self, kind)

    def on_message(self, socket: Socket, reader: Reader) -> None:
        self._readers[socket] = reader

    def watch(self, socket: Socket, events: int, reader: Reader) -> None:
        pass  # connections are not modelled: they come to be, or nothing arrives

    def read_events(self, socket: Socket) -> None:
        pass

    def unwatch(self, socket: Socket) -> None:
        pass

    def close_socket(self, socket: Socket, linger_ms: int = 0) -> None:
        self._readers.pop(socket, None)
        socket.close()

    def run_commands(self) -> None:
        pass  # every command is an input of its own, and they come in order

    # The model.

    def receive(self, socket: Socket, frames: list[Frame]) -> None:
        def read() -> None:
            reader = self._readers.get(socket)
            if reader is not None:
                reader(frames)

        self._take("message", read)

    def send(self, deliver: Callable[[], object]) -> None:
        self._outbox.append(deliver)

    def wake_at(self, when: float) -> None:
        """A turn no later than that."""
        when = max(when, self._free_at)
        if when < self._turn_at:
            self._turn_at = when
            self._simulation.at(when, self._turn)

    def _take(self, step: str, handle: Callable[[], object]) -> None:
        if self.process.is_up:
            self._inputs.append((step, handle))
            self.wake_at(self._simulation.now)

    def _turn(self) -> None:
        if not self.process.is_up or self._simulation.now < self._turn_at:
            return
        if self._simulation.now < self._free_at:  # it was asked for before the last turn took its time
            self._turn_at = float("inf")
            self.wake_at(self._free_at)
            return
        self._turn_at = float("inf")
        if self._inputs:
            self.step, handle = self._inputs.popleft()
            handle()
            self._flush(self.process.spend(self.step))
        if self._inputs:
            self.wake_at(self._free_at)
            return
        wanted = self._on_tick()
        self._flush(self.process.spend("tick"))
        look = self.process.next_look(wanted)
        if look is not None:
            self.wake_at(look)

    def _flush(self, when: float) -> None:
        self._free_at = max(self._free_at, when)
        outbox, self._outbox = self._outbox, []
        for deliver in outbox:
            self._simulation.at(self._free_at + self.process.latency_s, deliver)
