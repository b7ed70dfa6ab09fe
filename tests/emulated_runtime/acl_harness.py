"""What the tests of the emulated runtime share: gates that hold streams, threads, peer processes."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl, AclError

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
FEW_MS = 30  # how long a test watches that something does not happen
DEADLINE_S = 20  # how long it waits for what must happen


class Gate:
    """Holds a stream until it is opened."""

    def __init__(self, acl: Acl, stream: int | None) -> None:
        self.acl = acl
        self.word = acl.malloc(64)
        acl.aclrtValueWait(self.word, 1, c.EQ, stream)

    def open(self) -> None:
        self.acl.write_word(self.word, 1)


HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def torch_npu_headers() -> Path:
    """The directory that holds the public headers of the runtime, as the wheel brings them."""
    found = importlib.util.find_spec("torch_npu")  # and not imported: these tests are without torch
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "include"


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(AclError) as error:
        call()
    return error.value.code


def in_thread(body: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> None:
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def until_asleep(*names: str) -> None:
    """Returns when the threads of these names stand still: they wait for what they were to wait for."""
    deadline = time.monotonic() + DEADLINE_S
    still = 0
    while still < 3:
        states = []
        for stat in Path("/proc/self/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
                states += [rest.split()[0]] if name in names else []
        still = still + 1 if states == ["S"] * len(names) else 0
        assert time.monotonic() < deadline, states
        time.sleep(0.002)


def worker_of(acl: Acl, stream: int) -> str:
    return f"npu-stream-{acl.last_out('aclrtStreamGetId', stream)}"


# The program of a peer gets ``acl`` and ``say`` and ``hear`` (one line to and from the test).
PREAMBLE = """
import ctypes, os, sys, threading
from tests.emulated_runtime import acl_calls as c
from tests.emulated_runtime.acl_calls import Acl, AclError
acl = Acl()
say = lambda *words: print(*words, flush=True)
hear = lambda: sys.stdin.readline().strip()
def code_of(call):
    try:
        call()
    except AclError as error:
        return error.code
    return 0
"""


# The environment of a process whose races are on purpose, or whose files are counted: whoever looks for races
# in this suite does not look there.
UNWATCHED = {
    "TORCH_LLM_DATADIST_EMULATE_RACES": "",
    "TORCH_LLM_DATADIST_EMULATE_RACE_REPORTS": "",
    "TORCH_LLM_DATADIST_EMULATE_TRACE": "",
}


class Peer:
    def __init__(self, program: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, *words: object) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            assert self.process.stderr is not None
            pytest.fail("the peer said nothing: " + self.process.stderr.read())
        return line

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def end(self) -> str:
        """Waits for its exit, which must be clean; what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, errors
        return errors


@contextlib.contextmanager
def peer(program: str, **environment: str) -> Iterator[Peer]:
    started = Peer(program, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()
