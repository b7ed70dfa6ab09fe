"""Every fault as a row: the words for the environment, the call for another process, what is seen of it.

    python -m tests.emulated_runtime.fault_rows

makes the processes that misbehave: it reads lines of a row's name and the words, and forks for each. The
fork takes the words from its environment; without any, somebody arms the fault before it hears the key.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from torch_llm_datadist.emulator import faults as python_face
from torch_llm_datadist.emulator.faults import Faults

from . import acl_calls as c
from .acl_calls import Acl, AclError

VARIABLE = "TORCH_LLM_DATADIST_EMULATE_FAULTS"
KIB, MIB = 2**10, 2**20
HOST_BYTES = (ctypes.c_uint8 * 4096)()  # at the same address in every fork
LATE_S = 0.06


class Subject:
    """What a row may use in the process that misbehaves. Its handles are the same in each of them."""

    def __init__(self) -> None:
        self.acl = Acl()
        self.acl.aclrtSetDevice(0)
        self.stream = self.acl.stream()
        # New memory is 0. To fill any would take a device that works.
        self.far = self.acl.malloc(MIB, fill=None)
        self.word = self.acl.malloc(64, fill=None)
        self.pinned = self.acl.malloc_host(MIB)
        self.host = ctypes.addressof(HOST_BYTES)
        self.key = b""  # of memory that another process shares with this one by a white list

    @functools.cached_property
    def near(self) -> int:
        return self.acl.malloc(MIB, fill=1)

    def facts(self) -> Facts:
        return Facts(self.stream, self.host)

    def codes(self, call: Callable[[], object], times: int) -> list[int]:
        return [self.code(call) for _ in range(times)]

    def code(self, call: Callable[[], object]) -> int:
        try:
            call()
        except AclError as error:
            return error.code
        return 0

    def copy_code(self, size: int = 4 * KIB) -> int:
        """Of a copy and of the wait for it."""
        self.acl.copy(self.far, self.near, size, self.stream)
        return self.acl.sync_code(self.stream)

    def arrived(self, size: int = MIB) -> int:
        return self.acl.read(self.far, size).count(1)

    def mine(self) -> Faults:
        return python_face.of(os.getpid())


@dataclass(frozen=True)
class Facts:
    """What a rule can be about."""

    stream: int
    host: int


@dataclass(frozen=True)
class Row:
    words: str
    arm: Callable[[Faults, Facts], object]
    shows: Callable[[Subject], None]  # raises unless the process misbehaves so


ROWS: dict[str, Row] = {}


def row(
    name: str, words: str, arm: Callable[[Faults, Facts], object]
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    def add(shows: Callable[[Subject], None]) -> Callable[[Subject], None]:
        ROWS[name] = Row(words, arm, shows)
        return shows

    return add


# Per function.


@row(
    "the nth call fails",
    "fail aclrtCreateEventExWithFlag nth=2 code=207007",
    lambda f, _: f.fail_next("aclrtCreateEventExWithFlag", 2, 207007),
)
def nth_call(s: Subject) -> None:
    assert s.codes(s.acl.event, 4) == [0, 207007, 0, 0]


@row(
    "calls of one size fail",
    "fail aclrtMallocAlign32 bytes=4096 times=0 code=207001",
    lambda f, _: f.fail_next("aclrtMallocAlign32", 1, 207001, times=0, bytes=4096),
)
def size(s: Subject) -> None:
    assert [s.code(lambda n=n: s.acl.malloc(n)) for n in (64, 4096, 8192, 4096)] == [0, 207001, 0, 207001]


@row(
    "calls about one address fail",
    "fail aclrtMemcpy address={host} code=507899",
    lambda f, facts: f.fail_next("aclrtMemcpy", 1, 507899, address=facts.host),
)
def address(s: Subject) -> None:
    def copy_from(host: int) -> int:
        return s.acl.code.aclrtMemcpy(s.far, 64, host, 64, c.HOST_TO_DEVICE)

    assert [copy_from(s.pinned), copy_from(s.host), copy_from(s.host)] == [0, 507899, 0]


@row(
    "a call returns late",
    f"late aclrtCreateEventExWithFlag seconds={LATE_S}",
    lambda f, _: f.delay_call("aclrtCreateEventExWithFlag", LATE_S),
)
def late(s: Subject) -> None:
    begun = time.monotonic()
    event = s.acl.event()
    assert time.monotonic() - begun >= LATE_S
    s.acl.aclrtRecordEvent(event, s.stream)  # its effect is done


@row(
    "a call has no support",
    "fail aclrtCreateNotify code=207000 times=0",
    lambda f, _: f.fail_next("aclrtCreateNotify", 1, 207000, times=0),
)
def unsupported(s: Subject) -> None:
    assert s.codes(lambda: s.acl.out("aclrtCreateNotify", 0), 2) == [207000, 207000]


# Per stream.


@row("each task is late", f"task_delay seconds={LATE_S / 2}", lambda f, _: f.set_task_delay(LATE_S / 2))
def task_delay(s: Subject) -> None:
    begun = time.monotonic()
    for value in range(2):
        s.acl.aclrtValueWrite(s.word, value, 0, s.stream)
    s.acl.synchronize(s.stream)
    assert time.monotonic() - begun >= LATE_S


def slow(direction: str) -> None:
    @row(
        f"{direction} copies have a bandwidth",
        f"bandwidth {direction}={MIB / LATE_S}",
        lambda f, _: f.set_bandwidth(direction, MIB / LATE_S),
    )
    def bandwidth(s: Subject) -> None:
        def took(dst: int, src: int, kind: int) -> float:
            begun = time.monotonic()
            s.acl.copy(dst, src, MIB, s.stream, kind)
            s.acl.synchronize(s.stream)
            return time.monotonic() - begun

        peer_memory = 0
        if direction == "peer":
            mine = s.acl.out("aclrtGetCurrentContext")
            s.acl.context(1)
            peer_memory = s.acl.malloc(MIB)
            s.acl.aclrtSetCurrentContext(mine)
            s.acl.aclrtDeviceEnablePeerAccess(1, 0)
        copies = {
            "h2d": (s.far, s.pinned, c.HOST_TO_DEVICE),
            "d2h": (s.pinned, s.near, c.DEVICE_TO_HOST),
            "d2d": (s.far, s.near, c.DEVICE_TO_DEVICE),
            "peer": (peer_memory, s.near, c.DEVICE_TO_DEVICE),
        }
        assert took(*copies[direction]) >= LATE_S
        s.mine().set_bandwidth(direction, 0)
        others = [took(*copy) for name, copy in copies.items() if name not in (direction, "peer")]
        assert min(others) < LATE_S


for _direction in ("h2d", "d2h", "d2d", "peer"):
    slow(_direction)


def frozen(s: Subject, thaw: Callable[[Faults], None]) -> None:
    s.acl.aclrtValueWrite(s.word, 1, 0, s.stream)
    assert s.acl.code.aclrtSynchronizeStreamWithTimeout(s.stream, 20) == c.STREAM_TIMEOUT
    thaw(s.mine())
    s.acl.synchronize(s.stream)


@row(
    "a stream freezes and thaws",
    "freeze_stream stream={stream}",
    lambda f, facts: f.freeze_stream(facts.stream),
)
def frozen_stream(s: Subject) -> None:
    other, word = s.acl.stream(), s.acl.malloc(64)
    s.acl.aclrtValueWrite(word, 1, 0, other)
    s.acl.synchronize(other)
    frozen(s, lambda mine: mine.thaw_stream(s.stream))


@row("a device freezes and thaws", "freeze_device device=0", lambda f, _: f.freeze_device(0))
def frozen_device(s: Subject) -> None:
    frozen(s, lambda mine: mine.thaw_device(0))


@row("streams take another order", "interleave seed=5", lambda f, _: f.set_interleaving(5))
def interleaved(s: Subject) -> None:
    begun = time.monotonic()
    for value in range(1500):  # a millisecond's work; this seed's stops add up to far more
        s.acl.aclrtValueWrite(s.word, value, 0, s.stream)
    s.acl.synchronize(s.stream)
    assert time.monotonic() - begun > 0.05
    assert s.acl.read_word(s.word) == 1499
    s.mine().set_interleaving(None)


@row(
    "large copies come in pieces that are seen",
    "split piece=1024; bandwidth d2d=4000000",
    lambda f, _: (f.set_split(1024), f.set_bandwidth("d2d", 4e6)),
)
def split(s: Subject) -> None:
    s.acl.copy(s.far, s.near, MIB, s.stream)
    while s.arrived() == 0:
        pass
    s.mine().freeze_stream(s.stream)
    seen, now = -1, 0
    while seen != now:
        seen, now = now, s.arrived()
        time.sleep(0.02)
    assert 0 < now < MIB
    assert now % 1024 == 0
    s.mine().reset()
    s.acl.synchronize(s.stream)
    assert s.arrived() == MIB


@row(
    "a copy stands still half done",
    "hold_copy after=512 direction=d2d",
    lambda f, _: f.hold_copy(512, direction="d2d"),
)
def held(s: Subject) -> None:
    s.acl.copy(s.far, s.near, 4 * KIB, s.stream)
    while s.arrived() < 512:
        pass
    assert s.acl.code.aclrtSynchronizeStreamWithTimeout(s.stream, 20) == c.STREAM_TIMEOUT
    assert s.arrived() == 512
    s.mine().reset()
    s.acl.synchronize(s.stream)
    assert s.arrived() == 4 * KIB


@row(
    "a byte arrives flipped",
    "flip_byte offset=100 direction=d2d",
    lambda f, _: f.flip_byte(offset=100, direction="d2d"),
)
def flipped(s: Subject) -> None:
    assert s.copy_code() == 0
    assert s.acl.read(s.far, 4 * KIB) == b"\1" * 100 + b"\xfe" + b"\1" * 3995


# Task failures.


def failing(code: int) -> None:
    @row(
        f"a task fails with {code} and stops the context",
        f"fail_task code={code} direction=d2d nth=2",
        lambda f, _: f.fail_task(2, code, direction="d2d"),
    )
    def fails(s: Subject) -> None:
        other = s.acl.stream()
        s.acl.aclrtSetStreamFailureMode(s.stream, 1)
        assert [s.copy_code(), s.copy_code()] == [0, code]
        assert s.code(lambda: s.acl.aclrtValueWrite(s.word, 1, 0, other)) == code  # the avalanche
        assert s.acl.sync_code(other) == code


for _code in (c.COPY_ENGINE, c.LINK_ERROR, c.REMOTE_ERROR):
    failing(_code)


def lost(code: int) -> None:
    @row(
        f"a device is lost with {code}",
        f"lose_device device=0 code={code}",
        lambda f, _: f.lose_device(0, code),
    )
    def loses(s: Subject) -> None:
        s.acl.aclrtValueWrite(s.word, 1, 0, s.stream)
        assert s.acl.sync_code(s.stream) == code
        assert s.code(s.acl.stream) == code
        assert s.acl.code.aclrtResetDeviceForce(0) == 0
        assert s.acl.code.aclrtSetDevice(0) == 0
        assert s.code(s.acl.stream) == 0


for _code in (507010, 507899, 507901):
    lost(_code)


# Resources. From the environment on, what the subject has counts, too.


def exhausted(resource: str, code: int, make: Callable[[Acl], object], size: int = 1) -> None:
    most = 8

    @row(
        f"no more {resource}",
        f"limit {resource}={most * size}",
        lambda f, _: f.limit(**{resource: most * size}),
    )
    def runs_out(s: Subject) -> None:
        codes = s.codes(lambda: make(s.acl), most + 2)
        made = codes.count(0)
        assert 4 <= made <= most
        assert codes == [0] * made + [code] * (most + 2 - made)


exhausted("streams", 207008, lambda acl: acl.stream())
exhausted("events", 207007, lambda acl: acl.event())
exhausted("notifies", 207009, lambda acl: acl.out("aclrtCreateNotify", 0))
exhausted("memory", c.OUT_OF_MEMORY, lambda acl: acl.malloc(2 * MIB, fill=None), size=2 * MIB)


# Between processes.


@row(
    "an import fails",
    "fail aclrtIpcMemImportByKey code=507022",
    lambda f, _: f.fail_next("aclrtIpcMemImportByKey", 1, c.IPC_ERROR),
)
def import_fails(s: Subject) -> None:
    assert s.codes(lambda: s.acl.import_key(s.key), 2) == [c.IPC_ERROR, 0]


@row("the exporter is dead", "exporter_dead", lambda f, _: f.exporter_dead())
def dead_exporter(s: Subject) -> None:
    assert s.code(lambda: s.acl.import_key(s.key)) == c.IPC_ERROR
    s.mine().reset()
    memory = s.acl.import_key(s.key)
    s.mine().exporter_dead(os.getppid())  # it is another process that exported
    s.acl.copy(s.far, memory, 64, s.stream)
    assert s.acl.sync_code(s.stream) == 0
    s.mine().exporter_dead()
    s.acl.copy(s.far, memory, 64, s.stream)
    assert s.acl.sync_code(s.stream) == c.LINK_ERROR


@row("a process has another number", "count_as_pid pid=1", lambda f, _: f.count_as_pid(1))
def wrong_pid(s: Subject) -> None:
    assert s.code(lambda: s.acl.import_key(s.key)) == c.NO_PERMISSION


@row("exports do not fit the page", f"export_page page={1 << 30}", lambda f, _: f.export_page(1 << 30))
def misaligned(s: Subject) -> None:
    memory = s.acl.malloc(4 * MIB)
    assert s.code(lambda: s.acl.export(memory, 2 * MIB)) == c.INVALID_PARAM


# Ordering, and captures.


@row(
    "a flag overtakes the bytes before it",
    "overtake seconds=0.2 stream={stream}",
    lambda f, facts: f.overtake(seconds=0.2, stream=facts.stream),
)
def overtakes(s: Subject) -> None:
    reader, seen = s.acl.stream(), s.acl.malloc(4 * KIB)
    s.acl.aclrtValueWait(s.word, 1, c.EQ, reader)
    s.acl.copy(seen, s.far, 4 * KIB, reader)
    s.acl.copy(s.far, s.near, 4 * KIB, s.stream)
    s.acl.aclrtValueWrite(s.word, 1, 0, s.stream)
    s.acl.synchronize(reader)
    assert s.acl.read(seen, 4 * KIB) == bytes(4 * KIB)
    s.acl.synchronize(s.stream)
    assert s.arrived(4 * KIB) == 4 * KIB


@row("a capture is spoiled", "spoil_capture after=2", lambda f, _: f.spoil_capture(2))
def spoiled(s: Subject) -> None:
    s.acl.aclmdlRICaptureBegin(s.stream, 0)
    codes = s.codes(lambda: s.acl.aclrtValueWrite(s.word, 1, 0, s.stream), 3)
    assert codes == [0, 0, 507903]
    assert s.acl.code.aclmdlRICaptureEnd(s.stream, ctypes.byref(ctypes.c_void_p())) == 507903


# The processes.


def say(*words: object) -> None:
    print(*words, flush=True)


def hear() -> str:
    return sys.stdin.readline().strip()


def misbehave(name: str, words: str) -> None:
    """In a fork. `words`: for the environment; nothing: armed from outside."""
    os.environ[VARIABLE] = words
    subject = Subject()
    say("up", os.getpid())
    subject.key = bytes.fromhex(hear())
    ROWS[name].shows(subject)
    say("seen")


def main() -> None:
    while asked := hear():
        name, _, words = asked.partition(":")
        child = os.fork()
        if child == 0:
            try:
                if name == "facts":
                    say(*vars(Subject().facts()).values())
                else:
                    misbehave(name, words)
            except BaseException:
                say("failed", traceback.format_exc().replace("\n", " | "))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
