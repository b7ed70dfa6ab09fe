"""Faults that one process arms in another: by the environment, by faults.of(pid), and frozen hosts."""

from __future__ import annotations

import ctypes
import math
import os
import select
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torch_llm_datadist.emulator import faults, host_freeze
from torch_llm_datadist.emulator.fault_block import NAME

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, MIB, ROOT, Peer, code_of, in_thread, joined, peer

VARIABLE = "TORCH_LLM_DATADIST_EMULATE_FAULTS"

# Does what it is told, a line each; its memory is one range of two MiB that others may import.
OBEDIENT = """
acl.aclrtSetDevice(0)
memory = acl.malloc(2 << 20)
source = acl.malloc(2 << 20, fill=1)
stream = acl.stream(stop_on_failure=True)
say(acl.export(memory, 2 << 20).hex(), stream)
while command := hear():
    if command == "copy":
        acl.copy(memory, source, 2 << 20, stream)
        say("queued")
    elif command == "wait for 7":
        acl.aclrtValueWait(memory, 7, c.EQ, stream)
        acl.aclrtValueWrite(memory + 8, 8, 0, stream)
        say("queued")
    elif command == "sync":
        say(acl.sync_code(stream))
    elif command == "stream":
        say(acl.code.aclrtCreateStream(ctypes.byref(ctypes.c_void_p())))
    elif command == "count":
        say(acl.read(memory, 2 << 20).count(1))
    elif command == "reset":
        acl.aclrtResetDeviceForce(0)
        acl.aclrtSetDevice(0)
        stream, memory, source = acl.stream(), acl.malloc(2 << 20), acl.malloc(2 << 20, fill=1)
        say("reset")
"""


def asked(other: Peer, command: str) -> str:
    other.say(command)
    return other.hear()


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_faults_of_another_process_reach_it_and_nobody_else(acl: Acl) -> None:
    with peer(OBEDIENT) as other:
        _, stream = other.hear().split()
        theirs = faults.of(other.process.pid)

        failing = theirs.fail_next("aclrtCreateStream", nth=2, code=207008)
        assert failing is not None
        acl.stream()
        acl.stream()
        assert [asked(other, "stream") for _ in range(3)] == ["0", "207008", "0"]
        assert (failing.hits, failing.fired) == (3, 1)

        held = theirs.hold_copy(after=MIB, stream=int(stream))
        assert asked(other, "copy") == "queued"
        held.wait()
        assert asked(other, "count") == str(MIB)
        held.disarm()
        assert asked(other, "sync") == "0"
        assert asked(other, "count") == str(2 * MIB)

        theirs.lose_device(0, 507899)
        assert asked(other, "sync") == "507899"
        assert asked(other, "stream") == "507899"
        assert asked(other, "reset") == "reset"
        assert asked(other, "stream") == "0"

        theirs.fail_task(1, c.LINK_ERROR, direction="d2d")
        assert asked(other, "copy") == "queued"
        assert asked(other, "sync") == str(c.LINK_ERROR)


def test_frozen_device_of_another_process_holds_its_queue_and_not_its_host(acl: Acl) -> None:
    with peer(OBEDIENT) as other:
        other.hear()
        theirs = faults.of(other.process.pid)

        theirs.freeze_device(0)
        assert asked(other, "copy") == "queued"
        other.say("sync")
        time.sleep(FEW_MS / 1000)
        theirs.thaw_device(0)

        assert other.hear() == "0"
        assert asked(other, "count") == str(2 * MIB)


# Memory of other processes.


def test_exporter_counts_as_dead_while_it_lives(acl: Acl) -> None:
    mine = faults.of(os.getpid())
    with peer(OBEDIENT) as other, peer(OBEDIENT) as third:
        key, key_of_third = bytes.fromhex(other.hear().split()[0]), bytes.fromhex(third.hear().split()[0])
        memory, near = acl.import_key(key), acl.malloc(64)
        stream = acl.stream()

        dead = mine.exporter_dead(other.process.pid)
        acl.copy(near, memory, 64, stream)
        assert acl.sync_code(stream) == c.LINK_ERROR
        acl.aclrtIpcMemClose(key)
        assert code_of(lambda: acl.import_key(key)) == c.IPC_ERROR
        acl.import_key(key_of_third)
        acl.aclrtIpcMemClose(key_of_third)

        dead.disarm()
        acl.import_key(key)
        acl.aclrtIpcMemClose(key)
        mine.exporter_dead()
        assert code_of(lambda: acl.import_key(key_of_third)) == c.IPC_ERROR
        mine.reset()
        assert asked(other, "count") == "0"


def test_exporter_that_never_could_be_opened_counts_as_dead(acl: Acl) -> None:
    mine = faults.of(os.getpid())
    mine.exporter_dead()
    with peer(OBEDIENT) as other:
        key = bytes.fromhex(other.hear().split()[0])
        assert code_of(lambda: acl.import_key(key)) == c.IPC_ERROR
        mine.reset()
        acl.import_key(key)
        acl.aclrtIpcMemClose(key)


def test_process_known_by_another_number_is_not_on_the_white_list(acl: Acl) -> None:
    memory = acl.malloc(2 * MIB)
    key = acl.export(memory, 2 * MIB, flags=0)
    program = """
    acl.aclrtSetDevice(0)
    say("up")
    key = bytes.fromhex(hear())
    while hear():
        say(code_of(lambda: acl.import_key(key)))
    """
    with peer(program) as other:
        other.hear()
        acl.aclrtIpcMemSetImportPid(key, (ctypes.c_int32 * 1)(other.process.pid), 1)
        other.say(key.hex())
        wrong = faults.of(other.process.pid).count_as_pid(1)

        assert asked(other, "import") == str(c.NO_PERMISSION)
        wrong.disarm()
        assert asked(other, "import") == "0"


def test_failed_import_has_the_documented_code(acl: Acl) -> None:
    mine = faults.of(os.getpid())
    with peer(OBEDIENT) as other:
        key = bytes.fromhex(other.hear().split()[0])
        mine.fail_next("aclrtIpcMemImportByKey", 1, c.IPC_ERROR)

        assert code_of(lambda: acl.import_key(key)) == c.IPC_ERROR
        acl.import_key(key)
        acl.aclrtIpcMemClose(key)


# By the environment.


def test_environment_arms_faults_at_start() -> None:
    program = """
    acl.aclrtSetDevice(0)
    say(*(acl.code.aclrtCreateStream(ctypes.byref(ctypes.c_void_p())) for _ in range(3)))
    """
    with peer(program, **{VARIABLE: "fail aclrtCreateStream nth=2 code=207008; bandwidth d2d=2e9"}) as other:
        assert other.hear() == "0 207008 0"
        assert other.end() == ""


def test_bad_environment_fails_every_call_and_says_why() -> None:
    program = """
    say(acl.code.aclrtSetDevice(0), acl.message())
    say(acl.code.aclInit(None))
    """
    with peer(program, **{VARIABLE: "freeze everything"}) as other:
        answer = other.hear()
        assert answer.startswith("100000 ")
        assert f"{VARIABLE}: 'freeze everything': 'freeze' is no fault; there are fail, late" in answer
        assert other.hear() == "100000"
        assert other.end().count(VARIABLE) == 1


# Who may be controlled, and what stays.


def test_process_without_an_emulated_device_is_refused_by_name() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        with pytest.raises(LookupError, match=f"process {idle.pid} runs no emulated NPU"):
            faults.of(idle.pid)
        idle.kill()
    with pytest.raises(ProcessLookupError, match="there is no process"):
        faults.of(idle.pid)


def test_controller_needs_neither_torch_nor_emulation() -> None:
    with peer(OBEDIENT) as other:
        other.hear()
        program = f"""
import sys
from torch_llm_datadist.emulator import faults
faults.of({other.process.pid}).fail_next("aclrtCreateStream", 1, 207008)
assert "torch" not in sys.modules
assert "libascendcl" not in open("/proc/self/maps").read()
"""
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=DEADLINE_S)

        assert asked(other, "stream") == "207008"


def test_killed_controller_leaves_no_lock_behind() -> None:
    with peer(OBEDIENT) as other:
        other.hear()
        program = f"""
from torch_llm_datadist.emulator import faults
block = faults.Block({other.process.pid})
with block._writing():
    print("locked", flush=True)
    input()
"""
        controller = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"locked\n"
        controller.kill()
        controller.communicate()

        faults.of(other.process.pid).fail_next("aclrtCreateStream", 1, 207008)

        assert asked(other, "stream") == "207008"


def test_block_ends_with_its_process(acl: Acl) -> None:
    def left() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if NAME in name}

    with peer(OBEDIENT) as other:
        other.hear()
        faults.of(other.process.pid).freeze_device(0)
        other.kill()

    assert left() == set()


def test_forked_child_has_faults_of_its_own_and_begins_with_its_parents() -> None:
    program = """
    acl.library.emuFaults(b"fail aclrtCreateStream nth=2 code=207008")
    child = os.fork()
    who = "parent" if child else "child"
    if not child:
        say("forked", os.getpid())
    else:
        pass
    line = hear() if not child else None
    if child:
        os.waitpid(child, 0)
    acl.aclrtSetDevice(0)
    say(who, *(acl.code.aclrtCreateStream(ctypes.byref(ctypes.c_void_p())) for _ in range(4)))
    """
    with peer(program) as other:
        child = int(other.hear().split()[1])
        faults.of(child).fail_next("aclrtCreateStream", nth=3, code=207001)
        other.say("go on")

        assert other.hear() == "child 0 0 207001 0"
        assert other.hear() == "parent 0 207008 0 0"


# Frozen hosts.

BUSY_HOST = """
import time
from tests.emulated_runtime.acl_harness import HostFunction
acl.aclrtSetDevice(0)
memory = acl.malloc(2 << 20)
stream, other_stream = acl.stream(), acl.stream()
beats = acl.malloc(64)
context = acl.out("aclrtGetCurrentContext")
host_calls = acl.malloc_host(64)
counts = (ctypes.c_uint64 * 4).from_address(host_calls)
def count(index, step):
    def loop():
        while True:
            counts[index] += 1
            step()
    return loop
def start_threads():
    while True:
        thread = threading.Thread(target=count_once)
        thread.start()
        thread.join()
def count_once():
    counts[2] += 1
say(acl.export(memory, 2 << 20).hex())
threading.Thread(target=count(0, lambda: time.sleep(0.0005)), daemon=True).start()   # in system calls
threading.Thread(target=count(1, lambda: None), daemon=True).start()                 # with the GIL
threading.Thread(target=start_threads, daemon=True).start()                          # ever new ones
acl.aclrtValueWait(memory, 7, c.EQ, stream)
acl.aclrtValueWrite(memory + 8, 8, 0, stream)
@HostFunction
def on_host(_):
    counts[3] += 1
acl.aclrtValueWait(memory + 16, 9, c.EQ, other_stream)
acl.aclrtLaunchHostFunc(other_stream, on_host, None)
acl.aclrtValueWrite(memory + 24, 10, 0, other_stream)
# What the test may look at without asking: the counts, by way of the device.
stream_of_counts = acl.stream()
say(host_calls)
hear()
say("over", counts[3])
os._exit(0)
"""


def counts_of(process: int, address: int) -> tuple[int, ...]:
    with open(f"/proc/{process}/mem", "rb") as memory:
        memory.seek(address)
        packed = memory.read(32)
    return tuple(int.from_bytes(packed[i : i + 8], "little") for i in range(0, 32, 8))


def test_frozen_host_stands_still_while_its_device_goes_on(acl: Acl) -> None:
    with peer(BUSY_HOST) as other:
        memory = acl.import_key(key := bytes.fromhex(other.hear()))
        address, stream, near = int(other.hear()), acl.stream(), acl.malloc(64)
        pid = other.process.pid
        wait_until(lambda: all(counts_of(pid, address)[:3]))
        theirs = faults.of(pid)

        def flag(offset: int, value: int) -> None:
            acl.aclrtValueWrite(memory + offset, value, 0, stream)

        def word(offset: int) -> int:
            acl.copy(near, memory + offset, 8, stream)
            acl.synchronize(stream)
            return acl.read_word(near)

        theirs.freeze_host()
        frozen = counts_of(pid, address)
        flag(0, 7)  # its streams go on …
        wait_until(lambda: word(8) == 8)
        flag(16, 9)  # … up to a host function, which is the host's
        time.sleep(FEW_MS / 1000)
        assert counts_of(pid, address) == frozen
        assert word(24) == 0

        theirs.thaw_host()
        wait_until(lambda: word(24) == 10)
        wait_until(lambda: all(a > b for a, b in zip(counts_of(pid, address), frozen, strict=True)))
        other.say("end")
        assert other.hear() == "over 1"
        other.process.wait(DEADLINE_S)
        acl.aclrtIpcMemClose(key)


def test_first_host_function_of_a_process_waits_while_its_idle_host_is_frozen(acl: Acl) -> None:
    program = """
    from tests.emulated_runtime.acl_harness import HostFunction
    acl.aclrtSetDevice(0)
    memory, stream = acl.malloc(2 << 20), acl.stream()
    say(acl.export(memory, 2 << 20).hex())
    acl.aclrtValueWait(memory, 1, c.EQ, stream)
    note = HostFunction(lambda _: say("called"))
    acl.aclrtLaunchHostFunc(stream, note, None)
    say("queued")
    hear()
    """
    with peer(program) as other:
        memory, stream = acl.import_key(key := bytes.fromhex(other.hear())), acl.stream()
        assert other.hear() == "queued"
        theirs = faults.of(other.process.pid)
        theirs.freeze_host()

        acl.aclrtValueWrite(memory, 1, 0, stream)
        acl.synchronize(stream)

        assert other.process.stdout is not None
        assert not select.select([other.process.stdout], [], [], FEW_MS / 1000)[0]
        theirs.thaw_host()
        assert other.hear() == "called"
        acl.aclrtIpcMemClose(key)


# Threads that are nearly always inside of the runtime, where they hold locks that streams need, too.
INSIDE_OF_LOCKS = """
acl.aclrtSetDevice(0)
context = acl.out("aclrtGetCurrentContext")
memory, stream = acl.malloc(2 << 20), acl.stream()
say(acl.export(memory, 2 << 20).hex())
def allocates():
    acl.aclrtSetCurrentContext(context)
    while True:
        acl.aclrtFree(acl.out("aclrtMalloc", 8 << 30, 0))
for _ in range(4):
    threading.Thread(target=allocates, daemon=True).start()
for round in range(1, 501):
    acl.aclrtValueWait(memory, round, c.GEQ, stream)
    acl.copy(memory + 4096, memory + 8192, 4096, stream)
    acl.aclrtValueWrite(memory + 8, round, 0, stream)
say("queued")
hear()
"""


def test_frozen_host_holds_no_lock_that_its_device_needs(acl: Acl) -> None:
    with peer(INSIDE_OF_LOCKS) as other:
        memory, stream = acl.import_key(key := bytes.fromhex(other.hear())), acl.stream()
        assert other.hear() == "queued"
        theirs = faults.of(other.process.pid)
        for round in range(1, 4):
            theirs.freeze_host()

            acl.aclrtValueWrite(memory, round, 0, stream)
            acl.aclrtValueWait(memory + 8, round, c.GEQ, stream)

            assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == 0
            theirs.thaw_host()
        acl.aclrtIpcMemClose(key)


# Host functions in a row, with the words between them that their thread writes on the way.
ROWS_OF_FUNCTIONS = """
acl.aclrtSetDevice(0)
context = acl.out("aclrtGetCurrentContext")
memory, stream, echo = acl.malloc(2 << 20), acl.stream(), acl.stream()
say(acl.export(memory, 2 << 20).hex())
nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
def launches():
    acl.aclrtSetCurrentContext(context)
    for value in range(1 << 60):
        acl.aclrtLaunchHostFunc(stream, nothing, None)
        acl.aclrtValueWrite(memory + 64, value, 0, stream)
        acl.aclrtValueWrite(memory + 64, value, 0, stream)
threading.Thread(target=launches, daemon=True).start()
for round in range(1, 101):
    acl.aclrtValueWait(memory, round, c.GEQ, echo)
    acl.aclrtValueWrite(memory + 8, round, 0, echo)
say("queued")
hear()
"""


def test_frozen_host_calls_no_function_and_keeps_no_stream_that_it_was_busy_with(acl: Acl) -> None:
    with peer(ROWS_OF_FUNCTIONS) as other:
        memory, stream, near = (
            acl.import_key(key := bytes.fromhex(other.hear())),
            acl.stream(),
            acl.malloc(64),
        )
        assert other.hear() == "queued"
        theirs = faults.of(other.process.pid)

        def written() -> int:
            acl.copy(near, memory + 64, 8, stream)
            acl.synchronize(stream)
            return acl.read_word(near)

        for round in range(1, 6):
            before = written()
            wait_until(lambda before=before: written() > before)
            theirs.freeze_host()

            acl.aclrtValueWrite(memory, round, 0, stream)
            acl.aclrtValueWait(memory + 8, round, c.GEQ, stream)
            acl.synchronize(stream)
            time.sleep(FEW_MS / 1000)  # the stream comes to its next function
            stands_at = written()
            time.sleep(FEW_MS / 1000)
            assert written() == stands_at
            theirs.thaw_host()
        acl.aclrtIpcMemClose(key)


def test_frozen_host_can_be_killed_and_frees_the_freezer(acl: Acl) -> None:
    with peer(BUSY_HOST) as other:
        other.hear()
        theirs = faults.of(other.process.pid)
        theirs.freeze_host()

        other.kill()

        assert other.process.returncode == -9
        theirs.thaw_host()


def test_host_goes_on_when_its_freezer_dies() -> None:
    with peer(OBEDIENT) as other:
        other.hear()
        program = f"""
from torch_llm_datadist.emulator import faults
faults.of({other.process.pid}).freeze_host()
print("frozen", flush=True)
input()
"""
        freezer = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert freezer.stdout is not None
        assert freezer.stdout.readline() == b"frozen\n"
        other.say("stream")
        assert other.process.stdout is not None
        time.sleep(FEW_MS / 1000)
        os.set_blocking(other.process.stdout.fileno(), False)
        assert other.process.stdout.readline() == ""
        os.set_blocking(other.process.stdout.fileno(), True)

        freezer.kill()
        freezer.communicate()

        assert other.hear() == "0"


def test_signals_that_come_while_frozen_are_delivered_after_the_thaw() -> None:
    program = """
    import signal
    signal.signal(signal.SIGUSR1, lambda *_: say("signal"))
    acl.aclrtSetDevice(0)
    stream, word = acl.stream(), acl.malloc(8)
    acl.aclrtValueWrite(word, 1, 0, stream)
    acl.aclrtSynchronizeStream(stream)
    say("its device has a thread, which goes on, and is not to take them")
    hear()
    """
    with peer(program) as other:
        other.hear()
        theirs = faults.of(other.process.pid)
        for _ in range(3):
            theirs.freeze_host()
            os.kill(other.process.pid, 10)
            theirs.thaw_host()
            assert other.hear() == "signal"


# A thread that waits for a child which has not become another program yet cannot be stopped. This one passes
# for the device's until another one renames it.
UNSTOPPABLE = """
from pathlib import Path
acl.aclrtSetDevice(0)
held, order = hear().encode(), hear()
libc = ctypes.CDLL(None)
def spawn():
    libc.prctl(15, b"npu-spawns")
    actions = ctypes.create_string_buffer(256)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 0, held, os.O_RDONLY, 0)
    say(threading.get_native_id())
    arguments = (ctypes.c_char_p * 2)(b"true", None)
    libc.posix_spawn(ctypes.byref(ctypes.c_int()), b"/bin/true", actions, None, arguments, None)
    say("spawned")
def rename():
    libc.prctl(15, b"npu-renames")
    Path(f"/proc/self/task/{Path(order).read_text()}/comm").write_text("host")
for body in (spawn, rename):
    threading.Thread(target=body, daemon=True).start()
hear()
"""


class Unstoppable:
    def __init__(self, other: Peer, directory: Path) -> None:
        self.peer, self.pid = other, other.process.pid
        self.held, self.order = directory / "held", directory / "order"
        for pipe in (self.held, self.order):
            os.mkfifo(pipe)
            other.say(pipe)
        self.thread = int(other.hear())
        wait_until(lambda: self.status("State") == "D")
        # The main thread reads, so nobody has the interpreter's lock.
        wait_until(lambda: Path(f"/proc/{self.pid}/syscall").read_text().split()[1:2] == ["0x0"])

    def status(self, field: str) -> str:
        lines = Path(f"/proc/{self.pid}/task/{self.thread}/status").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{field}:")).split()[1]

    def become_host(self) -> None:
        self.order.write_text(str(self.thread))

    def let_go(self) -> None:
        self.held.write_text("")


@pytest.fixture
def unstoppable(tmp_path: Path) -> Iterator[Unstoppable]:
    with peer(UNSTOPPABLE) as other:
        yield Unstoppable(other, tmp_path)


def test_freeze_gives_up_in_time_when_a_thread_cannot_be_stopped(unstoppable: Unstoppable) -> None:
    unstoppable.become_host()
    wait_until(lambda: unstoppable.status("Name") == "host")

    # On a busy machine others may be late, too.
    with pytest.raises(TimeoutError, match=r"thread \d+ did not stop"):
        faults.of(unstoppable.pid).freeze_host(within_s=FEW_MS / 1000)

    unstoppable.let_go()  # and nothing else holds it
    assert unstoppable.peer.hear() == "spawned"


def test_thread_whose_system_call_ended_does_not_stay_where_it_may_hold_a_lock(
    unstoppable: Unstoppable,
) -> None:
    unstoppable.become_host()
    wait_until(lambda: unstoppable.status("Name") == "host")
    place = Path(f"/proc/{unstoppable.pid}/task/{unstoppable.thread}/syscall")
    inside_of_libc = place.read_text()
    theirs = faults.of(unstoppable.pid)
    freeze = in_thread(theirs.freeze_host)
    wait_until(lambda: unstoppable.status("TracerPid") != "0")
    time.sleep(FEW_MS / 1000)  # it is told to stop

    unstoppable.let_go()

    joined(freeze)
    assert not place.exists() or place.read_text() != inside_of_libc
    theirs.thaw_host()
    assert unstoppable.peer.hear() == "spawned"


def test_host_thread_that_comes_late_and_cannot_be_stopped_holds_no_thaw_up(unstoppable: Unstoppable) -> None:
    theirs = faults.of(unstoppable.pid)
    theirs.freeze_host(within_s=1000)
    unstoppable.become_host()
    wait_until(lambda: unstoppable.status("TracerPid") != "0")

    joined(in_thread(theirs.thaw_host))

    unstoppable.let_go()
    assert unstoppable.peer.hear() == "spawned"


def test_host_thread_that_stops_late_stays_frozen_until_the_thaw(
    unstoppable: Unstoppable, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = faults.of(unstoppable.pid)
    theirs.freeze_host()
    # The time to freeze what there is says nothing about what comes later.
    much_later = types.SimpleNamespace(monotonic=lambda: math.inf, sleep=time.sleep)
    monkeypatch.setattr(host_freeze, "time", much_later)
    unstoppable.become_host()
    wait_until(lambda: unstoppable.status("TracerPid") != "0")

    unstoppable.let_go()

    wait_until(lambda: unstoppable.status("State") == "t")
    output = unstoppable.peer.process.stdout
    assert output is not None
    assert not select.select([output], [], [], FEW_MS / 1000)[0]
    theirs.thaw_host()
    assert unstoppable.peer.hear() == "spawned"


def test_device_thread_that_gets_its_name_while_it_is_looked_at_is_not_frozen(
    acl: Acl, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_device, seen = host_freeze.HostFreeze._is_device, set[int]()

    def has_its_name_from_the_second_look_on(freeze: host_freeze.HostFreeze, thread: int) -> bool:
        is_first = thread not in seen
        seen.add(thread)
        return is_device(freeze, thread) and not is_first

    monkeypatch.setattr(host_freeze.HostFreeze, "_is_device", has_its_name_from_the_second_look_on)
    with peer(OBEDIENT) as other:
        memory, stream = acl.import_key(key := bytes.fromhex(other.hear().split()[0])), acl.stream()
        assert asked(other, "wait for 7") == "queued"
        theirs = faults.of(other.process.pid)

        theirs.freeze_host()

        acl.aclrtValueWrite(memory, 7, 0, stream)
        acl.aclrtValueWait(memory + 8, 8, c.EQ, stream)
        acl.synchronize(stream)
        theirs.thaw_host()
        acl.aclrtIpcMemClose(key)


def test_host_waits_survive_a_freeze(acl: Acl) -> None:
    program = """
    import select, time
    acl.aclrtSetDevice(0)
    stream, memory = acl.stream(), acl.malloc(2 << 20)
    say(acl.export(memory, 2 << 20).hex())
    acl.aclrtValueWait(memory, 1, c.EQ, stream)
    begun = time.monotonic()
    timed_out = acl.code.aclrtSynchronizeStreamWithTimeout(stream, 150)
    say(timed_out, time.monotonic() - begun >= 0.15)
    acl.aclrtSynchronizeStream(stream)
    say("passed")
    """
    with peer(program) as other:
        memory = acl.import_key(key := bytes.fromhex(other.hear()))
        theirs = faults.of(other.process.pid)
        for _ in range(3):
            theirs.freeze_host()
            theirs.thaw_host()
        assert other.hear() == f"{c.STREAM_TIMEOUT} True"
        theirs.freeze_host()
        theirs.thaw_host()
        acl.aclrtValueWrite(memory, 1, 0, None)
        assert other.hear() == "passed"
        acl.aclrtIpcMemClose(key)


def test_freezing_twice_is_once_and_thawing_nothing_does_nothing() -> None:
    with peer(OBEDIENT) as other:
        other.hear()
        theirs = faults.of(other.process.pid)
        theirs.thaw_host()
        theirs.freeze_host()
        theirs.freeze_host()
        theirs.reset()
        assert asked(other, "stream") == "0"
