"""Stops the host half of an emulated process, and not its device half: what SIGSTOP does where the NPU is
real.

A thread of this process traces (ptrace) each host thread of the other one and stops it where it is: in a
system call, holding the GIL, with whatever signals blocked. Only inside of what the emulated device
shares with it (this runtime, the heap) it is not stopped, as it may hold a lock there, and a real device
needs none of the host's. Such a thread goes on for a moment and is stopped a little later. So does one whose
system call ended, or whose page came, after it was told to stop: it was in the middle of something. The
threads that are the device carry names that begin with "npu-", and so do those that they start, OpenMP's
among them. The kernel lets a tracer's threads go when the tracer ends, so a controller that dies leaves
nobody frozen; and what is stopped this way can be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import threading
import time
from dataclasses import dataclass

from torch_llm_datadist.emulator.fault_block import Block, Kind, Rule

DEVICE_THREADS = "npu-"

_SEIZE, _INTERRUPT, _CONTINUE, _DETACH, _REGISTERS = 0x4206, 0x4207, 7, 17, 0x4204
_GENERAL = 1  # the set of registers that is asked for (NT_PRSTATUS)
_WALL = 0x40000000  # threads that are no children, too
_LOOK_EVERY_S = 0.005

# Code in which a thread may hold a lock that threads of the device take, too.
_SHARED_CODE = (
    "libascendcl.so",
    "_aten.so",
    "libc.so",
    "libc-",
    "libpthread",
    "libstdc++.so",
    "libgcc_s.so",  # an exception on its way out of a function that holds a lock
    "libjemalloc.so",
    "libtcmalloc",
    "libmimalloc.so",
    "ld-linux",
    "libgomp",
    "[vdso]",
)
# A thread that never leaves it (a copy of many gigabytes) holds no lock for that long. On a processor: a busy
# machine keeps one waiting in the middle of anything.
_PATIENCE_S = 2.0
_FIRST_STEP_S, _LONGEST_STEP_S = 0.0002, 0.005  # how long such a thread goes on before the next look
_STUCK_AFTER_S = 0.01  # what waits for a lock for so long, with nobody else to give it back, does so for ever
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_PRIVATE, _WAITS = 0x80, (0, 9)  # FUTEX_WAIT and FUTEX_WAIT_BITSET; the runtime's own sleeps are not private
# What a system call returns to the kernel itself when the kernel is to begin it anew (linux/errno.h).
_BEGINS_ANEW = (-512, -513, -514, -516)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]
    return libc


class _Buffer(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@dataclass
class _Place:
    """Where a thread is: the system call and its arguments, the stack, the place in code."""

    number: int  # -1: in none
    arguments: tuple[int, ...]
    stack: int
    code: int

    @classmethod
    def of(cls, line: str) -> _Place | None:
        """A line of /proc/<pid>/task/<thread>/syscall; None when the thread runs."""
        number, *rest = line.split() or [""]
        if len(rest) < 2:
            return None
        *arguments, stack, code = (int(word, 16) for word in rest)
        return cls(int(number), tuple(arguments), stack, code)

    def waits_for_a_lock(self) -> bool:
        """Maybe: it sleeps on a word of this process alone."""
        if self.number != _FUTEX:
            return False
        operation = self.arguments[1]
        return operation & _PRIVATE != 0 and operation & (_PRIVATE - 1) in _WAITS


class _Gone(Exception):
    """The thread, or the whole process, ended meanwhile."""


@dataclass
class _Turns:
    """What a thread has had of the processors."""

    ran_s: float
    turns: int


@dataclass
class _Traced:
    """A host thread that was told to stop."""

    signal: int | None = None  # None until it stopped, then the signal that arrived with it, or 0
    was_in: str = ""  # the system call in which it slept when it was told
    is_settled: bool = False  # it may stay where it is
    goes_on: bool = False  # let go for a moment, to be told again
    waits: bool = False  # for a lock, it may be
    waited_in: str = ""  # the call in which it did so when all others had settled …
    waited_since: float = 0.0  # … and since when
    told: _Turns | None = None  # what it had had of the processors when it was told first
    step_s: float = _FIRST_STEP_S
    next_at: float = 0.0
    went_on: _Turns | None = None


class HostFreeze:
    """The frozen host threads of one process, until ``thaw`` or the end of the process that froze them."""

    def __init__(self, block: Block, within_s: float = 10.0) -> None:
        if block.pid == os.getpid():
            raise RuntimeError("a process cannot freeze its own host threads: another one must do it")
        self._block = block
        self._libc = _libc()
        self._give_up_at = time.monotonic() + within_s
        self._patient_until = time.monotonic() + 0.8 * within_s
        self._traced: dict[int, _Traced] = {}
        self._shared_code: list[tuple[int, int]] = []
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
                self._go_on_settling()
        self._let_go()

    def _stop_all(self) -> None:
        # What is in a call comes out of it, and no other one begins.
        self._block.arm(Rule(Kind.HOLD_HOST, amount=os.getpid()))
        try:
            self._stop_all_outside_of_calls()
        finally:
            self._block.disarm(lambda rule: rule.kind == Kind.HOLD_HOST)

    def _stop_all_outside_of_calls(self) -> None:
        while True:
            # In this order: what has stopped starts no thread that the list then lacks.
            while not (self._all_stopped() and self._all_settled()) or self._stop_new():
                self._go_on_settling()
                time.sleep(0)
            if self._block.births() == 0 and not any(self._is_device(thread) for thread in self._traced):
                return
            # A thread of the device may be among the stopped: it had no name when it was looked at.
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
                self._traced[thread] = _Traced(told=self._turns(thread))
                self._interrupt(thread)
                found = True
        return found

    def _all_stopped(self) -> bool:
        self._hear()
        late = [thread for thread, traced in self._traced.items() if traced.signal is None]
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
                self._traced[thread].signal = 0 if report.si_status >> 8 else report.si_status

    def _all_settled(self) -> bool:
        return all(traced.is_settled for traced in self._traced.values())

    def _go_on_settling(self) -> None:
        """Sends on who stopped where it may hold a lock that the device needs, and stops it again."""
        for thread, traced in self._traced.items():
            with contextlib.suppress(_Gone):
                if traced.goes_on and self._went_on(thread, traced):
                    traced.goes_on = False
                    self._interrupt(thread)
                elif traced.signal is not None and not (traced.is_settled or traced.waits):
                    self._settle(thread, traced)
        # Who waits for a lock may hold another one, or be handed this one while it stands still. It gets it
        # from the host threads that had it, as those settle after they gave it back; what it still waits for
        # after that is none of the device's.
        if all(traced.is_settled or traced.waits for traced in self._traced.values()):
            for thread, traced in self._traced.items():
                if not traced.waits:
                    continue
                if traced.waited_in != traced.was_in:
                    traced.waited_in, traced.waited_since = traced.was_in, time.monotonic()
                elif time.monotonic() > traced.waited_since + _STUCK_AFTER_S:
                    traced.waits, traced.is_settled = False, True
                    continue
                with contextlib.suppress(_Gone):
                    self._go_on(thread, traced)

    def _settle(self, thread: int, traced: _Traced) -> None:
        now, before = _Place.of(self._call_of(thread)), _Place.of(traced.was_in)
        if now is None or self._is_too_long(thread, traced):  # a kernel that does not tell
            traced.is_settled = True
        elif before is not None and self._slept(thread, before, now):
            traced.waits = before.waits_for_a_lock()
            traced.is_settled = not traced.waits
        elif any(begin <= now.code < end for begin, end in self._code_that_is_shared()):
            self._go_on(thread, traced)
        else:
            traced.is_settled = True

    def _is_too_long(self, thread: int, traced: _Traced) -> bool:
        if time.monotonic() > self._patient_until:
            return True
        turns = self._turns(thread)
        return turns is not None and traced.told is not None and turns.ran_s > traced.told.ran_s + _PATIENCE_S

    def _went_on(self, thread: int, traced: _Traced) -> bool:
        """Whether one that was sent on had a processor since: without one another stop changes nothing."""
        now = time.monotonic()
        if now < traced.next_at:
            return False
        turns = self._turns(thread)
        return turns is None or turns != traced.went_on or now > self._patient_until

    def _slept(self, thread: int, before: _Place, now: _Place) -> bool:
        """Whether it stopped out of its sleep in a system call, to sleep on in it afterwards.

        A call that ended meanwhile, or a page that came, leaves a thread at the same place.
        """
        if before.number < 0 or before.stack != now.stack:
            return False
        result, code = self._result_and_place(thread)
        if result == -errno.EINTR and code == before.code:
            return True  # one that ends when it is interrupted, and is called again by its caller
        if platform.machine() == "aarch64":
            return code == before.code - 4  # the kernel has put it before the instruction already
        return now == before and result in _BEGINS_ANEW

    def _result_and_place(self, thread: int) -> tuple[int, int]:
        """What the system call of a stopped thread returned, and the place in code."""
        registers = (ctypes.c_int64 * 64)()
        wanted = _Buffer(ctypes.addressof(registers), ctypes.sizeof(registers))
        self._ptrace(_REGISTERS, thread, ctypes.addressof(wanted), about=_GENERAL)
        of_result, of_place = (0, 32) if platform.machine() == "aarch64" else (10, 16)  # x0, pc; rax, rip
        return registers[of_result], registers[of_place]

    def _code_that_is_shared(self) -> list[tuple[int, int]]:
        if not self._shared_code:
            with open(f"/proc/{self._block.pid}/maps") as maps:
                for line in maps:
                    span, access, *_, name = line.split()
                    if "x" in access and os.path.basename(name).startswith(_SHARED_CODE):
                        begin, end = span.split("-")
                        self._shared_code.append((int(begin, 16), int(end, 16)))
        return self._shared_code

    def _call_of(self, thread: int) -> str:
        """A sleeping or stopped thread's system call and its arguments, its stack, its place in code."""
        try:
            with open(f"/proc/{self._block.pid}/task/{thread}/syscall") as call:
                return call.read().strip()
        except OSError:
            return ""

    def _turns(self, thread: int) -> _Turns | None:
        """None from a kernel that does not tell."""
        try:
            with open(f"/proc/{self._block.pid}/task/{thread}/schedstat") as times:
                ran_ns, _, turns = times.read().split()
        except (OSError, ValueError):
            return None
        return _Turns(int(ran_ns) / 1e9, int(turns))

    def _interrupt(self, thread: int) -> None:
        self._traced[thread].was_in = self._call_of(thread)
        self._ptrace(_INTERRUPT, thread)

    def _go_on(self, thread: int, traced: _Traced) -> None:
        signal, traced.signal = traced.signal, None
        traced.goes_on, traced.waits = True, False
        traced.went_on = self._turns(thread)
        traced.next_at = time.monotonic() + traced.step_s
        traced.step_s = min(traced.step_s * 1.5, _LONGEST_STEP_S)
        self._ptrace(_CONTINUE, thread, signal or 0)

    def _is_device(self, thread: int) -> bool:
        try:
            with open(f"/proc/{self._block.pid}/task/{thread}/comm") as name:
                return name.read().startswith(DEVICE_THREADS)
        except (FileNotFoundError, ProcessLookupError):
            return True  # gone

    def _ptrace(self, request: int, thread: int, data: int = 0, about: int = 0) -> None:
        if self._libc.ptrace(request, thread, about, data) == 0:
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
        for thread, traced in self._traced.items():
            with contextlib.suppress(_Gone):
                self._ptrace(_DETACH, thread, traced.signal or 0)
        self._traced.clear()
