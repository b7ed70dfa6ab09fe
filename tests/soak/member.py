"""A member as the conductor sees it: a process, and one life after the other in it or in its successors."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from typing import Any

from tests.peers import _context
from tests.soak import worker
from tests.soak.blocks import Blocks
from tests.soak.findings import Findings

HANGS_AFTER_S = 60.0  # no command takes nearly as long, on a machine that is not overloaded beyond reason
DEVICES = 8
KEEP_ALIVE_S = 2.0


class OverError(Exception):
    """The life that was asked has ended."""


class RefusedError(Exception):
    """The library refused, or the transfer failed."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Process:
    """Answers come by a thread of their own, since one that is frozen may stop in the middle of an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(target=worker.serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._loop = loop
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[tuple[str, Any]]] = {}
        self.is_dead = False
        self.has_died_by_itself = False
        self.is_frozen = False
        self.thawed_at = 0.0
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, name: str, args: tuple[Any, ...]) -> asyncio.Future[tuple[str, Any]]:
        answer: asyncio.Future[tuple[str, Any]] = self._loop.create_future()
        if self.is_dead:
            answer.set_result(("over", None))
            return answer
        number = next(self._numbers)
        self._open[number] = answer
        try:
            self._connection.send((number, name, args))
        except OSError:
            self._is_gone()
        return answer

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._die()

    def freeze(self) -> None:
        self.is_frozen = True
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if not self.is_dead:
            os.kill(self.pid, signal.SIGCONT)
        self.mark_thawed()

    def mark_thawed(self) -> None:
        self.is_frozen = False
        self.thawed_at = time.monotonic()

    def show_stacks(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def join(self) -> None:
        self._process.join(20)

    def _listen(self) -> None:
        try:
            while True:
                self._loop.call_soon_threadsafe(self._answered, *self._connection.recv())
        except (EOFError, OSError):
            pass
        except RuntimeError:
            return  # the loop is closed: the run is over
        try:
            self._loop.call_soon_threadsafe(self._is_gone)
        except RuntimeError:
            return

    def _answered(self, number: int, kind: str, value: Any) -> None:
        answer = self._open.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result((kind, value))

    def _is_gone(self) -> None:
        self.has_died_by_itself |= not self.is_dead
        self._die()

    def _die(self) -> None:
        self.is_dead = True
        for answer in self._open.values():
            if not answer.done():
                answer.set_result(("over", None))
        self._open.clear()


class Life:
    """From a start of the instance to its end.

    Attributes:
        blocks: of the cache in device memory.
        batch_id: the cache that is made of the same memory, each block a batch entry of it.
        host: the same life, seen from its cache in host memory.
        model_id: of the cache that ``blocks`` is of.
    """

    model_id = 0

    def __init__(
        self, cluster_id: int, generation: int, process: Process, findings: Findings, hangs_after_s: float
    ) -> None:
        self.cluster_id, self.generation, self.process = cluster_id, generation, process
        self.blocks = Blocks(cluster_id, generation)
        self.host = OnHost(self)
        self.port = 0
        self.batch_id = 0
        self.is_over = False
        self._findings, self._hangs_after_s = findings, hangs_after_s

    def __str__(self) -> str:
        return f"member {self.cluster_id} in life {self.generation} (pid {self.process.pid})"

    async def start(self) -> None:
        stamps = self.blocks.stamps(range(len(self.blocks)))
        host_stamps = self.host.blocks.stamps(range(len(self.host.blocks)))
        self.port, self.batch_id = await self.ask(
            "start", self.cluster_id, (self.cluster_id - 1) % DEVICES, stamps, host_stamps, KEEP_ALIVE_S
        )

    async def ask(self, name: str, *args: Any) -> Any:
        """Raises OverError once the life is over, RefusedError when the library refused."""
        if self.is_over:
            raise OverError
        kind, value = await self._answer(name, args)
        if self.is_over:
            raise OverError
        return self._read(name, kind, value)

    async def stop(self) -> None:
        """Finalizes the instance, whatever is under way. The life is over for everybody else."""
        self.is_over = True
        self._read("stop", *await self._answer("stop", ()))

    async def _answer(self, name: str, args: tuple[Any, ...]) -> tuple[str, Any]:
        answer = self.process.send(name, args)
        while not answer.done():
            await asyncio.wait({answer}, timeout=self._hangs_after_s)
            if not answer.done() and not self._was_frozen():
                self._hangs(name)
        return answer.result()

    def _read(self, name: str, kind: str, value: Any) -> Any:
        if kind == "over":
            self.is_over = True
            raise OverError
        if kind == "done":
            return value
        code, text = value if kind == "refused" else ("BROKEN", value)
        if kind == "broken":
            self._findings.add(self._findings.broken, f"{self}: {name}: {text}")
        self._findings.refused[code] += 1
        raise RefusedError(code, text)

    def _was_frozen(self) -> bool:
        return self.process.is_frozen or time.monotonic() - self.process.thawed_at < self._hangs_after_s

    def _hangs(self, name: str) -> None:
        self._findings.add(
            self._findings.hangs,
            f"{self} has not answered {name} within {self._hangs_after_s} s; its stacks follow",
        )
        self.process.show_stacks()
        time.sleep(1)
        self.process.kill()


class OnHost:
    """A life with its blocks in host memory: what is asked of blocks is asked of those."""

    model_id = 1
    # Those commands take the model_id of their own cache at the end.
    OF_BLOCKS = ("push", "pull", "write", "look", "spoil", "may_be_written", "is_in_doubt")

    def __init__(self, life: Life) -> None:
        self._life = life
        self.blocks = Blocks(life.cluster_id, life.generation | Blocks.ON_HOST)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._life, name)

    def __str__(self) -> str:
        return f"host memory of {self._life}"

    async def ask(self, name: str, *args: Any) -> Any:
        return await self._life.ask(name, *args, *([self.model_id] if name in self.OF_BLOCKS else []))


class Member:
    """One after the other: lives that bear the same cluster id."""

    def __init__(self, index: int, findings: Findings, hangs_after_s: float) -> None:
        self.index, self.cluster_id = index, index + 1
        self._findings, self._hangs_after_s = findings, hangs_after_s
        self._generations = itertools.count(1)
        self.life: Life | None = None  # None while it is on its way up or down

    async def revive(self, process: Process | None = None) -> None:
        """In a process of its own, unless one is given."""
        process = process or Process(asyncio.get_running_loop())
        generation = next(self._generations)
        life = Life(self.cluster_id, generation, process, self._findings, self._hangs_after_s)
        await life.start()
        self.life = life

    def end(self) -> Life | None:
        """The life that ends now, if there is one."""
        life, self.life = self.life, None
        if life is not None:
            life.is_over = True
        return life
