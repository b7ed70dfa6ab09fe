"""Events that two processes share. Who waits for what is settled on the host, when the calls are made."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl, AclError
from .acl_harness import FEW_MS, ROOT, Gate, Peer, peer

EVENT_IPC = 0x40
NO_EVENT = 207007


class Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * 64),)


def handle_of(acl: Acl, event: int) -> bytes:
    handle = Handle()
    acl.aclrtIpcGetEventHandle(event, ctypes.byref(handle))
    return bytes(handle)


def open_event(acl: Acl, handle: bytes) -> int:
    out = ctypes.c_void_p()
    acl.aclrtIpcOpenEventHandle(Handle.from_buffer_copy(handle), ctypes.byref(out))
    assert out.value is not None
    return out.value


def open_code(acl: Acl, handle: bytes) -> int:
    try:
        open_event(acl, handle)
    except AclError as error:
        return error.code
    return 0


def is_held(acl: Acl, stream: int) -> bool:
    return acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT


MAKER = """
from tests.emulated_runtime.acl_harness import Gate
from tests.emulated_runtime.test_ipc_events import EVENT_IPC, handle_of
acl.aclrtSetDevice(0)
event, stream = acl.event(EVENT_IPC), acl.stream()
say(handle_of(acl, event).hex())
gates = []
while command := hear():
    if command == "record":  # held by a gate
        gates.append(Gate(acl, stream))
        acl.aclrtRecordEvent(event, stream)
    elif command == "open":
        gates.pop(0).open()
    elif command == "wait":
        acl.aclrtStreamWaitEvent(stream, event)
    elif command == "synchronize":
        acl.synchronize(stream)
    elif command == "abort":
        acl.aclrtStreamAbort(stream)
    elif command == "destroy":
        acl.aclrtDestroyEvent(event)
    say("done")
"""


class Maker:
    def __init__(self, other: Peer) -> None:
        self.peer = other
        self.handle = bytes.fromhex(other.hear())

    def __call__(self, *commands: str) -> None:
        for command in commands:
            self.peer.say(command)
            assert self.peer.hear() == "done"


@contextlib.contextmanager
def maker() -> Iterator[Maker]:
    with peer(MAKER) as other:
        yield Maker(other)


def test_wait_before_any_record_is_a_no_op(acl: Acl) -> None:
    with maker() as other:
        event, stream = open_event(acl, other.handle), acl.stream()

        acl.aclrtStreamWaitEvent(stream, event)
        other("record")  # too late for the wait above

        acl.synchronize(stream)
        assert acl.last_out("aclrtQueryEventStatus", event) == 0


def test_never_recorded_event_is_complete(acl: Acl) -> None:
    event = acl.event(EVENT_IPC)

    assert acl.last_out("aclrtQueryEventStatus", event) == 1
    acl.aclrtSynchronizeEvent(event)


def test_wait_binds_to_the_latest_record_at_the_call(acl: Acl) -> None:
    with maker() as other:
        event, stream = open_event(acl, other.handle), acl.stream()
        other("record")
        acl.aclrtStreamWaitEvent(stream, event)
        other("record")  # held by another gate; the wait is not about it
        assert is_held(acl, stream)

        other("open")

        acl.synchronize(stream)
        assert acl.last_out("aclrtQueryEventStatus", event) == 0
        other("open")
        acl.aclrtSynchronizeEvent(event)
        assert acl.last_out("aclrtQueryEventStatus", event) == 1


def test_importer_records_and_the_maker_waits(acl: Acl) -> None:
    with maker() as other:
        event, stream = open_event(acl, other.handle), acl.stream()
        gate = Gate(acl, stream)
        acl.aclrtRecordEvent(event, stream)
        other("wait")
        assert acl.code.aclrtSynchronizeEventWithTimeout(event, 1) == c.EVENT_TIMEOUT

        gate.open()

        other("synchronize")
        acl.aclrtDestroyEvent(event)


def test_records_again_and_again_use_up_nothing(acl: Acl) -> None:
    event, stream = acl.event(EVENT_IPC), acl.stream()

    for held in (True, False):
        for _ in range(5):
            gate = Gate(acl, stream)
            if not held:
                gate.open()
            for _ in range(1800):
                acl.aclrtRecordEvent(event, stream)
            gate.open()
            acl.synchronize(stream)


def test_8192_records_may_be_open_and_one_more_is_207007() -> None:
    program = """
    acl.context()
    events = [acl.event(0x40) for _ in range(8192)]
    full = code_of(lambda: acl.event(0x40))
    streams = [acl.stream() for _ in range(5)]
    word = acl.malloc(64)
    for stream in streams:
        acl.aclrtValueWait(word, 1, c.EQ, stream)
    for i, event in enumerate(events):
        acl.aclrtRecordEvent(event, streams[i // 2000])
    no_slot = acl.code.aclrtRecordEvent(events[0], streams[4])
    acl.write_word(word, 1)
    for stream in streams:
        acl.synchronize(stream)
    acl.aclrtDestroyEvent(events.pop())
    say(full, no_slot, acl.code.aclrtRecordEvent(events[0], streams[4]), code_of(lambda: acl.event(0x40)))
    """
    with peer(program) as other:
        assert other.hear() == f"{NO_EVENT} {NO_EVENT} 0 0"


def test_records_that_are_lost_use_up_nothing(acl: Acl) -> None:
    event, stream = acl.event(EVENT_IPC), acl.stream()

    for _ in range(5):
        Gate(acl, stream)
        for _ in range(1800):
            acl.aclrtRecordEvent(event, stream)
        acl.aclrtStreamAbort(stream)

    assert acl.code.aclrtSynchronizeEventWithTimeout(event, 0) == c.STREAM_ABORT
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtSynchronizeEvent(event)


def test_who_waits_for_a_lost_record_is_not_let_go_by_who_takes_its_slot(acl: Acl) -> None:
    event, stream, waiting, behind = acl.event(EVENT_IPC), acl.stream(), acl.stream(), acl.stream()
    Gate(acl, stream)
    gate = Gate(acl, behind)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.aclrtStreamWaitEvent(behind, event)  # looks when its slot is long another's
    acl.aclrtStreamAbort(stream)

    for _ in range(8192):
        acl.aclrtRecordEvent(event, stream)
    acl.synchronize(stream)
    gate.open()

    assert is_held(acl, waiting)
    assert is_held(acl, behind)
    acl.aclrtStreamAbort(waiting)
    acl.aclrtStreamAbort(behind)


def test_maker_and_importer_are_different_processes(acl: Acl) -> None:
    assert open_code(acl, handle_of(acl, acl.event(EVENT_IPC))) == c.INVALID_PARAM


def test_handles_are_checked(acl: Acl) -> None:
    assert open_code(acl, bytes(64)) == c.INVALID_PARAM
    assert acl.code.aclrtIpcGetEventHandle(acl.event(), ctypes.byref(Handle())) == c.INVALID_PARAM
    with maker() as other:
        opened = open_event(acl, other.handle)
        assert acl.code.aclrtIpcGetEventHandle(opened, ctypes.byref(Handle())) == c.INVALID_PARAM
        other("destroy")
        assert open_code(acl, other.handle) == c.IPC_ERROR
        other.peer.kill()
        assert open_code(acl, other.handle) == c.IPC_ERROR


def test_no_reset_no_elapsed_time_no_id(acl: Acl) -> None:
    event, stream, out = acl.event(EVENT_IPC), acl.stream(), ctypes.c_uint32()

    assert acl.code.aclrtResetEvent(event, stream) == c.UNSUPPORTED
    assert acl.code.aclrtGetEventId(event, ctypes.byref(out)) == c.UNSUPPORTED
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(out), event, event) == c.INVALID_PARAM
    assert acl.code.aclrtQueryEvent(event, ctypes.byref(out)) == c.UNSUPPORTED


@pytest.mark.parametrize("call", ["aclrtRecordEvent", "aclrtStreamWaitEvent"])
def test_it_cannot_be_captured(acl: Acl, call: str) -> None:
    event, stream = acl.event(EVENT_IPC), acl.stream()
    acl.aclmdlRICaptureBegin(stream, 0)

    args = (event, stream) if call == "aclrtRecordEvent" else (stream, event)
    assert getattr(acl.code, call)(*args) == c.UNSUPPORTED

    acl.code.aclmdlRICaptureEnd(stream, ctypes.byref(ctypes.c_void_p()))


@pytest.mark.parametrize(("how", "code"), [("destroy", c.REMOTE_ERROR), ("die", c.LINK_ERROR)])
def test_calls_after_the_maker_let_go_fail(acl: Acl, how: str, code: int) -> None:
    with maker() as other:
        event, stream = open_event(acl, other.handle), acl.stream()
        other("record")
        if how == "die":
            other.peer.kill()
        else:
            other(how)

        assert acl.code.aclrtRecordEvent(event, stream) == code
        assert acl.code.aclrtStreamWaitEvent(stream, event) == code
        assert acl.code.aclrtQueryEventStatus(event, ctypes.byref(ctypes.c_int32())) == code


def test_wait_that_runs_survives_a_destroy_and_fails_when_the_maker_dies(acl: Acl) -> None:
    with maker() as other:
        event, stream = open_event(acl, other.handle), acl.stream()
        other("record")
        acl.aclrtStreamWaitEvent(stream, event)
        other("destroy", "open")
        acl.synchronize(stream)
    with maker() as other:
        event = open_event(acl, other.handle)
        other("record")
        acl.aclrtStreamWaitEvent(stream, event)
        other.peer.kill()
        assert acl.sync_code(stream) == c.LINK_ERROR


def test_host_that_waits_hears_of_a_record_that_never_comes(acl: Acl) -> None:
    with maker() as other:
        event = open_event(acl, other.handle)
        other("record", "abort")

        assert acl.code.aclrtSynchronizeEventWithTimeout(event, 20_000) == c.STREAM_ABORT


# Records once, or until no slot is left, on streams that are held.
RECORDER = """
from tests.emulated_runtime.test_ipc_events import NO_EVENT, open_event
acl.aclrtSetDevice(0)
event, word = open_event(acl, bytes.fromhex(hear())), acl.malloc(64)
most, records, code = int(hear()), 0, 0
while code == 0 and records < most:
    if records % 2000 == 0:
        stream = acl.stream()
        acl.aclrtValueWait(word, 1, c.EQ, stream)
    code = acl.code.aclrtRecordEvent(event, stream)
    records += 1
say(code)
hear()
"""


@contextlib.contextmanager
def recorder(acl: Acl, event: int, most: int = 1) -> Iterator[Peer]:
    with peer(RECORDER) as other:
        other.say(handle_of(acl, event).hex())
        other.say(most)
        assert other.hear() == str(0 if most == 1 else NO_EVENT)
        yield other


def test_slots_of_a_dead_recorder_are_used_again(acl: Acl) -> None:
    event, stream = acl.event(EVENT_IPC), acl.stream()
    gate = Gate(acl, stream)
    with recorder(acl, event, most=8193) as other:
        assert acl.code.aclrtRecordEvent(event, stream) == NO_EVENT

        other.kill()

        for _ in range(2000):
            acl.aclrtRecordEvent(event, stream)
        gate.open()
        acl.synchronize(stream)
        acl.aclrtSynchronizeEvent(event)


# Between a look at a slot and the change of it other processes go on; here they do so in between for sure.
MOVES_ON = """
#include "emulator/ipc_event_page.h"
using Page = emu::IpcEventPage;
int main() {
  const uint32_t seen = 7 * Page::kOne | Page::kPending;
  const auto freed = [&](uint32_t now, uint32_t then, bool is_freed) {
    std::atomic<uint32_t> slot{now};
    return Page::free_pending(slot, seen) == is_freed && slot.load() == then;
  };
  const uint32_t retired = seen | Page::kRetired, done = 7 * Page::kOne | Page::kDone;
  const uint32_t used_again = 8 * Page::kOne | Page::kPending;
  if (!freed(seen, 7 * Page::kOne, true)) return 1;
  if (!freed(retired, 7 * Page::kOne, true)) return 2;
  if (!freed(done, done, false)) return 3;
  if (!freed(used_again, used_again, false)) return 4;
}
"""


def test_slot_of_a_dead_recorder_is_free_also_when_its_event_moves_on_meanwhile(tmp_path: Path) -> None:
    program, source = tmp_path / "moves_on", tmp_path / "moves_on.cpp"
    source.write_text(MOVES_ON)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = [*compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", source, "-o", program]
    subprocess.run(command, check=True)

    assert subprocess.run([program]).returncode == 0


def test_host_that_waits_hears_that_the_recorder_died_before_anybody_buried_it(acl: Acl) -> None:
    event = acl.event(EVENT_IPC)
    with recorder(acl, event) as other:
        os.kill(other.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)  # leaves it as it is

        assert acl.code.aclrtSynchronizeEventWithTimeout(event, 20_000) == c.LINK_ERROR


def test_host_that_waits_hears_that_the_recorder_died(acl: Acl) -> None:
    event = acl.event(EVENT_IPC)
    with recorder(acl, event) as other:
        assert acl.last_out("aclrtQueryEventStatus", event) == 0

        other.kill()

        assert acl.code.aclrtSynchronizeEventWithTimeout(event, 20_000) == c.LINK_ERROR
        assert acl.code.aclrtQueryEventStatus(event, ctypes.byref(ctypes.c_int32())) == c.LINK_ERROR


def test_950dt_has_none() -> None:
    program = "acl.context(); say(code_of(lambda: acl.event(0x40)))"

    with peer(program, TORCH_LLM_DATADIST_EMULATE_PROFILE="950DT") as other:
        assert other.hear() == str(c.UNSUPPORTED)
