"""The control thread of an instance: owns its ZeroMQ sockets, sleeps until a message, a command or a time
comes.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import zmq

T = TypeVar("T")
logger = logging.getLogger("torch_llm_datadist")

LINGER_MS = 200  # how long a closed socket may take to hand over its last messages
_MESSAGES_PER_TURN = 64  # so that one busy peer does not starve the others
_MAX_EVENTS = 10_000
_MAX_SOCKETS = 8192  # of libzmq's: per link one, and two more while it is being made


class ControlLoop:
    """One thread. Sockets are made, used and closed on it only; other threads hand it commands.

    ``on_tick`` is called after each turn and returns the seconds until it wants to be called again, or None.
    """

    def __init__(self, name: str, on_tick: Callable[[], float | None]) -> None:
        self._on_tick = on_tick
        self._commands: collections.deque[Callable[[], object]] = collections.deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._readers: dict[zmq.Socket[bytes], Callable[[list[zmq.Frame]], None]] = {}
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # For other threads.

    def post(self, command: Callable[[], object]) -> bool:
        """Runs the command on the thread, soon; False when the loop has ended."""
        with self._lock:
            if self._is_stopping:
                return False
            self._commands.append(command)
            os.eventfd_write(self._wake_fd, 1)
            return True

    def call(self, command: Callable[[], T], timeout_s: float) -> T:
        """Runs the command on the thread and returns its result.

        ``concurrent.futures.TimeoutError`` when it takes longer.
        """
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(command())
            except BaseException as error:
                result.set_exception(error)

        if not self.post(run):
            raise RuntimeError("the control thread has ended")
        return result.result(timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread and closes its sockets. False when it is still running after the timeout."""
        with self._lock:
            if not self._is_stopping:
                self._is_stopping = True
                os.eventfd_write(self._wake_fd, 1)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # For the thread itself.

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        return self._context.socket(kind)

    def on_message(self, socket: zmq.Socket[bytes], reader: Callable[[list[zmq.Frame]], None]) -> None:
        self._readers[socket] = reader
        self._poller.register(socket, zmq.POLLIN)

    def watch(
        self, socket: zmq.Socket[bytes], events: int, reader: Callable[[list[zmq.Frame]], None]
    ) -> None:
        """Reads what happens to the connections of a socket, before it has any. See ``zmq_socket_monitor``.

        libzmq's own thread waits where its queue of events, 1000 long, is full: it takes no more connections.
        """
        address = f"inproc://events-{next(self._numbers)}"
        socket.monitor(address, events)
        monitor = self._monitors[socket] = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 1)
        monitor.connect(address)
        self.on_message(monitor, reader)

    def read_events(self, socket: zmq.Socket[bytes]) -> None:
        """Reads what has happened up to now."""
        monitor = self._monitors.get(socket)
        if monitor is not None:
            self._read(monitor, _MAX_EVENTS)

    def unwatch(self, socket: zmq.Socket[bytes]) -> None:
        monitor = self._monitors.pop(socket, None)
        if monitor is None:
            return
        # First this, so that libzmq's thread never waits for room that nobody would make.
        while monitor.poll(0):
            monitor.recv_multipart(copy=False)
        socket.disable_monitor()
        self.close_socket(monitor)

    def close_socket(self, socket: zmq.Socket[bytes], linger_ms: int = 0) -> None:
        self.unwatch(socket)
        if self._readers.pop(socket, None) is not None:
            self._poller.unregister(socket)
        socket.close(linger=linger_ms)

    def run_commands(self) -> None:
        """Runs what other threads have handed over up to now."""
        while self._commands:
            self._guarded(self._commands.popleft())

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._turn()
            self.run_commands()
        except Exception:
            logger.exception("the control thread ended by an error; no link can be made or unmade any more")
        finally:
            with self._lock:
                self._is_stopping = True
            for socket in [*self._monitors, *self._readers]:
                self.close_socket(socket, LINGER_MS)
            self._context.term()
            with self._lock:
                os.close(self._wake_fd)

    def _turn(self) -> None:
        delay = self._guarded(self._on_tick)
        timeout_ms = None if delay is None else max(1, int(delay * 1000))
        for source, _ in self._poller.poll(timeout_ms):
            if source == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            else:
                self._read(source)
        self.run_commands()

    def _read(self, socket: zmq.Socket[bytes], limit: int = _MESSAGES_PER_TURN) -> None:
        for _ in range(limit):
            reader = self._readers.get(socket)
            if reader is None:  # closed by what the last message did
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._guarded(lambda reader=reader, frames=frames: reader(frames))  # type: ignore[misc]

    def _guarded(self, function: Callable[[], T]) -> T | None:
        """No message and no command ends the thread."""
        try:
            return function()
        except Exception:
            logger.exception("an error on the control thread; it goes on")
            return None
