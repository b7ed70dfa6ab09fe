"""Stops the host half of an emulated process, and not its device half: what SIGSTOP does where the NPU is
real.

A thread of this process traces (ptrace) each host thread of the other one and stops it where it is: in a
system call, holding the GIL, with whatever signals blocked. The threads that are the device carry names that
begin with "npu-", and so do those that they start, OpenMP's among them. The kernel lets a tracer's threads go
when the tracer ends, so a controller that dies leaves nobody frozen; and what is stopped this way can be
killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time

from torch_llm_datadist.emulator.fault_block import Block

DEVICE_THREADS = "npu-"

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000  # threads that are no children, too
_LOOK_EVERY_S = 0.005


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    return libc


class _Gone(Exception):
    """The thread, or the whole process, ended meanwhile."""


class HostFreeze:
    """The frozen host threads of one process, until ``thaw`` or the end of the process that froze them."""

    def __init__(self, block: Block, within_s: float = 10.0) -> None:
        if block.pid == os.getpid():
            raise RuntimeError("a process cannot freeze its own host threads: another one must do it")
        self._block = block
        self._libc = _libc()
        self._give_up_at = time.monotonic() + within_s
        # Threads that were told to stop; None until they did, then the signal that arrived with it, or 0.
        self._traced: dict[int, int | None] = {}
        self._thaw = threading.Event()
        self._settled = threading.Event()
        self._error: Exception | None = None
        # Only the thread that traces may let go, so it stays for as long as the freeze lasts.
        self._tracer = threading.Thread(target=self._trace, name="host-freeze", daemon=True)
        self._tracer.start()
        self._settled.wait()
        if self._error is not None:
            self._tracer.join()
            raise self._error

    def thaw(self) -> None:
        self._thaw.set()
        self._tracer.join()

    def _trace(self) -> None:
        try:
            self._stop_all()
        except Exception as error:
            self._error = error
            self._let_go()
            self._settled.set()
            return
        self._settled.set()
        # A tracer must see its threads end, else their process never does.
        while not self._thaw.wait(_LOOK_EVERY_S) and not self._is_over():
            with contextlib.suppress(Exception):  # it ended: the next look tells
                self._stop_new()
        self._let_go()

    def _stop_all(self) -> None:
        while True:
            # In this order: what has stopped starts no thread that the list then lacks.
            while not self._all_stopped() or self._stop_new():
                time.sleep(0)
            if self._block.births() == 0:
                return
            # A thread of the device may be among the stopped, as it has no name yet.
            self._let_go()
            time.sleep(0.001)
            self._check_time("its device kept starting threads")

    def _check_time(self, why: str) -> None:
        if time.monotonic() > self._give_up_at:
            raise TimeoutError(f"process {self._block.pid} could not be frozen: {why}")

    def _stop_new(self) -> bool:
        """Tells the host threads to stop that were not told yet; whether there were any."""
        found = False
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{self._block.pid}/task")]
        except FileNotFoundError:
            raise ProcessLookupError(f"there is no process {self._block.pid}") from None
        for thread in threads:
            if thread in self._traced or self._is_device(thread):
                continue
            with contextlib.suppress(_Gone):
                self._ptrace(_SEIZE, thread)
                self._traced[thread] = None
                self._ptrace(_INTERRUPT, thread)
                found = True
        return found

    def _all_stopped(self) -> bool:
        self._hear()
        late = [thread for thread, signal in self._traced.items() if signal is None]
        if late:
            self._check_time(f"thread {late[0]} did not stop")
        return not late

    def _hear(self) -> None:
        """Takes what the kernel reports of the traced threads: that they stopped, or that they ended.

        The end of the main thread is its parent's to hear of, who may be another thread of this process.
        """
        for thread in list(self._traced):
            which = os.WSTOPPED if thread == self._block.pid else os.WSTOPPED | os.WEXITED
            try:
                report = os.waitid(os.P_PID, thread, which | os.WNOHANG | _WALL)
            except ChildProcessError:
                del self._traced[thread]
                continue
            if report is None:
                continue
            if report.si_code not in (os.CLD_TRAPPED, os.CLD_STOPPED):
                del self._traced[thread]
            else:
                # Above the signal stands an event; 0: it was on the way to the signal's handler, and is told
                # of it again later.
                self._traced[thread] = 0 if report.si_status >> 8 else report.si_status

    def _is_device(self, thread: int) -> bool:
        try:
            with open(f"/proc/{self._block.pid}/task/{thread}/comm") as name:
                return name.read().startswith(DEVICE_THREADS)
        except (FileNotFoundError, ProcessLookupError):
            return True  # gone

    def _ptrace(self, request: int, thread: int, signal: int = 0) -> None:
        if self._libc.ptrace(request, thread, 0, signal) == 0:
            return
        problem = ctypes.get_errno()
        if problem == errno.ESRCH:
            raise _Gone
        raise OSError(
            problem, f"thread {thread} of process {self._block.pid} cannot be stopped: {os.strerror(problem)}"
        )

    def _is_over(self) -> bool:
        """Whether the process was killed."""
        self._hear()
        try:
            with open(f"/proc/{self._block.pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def _let_go(self) -> None:
        """What has not stopped yet is let go when this thread ends, as the kernel does it."""
        for thread, signal in self._traced.items():
            with contextlib.suppress(_Gone):
                self._ptrace(_DETACH, thread, signal or 0)
        self._traced.clear()
