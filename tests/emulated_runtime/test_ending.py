"""How a process ends: at once, in any order, and with nothing left behind."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from .acl_harness import UNWATCHED, peer

BUSY = """
    import time
    context = acl.context(0)
    memory, stream, other = acl.malloc(2 << 20), acl.stream(), acl.stream()
    host = acl.malloc_host(4096)
    acl.out("aclrtCreateNotify", 0)
    acl.aclrtValueWait(memory, 1, c.EQ, stream)  # nobody will write it
    acl.emuStreamDelay(other, 60_000_000)
    for _ in range(100):
        acl.copy(memory + 64, memory + 128, 64, other)
"""

ENDS = {
    "the end of the program": "",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "aclFinalize": "acl.aclFinalize()",
    "aclFinalize and more calls": "acl.aclFinalize(); assert acl.code.aclrtSynchronizeStream(stream) != 0",
    "a reset of the device": "acl.aclrtResetDeviceForce(0)",
    "a destroyed context": "acl.aclrtDestroyContext(context)",
    "a thread that still waits": """
    def waits():
        acl.aclrtSetCurrentContext(context)
        say("waits")
        acl.code.aclrtSynchronizeStream(stream)
    threading.Thread(target=waits, daemon=True).start()
    """,
    "a thread that still submits": """
    def submits():
        acl.aclrtSetCurrentContext(context)
        say("submits")
        while acl.code.aclrtValueWrite(memory + 64, 1, 0, acl.stream()) == 0:
            pass
    threading.Thread(target=submits, daemon=True).start()
    time.sleep(0.02)
    """,
}


@pytest.mark.parametrize("end", list(ENDS))
def test_a_process_ends_whatever_its_streams_do(end: str) -> None:
    lines = "\n".join("    " + line.strip() if line[:4].strip() else line for line in ENDS[end].splitlines())
    with peer(BUSY + lines + "\n") as ending:
        ending.end()  # within the deadline, and with success


def test_what_a_process_holds_goes_with_it() -> None:
    # Whatever way it ends, SIGKILL as well: it has no files, no named shared memory and no helper processes.
    program = (
        BUSY
        + """
    say(acl.export(memory, 2 << 20).decode())
    theirs = acl.import_key(hear().encode())
    acl.aclrtValueWrite(theirs + 512, 1, 0, acl.stream())
    say("runs")
    hear()
    """
    )
    with peer(program, **UNWATCHED) as first, peer(program, **UNWATCHED) as second:
        keys = first.hear(), second.hear()
        first.say(keys[1])
        second.say(keys[0])
        assert (first.hear(), second.hear()) == ("runs", "runs")

        for held in (first, second):
            pid = held.process.pid
            names = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert any("emulated-npu" in name for name in names)
            assert [name for name in names if name.startswith("/") and not is_harmless(name)] == []
            shared = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "rw-s" in line]
            assert shared
            assert [line for line in shared if "/memfd:" not in line] == []
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            assert children == []
        first.kill()
        second.kill()

        for held in (first, second):
            assert not Path(f"/proc/{held.process.pid}").exists()
            left = [*os.listdir("/dev/shm"), *os.listdir(tempfile.gettempdir())]
            assert not [
                name
                for name in left
                if "emulated" in name and re.search(rf"(?<!\d){held.process.pid}(?!\d)", name)
            ]


SHARES = """
from tests.emulated_runtime.test_ipc_events import EVENT_IPC, handle_of, open_event
acl.aclrtSetDevice(0)
memory, stream, waits, event = acl.malloc(2 << 20), acl.stream(), acl.stream(), acl.event(EVENT_IPC)
say(acl.export(memory, 2 << 20).decode())
say(handle_of(acl, event).hex())
theirs, their_event = acl.import_key(hear().encode()), open_event(acl, bytes.fromhex(hear()))
acl.aclrtRecordEvent(their_event, stream)
acl.copy(theirs + 8192, memory + 4096, 4096, stream)
acl.synchronize(stream)
acl.aclrtValueWait(memory, 1, c.EQ, waits)  # the other one may end without having written it
acl.copy(theirs + 12288, memory + 4096, 4096, waits)
say("runs")
hear()
"""


@pytest.mark.parametrize("end", ["", "acl.aclFinalize()", "acl.aclrtResetDeviceForce(0)", "os._exit(0)"])
def test_processes_that_share_end_cleanly_one_after_the_other(end: str) -> None:
    with peer(SHARES + end) as one, peer(SHARES + end) as other:
        both = [one, other]
        shared = [(held.hear(), held.hear()) for held in both]
        for held, (key, handle) in zip(both, reversed(shared), strict=True):
            held.say(key)
            held.say(handle)
        assert [held.hear() for held in both] == ["runs", "runs"]

        for held in both:
            held.say("end")
            held.end()


def is_harmless(name: str) -> bool:
    return name.startswith(("/dev/null", "/memfd:", "/dev/pts", "/dev/urandom"))


def test_memory_of_a_killed_process_is_given_back() -> None:
    # An importer is the last holder; when it closes, the kernel has the pages again.
    owner = """
    context = acl.context(0)
    memory = acl.malloc(64 << 20)
    say(acl.export(memory, 64 << 20).decode())
    hear()
    """
    importer = """
    context = acl.context(0)
    key = hear().encode()
    theirs = acl.import_key(key)
    def mapped(): return sum("emulated-npu-memory" in line for line in open("/proc/self/maps"))
    say(mapped() > 0)
    hear()
    acl.aclrtIpcMemClose(key)
    say(mapped())
    """
    with peer(owner) as first, peer(importer) as second:
        second.say(first.hear())
        assert second.hear() == "True"
        first.kill()
        second.say("close")

        assert second.hear() == "0"


def test_a_forked_child_is_refused_and_its_parent_goes_on() -> None:
    program = """
    context, stream = acl.context(0), acl.stream()
    memory = acl.malloc(4096)
    child = os.fork()
    if child == 0:
        code = acl.code.aclrtSynchronizeStream(stream)
        os._exit(0 if code == 500000 and "forked" in acl.message() else 1)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    acl.aclrtMemsetAsync(memory, 4096, 7, 4096, stream)
    acl.synchronize(stream)
    say(acl.read(memory, 1)[0])
    """
    with peer(program) as forks:
        assert forks.hear() == "0"
        assert forks.hear() == "7"


def test_a_forked_child_ends_while_the_parents_streams_are_busy() -> None:
    program = (
        BUSY
        + """
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        sys.exit(0)  # with all exit handlers
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - begun)
    """
    )
    with peer(program) as forks:
        status, took_s = forks.hear().split()
        assert status == "0"
        # Threads that do not end are waited for 5 seconds.
        assert float(took_s) < 4


def test_a_forked_child_tells_no_leaks_of_its_parent() -> None:
    program = """
    context, memory = acl.context(0), acl.malloc(4096)
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    acl.aclrtFree(memory)
    acl.aclrtDestroyContext(context)
    """
    with peer(program, TORCH_LLM_DATADIST_EMULATE_LEAKS="1") as forks:
        assert forks.end() == ""
