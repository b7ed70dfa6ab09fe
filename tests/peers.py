"""Real processes to talk to. Each is forked from a server that has imported torch and torch_npu but touched
no device, so one more costs milliseconds, and its death costs nothing.

A test sends functions of its own module to a peer, by name; what they keep between calls they keep in
``state``::

    def register(state, n): state.cache = ...

    def test_x(peers):
        a, b = peers(2)
        b.call(register, 7)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.emulator.hosts import Host

ANSWER_WITHIN_S = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.peer_preload"])


class PeerError(AssertionError):
    """A call raised in the peer; the text is its traceback."""


def _serve(connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    state = SimpleNamespace()
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            break
        if function is None:
            break
        try:
            connection.send((True, function(state, *args)))
        except BaseException as error:
            connection.send((False, (type(error).__name__, "".join(traceback.format_exception(error)))))
    instance = getattr(state, "datadist", None)
    if instance is not None:
        instance.finalize()
    # Whatever a test left on the device is of no interest: no interpreter shutdown. Its trace is.
    runtime = libraries.loaded_runtime()
    if runtime is not None:
        runtime.emuFlush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _serve_afresh(connection: Connection) -> None:
    from tests import peer_preload  # noqa: F401

    _serve(connection)


def freeze(pid: int) -> None:
    """SIGSTOP; returns when each thread of it stands still, which takes a busy machine its time."""
    os.kill(pid, signal.SIGSTOP)
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            while not re.search(r"^State:\s[TZX]", status.read_text(), re.MULTILINE):
                os.sched_yield()


class Peer:
    def __init__(self, afresh: bool = False) -> None:
        """``afresh``: with the environment as it is now; takes seconds."""
        context = multiprocessing.get_context("spawn") if afresh else _context
        self._connection, theirs = context.Pipe()
        serve = _serve_afresh if afresh else _serve
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        self._connection.send((function, args))

    def answer(self, within_s: float = ANSWER_WITHIN_S) -> Any:
        if not self._connection.poll(within_s):
            raise PeerError(f"peer {self.pid} did not answer within {within_s} s")
        ok, value = self._connection.recv()
        if not ok:
            raise PeerError(f"in peer {self.pid}:\n{value[1]}")
        return value

    def call(self, function: Callable[..., Any], *args: Any, within_s: float = ANSWER_WITHIN_S) -> Any:
        self.send(function, *args)
        return self.answer(within_s)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)

    def freeze(self) -> None:
        freeze(self.pid)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._connection.send((None, ()))
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)
        self._connection.close()


class HostPeer(Peer):
    """On an emulated host; a fresh process, so it takes seconds."""

    def __init__(self, host: Host) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        number = str(theirs.fileno())
        self._process = _HostProcess(
            host.popen([sys.executable, "-m", "tests.peers", number], pass_fds=[theirs.fileno()])
        )
        theirs.close()


class _HostProcess:
    """As much of multiprocessing's process as a peer needs."""

    def __init__(self, popen: subprocess.Popen[Any]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.kill = popen.kill

    def join(self, timeout: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)

    def is_alive(self) -> bool:
        return self._popen.poll() is None


@pytest.fixture
def peers() -> Iterator[Callable[[int], list[Peer]]]:
    """``peers(n)`` starts n processes that end with the test."""
    started: list[Peer] = []

    def start(count: int) -> list[Peer]:
        made = [Peer() for _ in range(count)]
        started.extend(made)
        return made

    yield start
    for peer in started:
        peer.stop()


if __name__ == "__main__":
    _serve_afresh(Connection(int(sys.argv[1])))
