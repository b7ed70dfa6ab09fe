"""The rules of the emulated Ascend runtime, one test each, without torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl, AclError

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
FEW_MS = 30  # how long a test watches that something does not happen
DEADLINE_S = 20  # how long it waits for what must happen


@pytest.fixture(scope="module")
def library() -> Acl:
    return Acl()


@pytest.fixture
def acl(library: Acl) -> Iterator[Acl]:
    """A context of device 0 for this test alone: what fails in it stays in it."""
    context = library.context(0)
    yield library
    library.library.emuSetTaskDelay(ctypes.c_uint64(0))
    library.emuFailTask(None, 0, 0)
    library.code.aclrtDestroyContext(context)


class Gate:
    """Holds a stream until it is opened."""

    def __init__(self, acl: Acl, stream: int | None) -> None:
        self.acl = acl
        self.word = acl.malloc(64)
        acl.aclrtValueWait(self.word, 1, c.EQ, stream)

    def open(self) -> None:
        self.acl.write_word(self.word, 1)


HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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


# The program of a peer gets ``acl`` and ``say`` and ``hear`` (one line to and from the test).
PREAMBLE = """
import ctypes, os, sys, threading
from tests import acl_calls as c
from tests.acl_calls import Acl, AclError
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


# --- the table of entry points ---


def symbols(path: Path, *flags: str) -> set[str]:
    listing = subprocess.run(["nm", "-D", *flags, path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}


def test_every_acl_symbol_that_torch_npu_links_is_there() -> None:
    import importlib.util

    spec = importlib.util.find_spec("torch_npu")
    assert spec is not None
    assert spec.origin is not None
    libraries = Path(spec.origin).parent / "lib"

    wanted = symbols(libraries / "libtorch_npu.so", "--undefined-only")
    wanted |= symbols(libraries / "libtensorpipe.so", "--undefined-only")
    vendor = {
        name for name in wanted if name.startswith(("acl", "rtDev", "rtFunc", "rtKernel", "rtGet", "Msprof"))
    }

    assert len(vendor) > 70
    assert vendor <= symbols(c.LIBRARY, "--defined-only")


def test_only_c_functions_of_the_runtime_are_exported() -> None:
    exported = symbols(c.LIBRARY, "--defined-only")

    assert all(name.startswith(("acl", "rt", "Msprof", "emu")) for name in exported)


def test_an_unimplemented_function_fails_by_name_and_says_so_once() -> None:
    program = """
    acl.context()
    say(acl.code.aclopCompileAndExecute(b"MatMul", *[None] * 11), acl.message())
    say(acl.code.aclrtMallocPhysical(None, 0, None, 0), acl.message())
    acl.code.aclrtMallocPhysical(None, 0, None, 0)
    """
    with peer(program) as other:
        operator, memory = other.hear(), other.hear()
        errors = other.end()

    assert operator.startswith(f"{c.UNSUPPORTED} ")
    assert "MatMul" in operator
    assert memory.startswith(f"{c.UNSUPPORTED} aclrtMallocPhysical")
    assert errors.count("aclopCompileAndExecute('MatMul') is not implemented") == 1
    assert errors.count("aclrtMallocPhysical is not implemented") == 1


def test_init_twice_is_told(library: Acl) -> None:
    assert library.code.aclInit(None) == 100002


def test_nothing_runs_before_init_or_after_finalize() -> None:
    program = """
    acl.aclFinalize()
    say(acl.code.aclrtSetDevice(0), acl.code.aclFinalize())
    acl.aclInit(None)
    acl.aclrtSetDevice(0)
    address = acl.malloc(64, fill=7)
    say(acl.read(address, 64) == bytes([7]) * 64)
    """
    with peer(program) as other:
        assert other.hear() == "100001 100037"
        assert other.hear() == "True"
        other.end()


def test_recent_message_names_function_value_and_expectation_and_is_told_once(acl: Acl) -> None:
    assert acl.code.aclrtMemcpy(1, 4, 2, 8, c.HOST_TO_HOST) == c.INVALID_PARAM
    message = acl.message()

    assert "aclrtMemcpy" in message
    assert "8" in message
    assert "destMax 4" in message
    assert acl.message() == ""


def test_recent_message_and_last_error_are_of_the_calling_thread(acl: Acl) -> None:
    acl.library.aclrtGetLastError(0)
    seen: list[object] = []

    def fails() -> None:
        acl.code.aclrtMalloc(None, 1, 0)
        seen.extend([acl.code.aclrtPeekAtLastError(0), acl.code.aclrtGetLastError(0)])
        seen.extend([acl.code.aclrtGetLastError(0), acl.message()])

    joined(in_thread(fails))

    assert seen[:3] == [c.NO_CONTEXT, c.NO_CONTEXT, 0]
    assert "aclrtMalloc" in str(seen[3])
    assert acl.message() == ""
    assert acl.code.aclrtPeekAtLastError(0) == 0


def test_machine_says_atlas_a2_with_cann_9_1(library: Acl) -> None:
    library.library.aclrtGetSocName.restype = ctypes.c_char_p
    version = ctypes.create_string_buffer(1024)

    assert library.library.aclrtGetSocName() == b"Ascend910B3"
    for package, starts in ((0, b"9.1.0"), (7, b"26.0.RC1")):
        library.aclsysGetCANNVersion(package, version)
        assert version.value == starts
    for info in range(3):
        assert library.last_out("aclGetDeviceCapability", 0, info, kind=ctypes.c_int64) > 0


# --- devices and contexts ---


def test_devices_are_eight_unless_the_environment_says_otherwise() -> None:
    program = "say(acl.out('aclrtGetDeviceCount', kind=ctypes.c_uint32))"
    clean = {"TORCH_LLM_DATADIST_EMULATE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": ""}

    for environment, count in (({}, 8), ({"TORCH_LLM_DATADIST_EMULATE_DEVICES": "3"}, 3)):
        with peer(program, **{**clean, **environment}) as other:
            assert other.hear() == str(count)


def test_visible_devices_are_counted_from_zero() -> None:
    program = """
    count = acl.out('aclrtGetDeviceCount', kind=ctypes.c_uint32)
    say(count, *[acl.last_out('aclrtGetPhyDevIdByLogicDevId', i) for i in range(count)])
    """
    with peer(program, ASCEND_RT_VISIBLE_DEVICES="5,2") as other:
        assert other.hear() == "2 5 2"


def test_device_that_does_not_exist_is_107001(library: Acl) -> None:
    assert library.code.aclrtSetDevice(99) == 107001
    assert library.code.aclrtSetDevice(-1) == 107001


def test_thread_inherits_no_context(acl: Acl) -> None:
    codes: list[int] = []

    def body() -> None:
        out = ctypes.c_void_p()
        codes.append(acl.code.aclrtMalloc(ctypes.byref(out), 64, 0))
        codes.append(acl.code.aclrtGetDevice(ctypes.byref(out)))
        codes.append(acl.code.aclrtSynchronizeStream(None))

    joined(in_thread(body))

    assert codes == [c.NO_CONTEXT] * 3


def test_set_device_binds_all_threads_to_one_primary_context(library: Acl) -> None:
    contexts: list[int] = []

    def body() -> None:
        library.aclrtSetDevice(1)
        contexts.append(library.out("aclrtGetCurrentContext"))

    for _ in range(2):
        joined(in_thread(body))

    assert contexts[0] == contexts[1]


def test_reset_ends_the_primary_context_when_all_sets_are_taken_back() -> None:
    program = """
    acl.aclrtSetDevice(2); acl.aclrtSetDevice(2)
    active = lambda: acl.last_out('aclrtGetPrimaryCtxState', 2, None)
    acl.aclrtResetDevice(2)
    say(active())
    acl.aclrtResetDevice(2)
    say(active(), acl.code.aclrtSynchronizeStream(None))
    """
    with peer(program) as other:
        assert other.hear() == "1"
        assert other.hear() == f"0 {c.NO_CONTEXT}"


def test_set_current_context_switches_the_device(acl: Acl) -> None:
    other = acl.context(3)

    assert acl.out("aclrtGetDevice", kind=ctypes.c_int32) == 3

    acl.aclrtDestroyContext(other)
    assert acl.code.aclrtSynchronizeStream(None) == c.NO_CONTEXT


def test_destroyed_or_made_up_context_is_refused(acl: Acl) -> None:
    context = acl.context()
    acl.aclrtDestroyContext(context)

    assert acl.code.aclrtSetCurrentContext(context) == c.BAD_HANDLE
    assert acl.code.aclrtSetCurrentContext(0x1234) == c.BAD_HANDLE
    assert acl.code.aclrtDestroyContext(context) == c.BAD_HANDLE


def test_destroy_context_ends_its_streams_and_waits_for_what_runs(acl: Acl) -> None:
    mine = acl.out("aclrtGetCurrentContext")
    context = acl.context(0)
    stream = acl.stream()
    inside, ended = threading.Event(), []
    function = HostFunction(lambda _: (inside.set(), release.wait(DEADLINE_S), ended.append(True))[0])
    release = threading.Event()
    acl.aclrtLaunchHostFunc(stream, function, None)
    assert inside.wait(DEADLINE_S)

    destroying = in_thread(lambda: acl.aclrtDestroyContext(context))
    destroying.join(FEW_MS / 1000)
    assert destroying.is_alive()
    release.set()
    joined(destroying)

    assert ended == [True]
    assert acl.code.aclrtSynchronizeStream(stream) == c.NO_CONTEXT
    acl.aclrtSetCurrentContext(mine)
    assert acl.code.aclrtSynchronizeStream(stream) == c.BAD_HANDLE


def test_primary_context_is_not_destroyed_by_destroy_context(library: Acl) -> None:
    codes: list[int] = []

    def body() -> None:
        library.aclrtSetDevice(4)
        codes.append(library.code.aclrtDestroyContext(library.out("aclrtGetCurrentContext")))

    joined(in_thread(body))

    assert codes == [c.INVALID_PARAM]


def test_stream_of_another_context_is_107003(acl: Acl) -> None:
    mine = acl.out("aclrtGetCurrentContext")
    stream = acl.stream()
    event = acl.event()
    word = acl.malloc(64)
    theirs = acl.context(0)
    status = ctypes.c_int32()

    calls = [
        acl.code.aclrtSynchronizeStream(stream),
        acl.code.aclrtStreamQuery(stream, ctypes.byref(status)),
        acl.code.aclrtRecordEvent(event, stream),
        acl.code.aclrtStreamWaitEvent(stream, event),
        acl.code.aclrtValueWrite(word, 1, 0, stream),
        acl.code.aclrtMemsetAsync(word, 8, 0, 8, stream),
        acl.code.aclrtDestroyStream(stream),
    ]
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)

    assert calls == [c.OTHER_CONTEXT] * len(calls)
    acl.synchronize(stream)


# --- streams ---


def test_submit_returns_before_the_work_runs(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)

    acl.aclrtValueWrite(word, 5, 0, stream)

    assert not acl.is_idle(stream)
    assert acl.read_word(word) == 0
    gate.open()
    acl.synchronize(stream)
    assert acl.read_word(word) == 5
    assert acl.is_idle(stream)


def test_stream_runs_in_order(acl: Acl) -> None:
    stream = acl.stream()
    count = 500
    ran: list[int] = []
    note = HostFunction(lambda n: ran.append(n or 0))

    for i in range(count):
        acl.aclrtLaunchHostFunc(stream, note, i)
    acl.synchronize(stream)

    assert ran == list(range(count))


def test_streams_run_side_by_side(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    words = acl.malloc(64)

    acl.aclrtValueWait(words, 1, c.EQ, one)
    acl.aclrtValueWrite(words + 8, 1, 0, one)
    acl.aclrtValueWrite(words, 1, 0, two)
    acl.aclrtValueWait(words + 8, 1, c.EQ, two)

    acl.synchronize(one)
    acl.synchronize(two)


def test_null_stream_is_the_default_stream_of_the_current_context(acl: Acl) -> None:
    word = acl.malloc(64)
    gate = Gate(acl, None)
    acl.aclrtValueWrite(word, 3, 0, None)

    assert not acl.is_idle(acl.out("aclrtCtxGetCurrentDefaultStream"))
    gate.open()
    acl.synchronize(None)
    assert acl.read_word(word) == 3


def test_sync_with_timeout_is_507046_and_cancels_nothing(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 1) == c.STREAM_TIMEOUT

    gate.open()
    acl.synchronize(stream)
    assert acl.read_word(word) == 1


def test_synchronize_device_waits_for_all_streams_of_the_context(acl: Acl) -> None:
    streams = [acl.stream() for _ in range(3)]
    gates = [Gate(acl, stream) for stream in streams]

    gates[0].open()
    gates[1].open()
    assert acl.code.aclrtSynchronizeDeviceWithTimeout(FEW_MS) == c.STREAM_TIMEOUT

    gates[2].open()
    acl.aclrtSynchronizeDeviceWithTimeout(DEADLINE_S * 1000)
    assert all(acl.is_idle(stream) for stream in streams)


def test_worker_threads_start_with_the_first_task(acl: Acl) -> None:
    def workers() -> set[str]:
        return {comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")} & names

    streams = [acl.stream() for _ in range(200)]
    names = {f"npu-stream-{acl.last_out('aclrtStreamGetId', stream)}" for stream in streams}
    unused = workers()
    word = acl.malloc(64)
    acl.aclrtValueWrite(word, 1, 0, streams[0])
    acl.synchronize(streams[0])

    assert unused == set()
    assert len(workers()) == 1


def test_submitter_blocks_when_2048_tasks_are_queued(acl: Acl) -> None:
    stream = acl.stream()
    gate = Gate(acl, stream)  # the running task counts
    word = acl.malloc(64)
    context = acl.out("aclrtGetCurrentContext")
    submitted: list[int] = []
    full = threading.Event()

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        for i in range(2047):
            acl.aclrtValueWrite(word, i, 0, stream)
            submitted.append(i)
        full.set()
        acl.aclrtValueWrite(word, 9999, 0, stream)
        submitted.append(9999)

    thread = in_thread(body)
    assert full.wait(DEADLINE_S)
    thread.join(FEW_MS / 1000)
    assert len(submitted) == 2047
    assert thread.is_alive()

    gate.open()
    joined(thread)
    acl.synchronize(stream)
    assert acl.read_word(word) == 9999


def test_abort_ends_what_runs_and_what_waits_and_syncs_get_107023(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []
    begun = threading.Event()

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        begun.set()
        codes.append(acl.code.aclrtSynchronizeStream(stream))

    thread = in_thread(body)
    begun.wait(DEADLINE_S)
    thread.join(FEW_MS / 1000)
    acl.aclrtStreamAbort(stream)
    joined(thread)

    assert codes == [c.STREAM_ABORT]
    assert acl.read_word(word) == 0
    acl.aclrtValueWrite(word, 2, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 2


def test_stop_keeps_what_is_queued_from_running(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtStreamStop(stream)
    gate.open()

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_ABORT
    assert acl.read_word(word) == 0
    assert acl.code.aclrtStreamStop(None) == c.INVALID_PARAM


def test_destroy_stream_waits_for_queued_work(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    acl.emuStreamDelay(stream, 20_000)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtDestroyStream(stream)

    assert acl.read_word(word) == 1


def test_destroy_stream_force_ends_a_running_value_wait_and_drops_the_rest(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.aclrtDestroyStreamForce(stream)
    gate.open()
    acl.aclrtSynchronizeDevice()

    assert acl.read_word(word) == 0
    assert acl.code.aclrtSynchronizeStream(stream) == c.BAD_HANDLE


def test_freed_or_made_up_stream_is_107017(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    acl.aclrtDestroyStream(stream)

    assert acl.code.aclrtSynchronizeStream(stream) == c.BAD_HANDLE
    assert acl.code.aclrtSynchronizeStream(event) == c.BAD_HANDLE
    assert acl.code.aclrtSynchronizeStream(0xDEADBEEF) == c.BAD_HANDLE
    assert acl.code.aclrtDestroyStream(stream) == c.BAD_HANDLE


def test_device_has_1984_streams(library: Acl) -> None:
    context = library.context(6)
    free = library.out("aclrtGetStreamAvailableNum", kind=ctypes.c_uint32)
    streams = [library.stream() for _ in range(free)]
    out = ctypes.c_void_p()

    assert free == 1984 - 1  # the context's default stream is one
    assert library.code.aclrtCreateStream(ctypes.byref(out)) == 207008
    library.aclrtDestroyStream(streams.pop())
    library.stream()
    library.aclrtDestroyContext(context)


def test_host_waits_do_not_burn_a_core(acl: Acl) -> None:
    streams = [acl.stream() for _ in range(20)]
    gates = [Gate(acl, stream) for stream in streams]
    before = sum(os.times()[:2])

    acl.code.aclrtSynchronizeStreamWithTimeout(streams[0], 300)

    assert sum(os.times()[:2]) - before < 0.15
    for gate in gates:
        gate.open()
    acl.aclrtSynchronizeDevice()


# --- failing tasks ---


def fail_a_copy(acl: Acl, stream: int, code: int = c.LINK_ERROR) -> None:
    acl.emuFailTask(stream, 1, code)
    a = acl.malloc(64)
    acl.copy(a, a + 32, 32, stream)


def test_failing_task_with_mode_1_stops_every_stream_of_its_context(acl: Acl) -> None:
    failing, other = acl.stream(stop_on_failure=True), acl.stream()
    word = acl.malloc(64)
    gate = Gate(acl, other)
    acl.aclrtValueWrite(word, 1, 0, other)

    fail_a_copy(acl, failing)
    acl.code.aclrtValueWrite(word, 2, 0, failing)

    status = ctypes.c_int32()
    out = ctypes.c_void_p()
    assert acl.code.aclrtSynchronizeStream(failing) == c.LINK_ERROR
    assert "fault injected" in acl.message()
    assert acl.code.aclrtSynchronizeStream(other) == c.LINK_ERROR
    assert acl.code.aclrtStreamQuery(other, ctypes.byref(status)) == c.LINK_ERROR
    assert acl.code.aclrtSynchronizeStream(None) == c.LINK_ERROR
    assert acl.code.aclrtValueWrite(word, 3, 0, other) == c.LINK_ERROR
    assert acl.code.aclrtCreateStream(ctypes.byref(out)) == c.LINK_ERROR
    gate.open()
    acl.aclrtDestroyStream(failing)
    acl.aclrtDestroyStream(other)
    assert acl.read_word(word) == 0


def test_failing_task_leaves_other_contexts_alone(acl: Acl) -> None:
    first = acl.out("aclrtGetCurrentContext")
    word = acl.malloc(64)
    second = acl.context(0)
    failing = acl.stream(stop_on_failure=True)

    fail_a_copy(acl, failing)
    assert acl.code.aclrtSynchronizeStream(failing) == c.LINK_ERROR

    acl.aclrtDestroyContext(second)
    acl.aclrtSetCurrentContext(first)
    stream = acl.stream(stop_on_failure=True)
    acl.aclrtValueWrite(word, 7, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 7


def test_failing_task_with_mode_0_is_told_once_and_the_stream_goes_on(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)

    fail_a_copy(acl, stream, c.COPY_ENGINE)
    acl.aclrtValueWrite(word, 4, 0, stream)

    assert acl.code.aclrtSynchronizeStream(stream) == c.COPY_ENGINE
    acl.synchronize(stream)
    assert acl.read_word(word) == 4


def test_query_tells_a_failure(acl: Acl) -> None:
    stream = acl.stream()
    fail_a_copy(acl, stream, c.COPY_ENGINE)
    event = acl.event(c.EVENT_PROGRESS)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtSynchronizeEvent(event)
    status = ctypes.c_int32()

    assert acl.code.aclrtStreamQuery(stream, ctypes.byref(status)) == c.COPY_ENGINE
    assert acl.code.aclrtStreamQuery(stream, ctypes.byref(status)) == c.COPY_ENGINE


def test_failure_mode_is_set_once(acl: Acl) -> None:
    stream = acl.stream(stop_on_failure=True)

    assert acl.code.aclrtSetStreamFailureMode(stream, 0) == c.INVALID_PARAM
    assert acl.code.aclrtSetStreamFailureMode(acl.stream(), 2) == c.INVALID_PARAM


def test_host_that_waits_for_an_event_of_a_stopped_stream_gets_the_code(acl: Acl) -> None:
    stream, event = acl.stream(stop_on_failure=True), acl.event()
    gate = Gate(acl, stream)
    fail_a_copy(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    gate.open()

    assert acl.code.aclrtSynchronizeEventWithTimeout(event, DEADLINE_S * 1000) == c.LINK_ERROR


# --- events ---


def status_of(acl: Acl, event: int) -> int:
    return acl.last_out("aclrtQueryEventStatus", event)


def test_ex_event_wait_binds_to_the_latest_record_at_the_call(acl: Acl) -> None:
    first, second, waiting = acl.stream(), acl.stream(), acl.stream()
    event = acl.event()
    gate = Gate(acl, second)

    acl.aclrtRecordEvent(event, first)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.aclrtRecordEvent(event, second)  # held by the gate; the wait above is not about it

    acl.synchronize(waiting)
    assert not acl.is_idle(second)
    acl.aclrtStreamWaitEvent(waiting, event)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    gate.open()
    acl.synchronize(waiting)


def test_ex_event_wait_before_any_record_is_a_no_op(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()

    acl.aclrtStreamWaitEvent(stream, event)

    acl.synchronize(stream)
    assert status_of(acl, event) == 1
    acl.aclrtSynchronizeEvent(event)


def test_hardware_event_wait_before_record_waits(acl: Acl) -> None:
    recording, waiting = acl.stream(), acl.stream()
    event = acl.hardware_event()

    acl.aclrtStreamWaitEvent(waiting, event)
    assert status_of(acl, event) == 0
    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT

    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(waiting)
    assert status_of(acl, event) == 1


def test_hardware_event_stays_set_until_it_is_reset(acl: Acl) -> None:
    recording, waiting = acl.stream(), acl.stream()
    event = acl.hardware_event()
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.aclrtStreamWaitEvent(waiting, event)
    acl.synchronize(waiting)

    acl.aclrtResetEvent(event, recording)
    acl.synchronize(recording)
    acl.aclrtStreamWaitEvent(waiting, event)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    acl.aclrtRecordEvent(event, recording)
    acl.synchronize(waiting)


def test_status_enums_have_opposite_polarity(acl: Acl) -> None:
    stream, waiting, event = acl.stream(), acl.stream(), acl.hardware_event()
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(waiting, event)

    assert acl.last_out("aclrtQueryEventStatus", event) == 0
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 1
    assert acl.last_out("aclrtQueryEvent", event) == 1
    gate.open()
    acl.synchronize(waiting)
    assert acl.last_out("aclrtQueryEventStatus", event) == 1
    assert acl.last_out("aclrtQueryEventWaitStatus", event) == 0
    assert acl.last_out("aclrtQueryEvent", event) == 0


def test_ex_events_are_not_reset_nor_asked_in_the_old_ways(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    out = ctypes.c_int32()

    assert acl.code.aclrtResetEvent(event, stream) == c.UNSUPPORTED
    assert acl.code.aclrtQueryEvent(event, ctypes.byref(out)) == c.UNSUPPORTED
    assert acl.code.aclrtQueryEventWaitStatus(event, ctypes.byref(out)) == c.UNSUPPORTED


def test_event_without_sync_flag_cannot_be_waited_on(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event(c.EVENT_PROGRESS)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtStreamWaitEvent(stream, event) == c.INVALID_PARAM


def test_event_flags_are_checked(acl: Acl) -> None:
    out = ctypes.c_void_p()

    for flags in (0, 0x80, 0x40 | 0x1):
        assert acl.code.aclrtCreateEventExWithFlag(ctypes.byref(out), flags) == c.INVALID_PARAM
    assert acl.code.aclrtCreateEventWithFlag(ctypes.byref(out), 0x20 | 0x1) == c.INVALID_PARAM


def test_event_may_be_destroyed_right_after_a_wait_was_queued(acl: Acl) -> None:
    recording, waiting, event = acl.stream(), acl.stream(), acl.event()
    gate = Gate(acl, recording)
    acl.aclrtRecordEvent(event, recording)
    acl.aclrtStreamWaitEvent(waiting, event)

    acl.aclrtDestroyEvent(event)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(waiting, FEW_MS) == c.STREAM_TIMEOUT
    gate.open()
    acl.synchronize(waiting)
    assert acl.code.aclrtDestroyEvent(event) == c.BAD_HANDLE


def test_event_and_stream_of_different_devices_do_not_mix(acl: Acl) -> None:
    event = acl.event()
    acl.aclrtRecordEvent(event, acl.stream())
    mine = acl.out("aclrtGetCurrentContext")
    theirs = acl.context(1)
    stream = acl.stream()

    codes = [acl.code.aclrtRecordEvent(event, stream), acl.code.aclrtStreamWaitEvent(stream, event)]
    acl.aclrtSynchronizeEvent(event)
    status = status_of(acl, event)
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)

    assert codes == [c.INVALID_PARAM] * 2
    assert status == 1


def test_event_sync_with_timeout_is_507047(acl: Acl) -> None:
    stream, event = acl.stream(), acl.event()
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)

    assert acl.code.aclrtSynchronizeEventWithTimeout(event, 1) == c.EVENT_TIMEOUT
    gate.open()
    acl.aclrtSynchronizeEventWithTimeout(event, DEADLINE_S * 1000)


def test_elapsed_time_is_the_time_between_the_records(acl: Acl) -> None:
    stream = acl.stream()
    start, end = acl.event(c.EVENT_TIME_LINE), acl.event(c.EVENT_TIME_LINE)
    ms = ctypes.c_float()
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), start, end) == 107006

    acl.aclrtRecordEvent(start, stream)
    acl.emuStreamDelay(stream, 20_000)
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)

    assert 20 <= ms.value < 2000
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), end, start) == 107007
    assert acl.code.aclrtEventElapsedTime(ctypes.byref(ms), acl.event(), end) == c.INVALID_PARAM


def test_event_wait_with_timeout_is_a_task_error(acl: Acl) -> None:
    stream, event = acl.stream(), acl.hardware_event()

    acl.aclrtStreamWaitEventWithTimeout(stream, event, 1)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == c.WAIT_TIMEOUT


# --- value write and value wait ---


@pytest.mark.parametrize(
    ("mode", "value", "holds", "holds_not"),
    [
        (c.GEQ, 5, 5, 4),
        (c.GEQ, 5, 6, 0),
        (c.GEQ, 0, 1, -1),  # signed: -1 is less than 0
        (c.GEQ, 2**64 - 2, 3, 2**64 - 3),  # wraps around
        (c.GEQ, 7, 7 + 2**62, 7 - 2**62),
        (c.EQ, 5, 5, 6),
        (c.EQ, 2**40, 2**40, 0),  # only the high half differs
        (c.AND, 0b110, 0b010, 0b001),
        (c.NOR, 0, 0, 2**64 - 1),
    ],
)
def test_value_wait_modes(acl: Acl, mode: int, value: int, holds: int, holds_not: int) -> None:
    stream, writing = acl.stream(), acl.stream()
    word = acl.malloc(64)
    acl.write_word(word, holds_not)

    acl.aclrtValueWait(word, value, mode, stream)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 10) == c.STREAM_TIMEOUT
    acl.aclrtValueWrite(word, holds, 0, writing)
    acl.synchronize(stream)


@pytest.mark.parametrize("writer", ["value write", "copy", "memset", "host copy"])
def test_value_wait_sees_every_kind_of_write(acl: Acl, writer: str) -> None:
    stream, writing = acl.stream(), acl.stream()
    word, other = acl.malloc(64), acl.malloc(64, fill=1)
    acl.aclrtValueWait(word, 0x0101010101010101, c.EQ, stream)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, 5) == c.STREAM_TIMEOUT

    if writer == "value write":
        acl.aclrtValueWrite(word, 0x0101010101010101, 0, writing)
    elif writer == "copy":
        acl.copy(word, other, 64, writing)
    elif writer == "memset":
        acl.aclrtMemsetAsync(word, 64, 1, 64, writing)
    else:
        acl.write(word, b"\x01" * 8)

    acl.synchronize(stream)


def test_value_operations_check_their_arguments(acl: Acl) -> None:
    stream = acl.stream()
    word, pinned = acl.malloc(64), acl.malloc_host(64)
    ordinary = ctypes.create_string_buffer(64)

    for address in (None, word + 4, pinned, ctypes.addressof(ordinary) // 8 * 8, word + 64 * MIB):
        assert acl.code.aclrtValueWrite(address, 1, 0, stream) == c.INVALID_PARAM
        assert acl.code.aclrtValueWait(address, 1, 0, stream) == c.INVALID_PARAM
    assert acl.code.aclrtValueWrite(word, 1, 1, stream) == c.INVALID_PARAM
    assert acl.code.aclrtValueWait(word, 1, 4, stream) == c.INVALID_PARAM


def test_memory_freed_under_a_value_wait_is_a_task_error(acl: Acl) -> None:
    stream = acl.stream()
    gate = Gate(acl, stream)

    acl.aclrtFree(gate.word)

    assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == c.COPY_ENGINE


# --- host functions ---


def test_host_function_runs_in_stream_order_on_another_thread(acl: Acl) -> None:
    stream = acl.stream()
    word = acl.malloc(64)
    seen: list[object] = []
    function = HostFunction(lambda arg: seen.extend([arg, threading.get_native_id()]))
    gate = Gate(acl, stream)

    acl.aclrtLaunchHostFunc(stream, function, 77)
    acl.aclrtValueWrite(word, 1, 0, stream)
    assert seen == []
    gate.open()
    acl.synchronize(stream)

    assert seen[0] == 77
    assert seen[1] != threading.get_native_id()


def test_host_functions_of_a_context_run_one_at_a_time(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    inside, release = threading.Event(), threading.Event()
    ran: list[str] = []
    holds = HostFunction(lambda _: (inside.set(), release.wait(DEADLINE_S), ran.append("first"))[0])
    follows = HostFunction(lambda _: ran.append("second"))

    acl.aclrtLaunchHostFunc(one, holds, None)
    assert inside.wait(DEADLINE_S)
    acl.aclrtLaunchHostFunc(two, follows, None)
    assert acl.code.aclrtSynchronizeStreamWithTimeout(two, FEW_MS) == c.STREAM_TIMEOUT
    release.set()
    acl.synchronize(two)

    assert ran == ["first", "second"]


def test_host_function_must_not_submit_wait_or_allocate(acl: Acl) -> None:
    stream = acl.stream()
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []

    def body(_: object) -> None:
        out = ctypes.c_void_p()
        acl.aclrtSetCurrentContext(context)
        codes.append(acl.code.aclrtMalloc(ctypes.byref(out), 64, 0))
        codes.append(acl.code.aclrtSynchronizeStream(None))
        codes.append(acl.code.aclrtLaunchHostFunc(stream, None, None))

    function = HostFunction(body)
    acl.aclrtLaunchHostFunc(stream, function, None)
    acl.synchronize(stream)

    assert codes == [c.UNSUPPORTED] * 3


def test_host_function_can_fail_its_task(acl: Acl) -> None:
    stream = acl.stream(stop_on_failure=True)
    function = HostFunction(lambda _: acl.library.emuFailRunningTask(507035))

    acl.aclrtLaunchHostFunc(stream, function, None)

    assert acl.code.aclrtSynchronizeStream(stream) == 507035
    assert acl.code.emuFailRunningTask(507035) == 100000


def test_callback_runs_on_the_thread_that_subscribed(acl: Acl) -> None:
    stream = acl.stream()
    seen: list[int] = []
    function = HostFunction(lambda _: seen.append(threading.get_ident()))
    assert acl.code.aclrtLaunchCallback(function, None, 1, stream) == 107015
    started, codes = threading.Event(), []

    def serve() -> None:
        started.set()
        codes.append(acl.code.aclrtProcessReport(DEADLINE_S * 1000))

    thread = threading.Thread(target=lambda: (ready.wait(DEADLINE_S), serve())[1], daemon=True)
    ready = threading.Event()
    thread.start()
    assert thread.ident is not None
    acl.aclrtSubscribeReport(thread.ident, stream)  # pthread_self() of that thread
    assert acl.code.aclrtSubscribeReport(thread.ident, stream) == 107011
    ready.set()
    acl.aclrtLaunchCallback(function, None, 1, stream)
    acl.synchronize(stream)
    joined(thread)

    assert codes == [0]
    assert seen == [thread.ident]
    acl.aclrtUnSubscribeReport(thread.ident, stream)
    assert acl.code.aclrtUnSubscribeReport(thread.ident, stream) == 107012


def test_process_report_without_subscription_is_107012(acl: Acl) -> None:
    assert acl.code.aclrtProcessReport(1) == 107012


# --- memory ---


def test_device_address_cannot_be_touched_by_the_host() -> None:
    program = """
    acl.context()
    address = acl.malloc(4096)
    alias = acl.library.emuHostAlias(ctypes.c_void_p(address))
    ctypes.memset(alias, 9, 4096)
    say(acl.read(address, 4096) == bytes([9]) * 4096)
    hear()
    ctypes.string_at(address, 1)
    """
    with peer(program) as other:
        assert other.hear() == "True"
        other.say("go on")
        assert other.process.wait(DEADLINE_S) == -signal.SIGSEGV


def test_host_alias_is_null_for_all_but_live_device_memory(acl: Acl) -> None:
    address, pinned = acl.malloc(4096), acl.malloc_host(4096)
    alias = acl.library.emuHostAlias
    ordinary = ctypes.create_string_buffer(64)

    assert alias(ctypes.c_void_p(address + 4095)) == alias(ctypes.c_void_p(address)) + 4095
    assert alias(ctypes.c_void_p(address + 4096)) is None
    assert alias(ctypes.c_void_p(pinned)) is None
    assert alias(ctypes.byref(ordinary)) is None
    acl.aclrtFree(address)
    assert alias(ctypes.c_void_p(address)) is None


def test_sizes_are_rounded_up_and_malloc_adds_32_bytes(acl: Acl) -> None:
    def usable(name: str) -> int:
        base, size = ctypes.c_void_p(), ctypes.c_size_t()
        acl.aclrtMemGetAddressRange(acl.out(name, 100, 0) + 7, ctypes.byref(base), ctypes.byref(size))
        assert base.value is not None
        assert base.value % 64 == 0
        return size.value

    assert usable("aclrtMalloc") == 128 + 32
    assert usable("aclrtMallocAlign32") == 128


def attributes(acl: Acl, address: int) -> tuple[int, int]:
    words = (ctypes.c_uint32 * 7)()
    acl.aclrtPointerGetAttributes(address, words)
    return words[0], words[1]


def test_pointer_attributes_tell_device_pinned_and_ordinary_memory_apart(acl: Acl) -> None:
    host, device, unregistered = 0, 1, 2
    page = 4096
    ordinary = ctypes.create_string_buffer(3 * page)
    aligned = (ctypes.addressof(ordinary) + page - 1) // page * page
    mine = acl.out("aclrtGetCurrentContext")
    theirs = acl.context(5)
    on_five = acl.malloc(64)

    assert attributes(acl, on_five) == (5, device)
    assert attributes(acl, acl.malloc_host(64))[1] == host
    assert attributes(acl, aligned)[1] == unregistered
    acl.aclrtHostRegisterV2(aligned, page, 0x2)
    assert attributes(acl, aligned)[1] == host
    acl.aclrtHostUnregister(aligned)
    assert attributes(acl, aligned)[1] == unregistered
    acl.aclrtFree(on_five)
    assert attributes(acl, on_five)[1] == unregistered
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)


def test_host_register_rules(acl: Acl) -> None:
    page = 4096
    ordinary = ctypes.create_string_buffer(3 * page)
    aligned = (ctypes.addressof(ordinary) + page - 1) // page * page

    assert acl.code.aclrtHostRegisterV2(aligned + 8, page, 0x2) == c.INVALID_PARAM
    acl.aclrtHostRegisterV2(aligned, page, 0x2)
    assert acl.code.aclrtHostRegisterV2(aligned, page, 0x2) == 507910
    acl.aclrtHostUnregister(aligned)
    assert acl.code.aclrtHostUnregister(aligned) == 507911


def test_free_of_what_is_not_allocated_is_refused(acl: Acl) -> None:
    address, pinned = acl.malloc(4096), acl.malloc_host(64)

    assert acl.code.aclrtFree(address + 64) == c.INVALID_PARAM
    assert acl.code.aclrtFree(pinned) == c.INVALID_PARAM
    assert acl.code.aclrtFreeHost(address) == c.INVALID_PARAM
    acl.aclrtFree(address)
    assert acl.code.aclrtFree(address) == c.INVALID_PARAM
    acl.aclrtFreeHost(pinned)
    assert acl.code.aclrtFreeHost(pinned) == c.INVALID_PARAM


def test_device_memory_has_a_limit_and_mem_info_tells_it() -> None:
    program = """
    acl.context()
    def info():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        acl.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
        return free.value >> 20, total.value >> 20
    say(*info())
    a = acl.malloc(6 << 20, fill=None)
    say(*info(), code_of(lambda: acl.malloc(5 << 20, fill=None)))
    acl.context(1)
    acl.malloc(10 << 20, fill=None)
    acl.aclrtSetDevice(0)
    acl.aclrtFree(a)
    b = acl.malloc(10 << 20, fill=None)
    say(*info(), code_of(lambda: acl.malloc(11 << 20, fill=None)))
    """
    with peer(program, TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY=str(10 * MIB)) as other:
        assert other.hear() == "10 10"
        assert other.hear() == f"4 10 {c.OUT_OF_MEMORY}"
        assert other.hear() == f"0 10 {c.OUT_OF_MEMORY}"


def test_freed_memory_is_given_back_to_the_host(acl: Acl) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("\n")

    acl.aclrtFree(acl.malloc(MIB))
    descriptors, areas = held()
    for _ in range(200):
        acl.aclrtFree(acl.malloc(MIB))
        acl.aclrtFreeHost(acl.malloc_host(64))

    assert held()[0] == descriptors
    assert held()[1] < areas + 20


# --- copies ---


def test_copies_between_all_places_move_the_bytes(acl: Acl) -> None:
    size = 3 * MIB + 5
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    stream = acl.stream()
    pinned, back = acl.malloc_host(size), acl.malloc_host(size)
    one, two = acl.malloc(size), acl.malloc(size)
    ctypes.memmove(pinned, data, size)

    acl.copy(one, pinned, size, stream, c.HOST_TO_DEVICE)
    acl.copy(two, one, size, stream, c.DEVICE_TO_DEVICE)
    acl.copy(back, two, size, stream, c.DEVICE_TO_HOST)
    acl.synchronize(stream)

    assert ctypes.string_at(back, size) == data
    assert acl.read(two, size) == data


def test_pinned_source_is_read_when_the_copy_runs(acl: Acl) -> None:
    stream = acl.stream()
    pinned, device = acl.malloc_host(64), acl.malloc(64)
    ctypes.memset(pinned, 1, 64)
    gate = Gate(acl, stream)

    acl.copy(device, pinned, 64, stream, c.HOST_TO_DEVICE)
    ctypes.memset(pinned, 2, 64)  # too early: the copy has not run
    gate.open()
    acl.synchronize(stream)

    assert acl.read(device, 64) == b"\x02" * 64


def test_pageable_copy_waits_for_the_stream_and_blocks(acl: Acl) -> None:
    stream = acl.stream()
    pageable, device = ctypes.create_string_buffer(b"\x05" * 64), acl.malloc(64)
    word = acl.malloc(64)
    acl.emuStreamDelay(stream, 20_000)
    acl.aclrtValueWrite(word, 1, 0, stream)

    acl.copy(device, ctypes.addressof(pageable), 64, stream, c.HOST_TO_DEVICE)

    assert acl.is_idle(stream)
    assert acl.read_word(word) == 1
    assert acl.read(device, 64) == b"\x05" * 64


def test_copy_of_nothing_or_onto_itself_queues_nothing(acl: Acl) -> None:
    stream, device = acl.stream(), acl.malloc(64)
    Gate(acl, stream)
    idle = acl.stream()

    acl.copy(device, device + 32, 0, idle)
    acl.copy(device, device, 64, idle)

    assert acl.is_idle(idle)


def test_copy_argument_errors(acl: Acl) -> None:
    stream = acl.stream()
    device, pinned = acl.malloc(64), acl.malloc_host(64)

    def copy(dst: int | None, dest_max: int, src: int | None, count: int, kind: int) -> int:
        return acl.code.aclrtMemcpyAsync(dst, dest_max, src, count, kind, stream)

    assert copy(device, 8, pinned, 9, c.HOST_TO_DEVICE) == c.INVALID_PARAM
    assert copy(None, 8, pinned, 8, c.HOST_TO_DEVICE) == c.INVALID_PARAM
    assert copy(device, 8, pinned, 8, c.DEVICE_TO_DEVICE) == c.INVALID_PARAM
    assert copy(pinned, 8, pinned + 8, 8, c.HOST_TO_HOST) == c.UNSUPPORTED
    assert copy(device, 8, device + 8, 8, 6) == 100000
    assert copy(device, 8, device + 8, 8, 7) == 100000


def test_wrong_host_device_kind_is_corrected(acl: Acl) -> None:
    stream = acl.stream()
    device, pinned = acl.malloc(64), acl.malloc_host(64)
    ctypes.memset(pinned, 6, 64)

    acl.copy(device, pinned, 64, stream, c.DEVICE_TO_HOST)
    acl.copy(device, pinned, 64, stream, c.DEFAULT)
    acl.synchronize(stream)

    assert acl.read(device, 64) == b"\x06" * 64


def test_sync_copy_does_not_wait_for_any_stream(acl: Acl) -> None:
    stream, device = acl.stream(), acl.malloc(64)
    gate = Gate(acl, stream)
    acl.aclrtMemsetAsync(device, 64, 9, 64, stream)

    assert acl.read(device, 64) == bytes(64)
    gate.open()
    acl.synchronize(stream)
    assert acl.read(device, 64) == b"\x09" * 64


@pytest.mark.parametrize("how", ["freed", "too long"])
def test_copy_outside_live_memory_is_a_task_error_not_a_crash(acl: Acl, how: str) -> None:
    stream = acl.stream()
    good, bad = acl.malloc(4 * MIB), acl.malloc(64)
    gate = Gate(acl, stream)
    size = 64 if how == "freed" else 96

    acl.copy(good, bad, size, stream)
    if how == "freed":
        acl.aclrtFree(bad)
    gate.open()

    assert acl.code.aclrtSynchronizeStream(stream) == c.COPY_ENGINE
    assert ("freed" if how == "freed" else "allocation") in acl.message()


def test_copy_to_another_device_needs_peer_access(library: Acl) -> None:
    program = """
    there = acl.context(1)
    far = acl.malloc(64)
    here = acl.context(0)
    near, stream = acl.malloc(64, fill=3), acl.stream()
    say(code_of(lambda: acl.copy(far, near, 64, stream)))
    acl.aclrtDeviceEnablePeerAccess(1, 0)
    acl.copy(far, near, 64, stream)
    acl.synchronize(stream)
    acl.aclrtSetCurrentContext(there)
    say(acl.read(far, 64) == bytes([3]) * 64, code_of(lambda: acl.copy(near, far, 64, acl.stream())))
    """
    with peer(program) as other:
        assert other.hear() == str(c.INVALID_PARAM)
        assert other.hear() == f"True {c.INVALID_PARAM}"  # access is one-way


def test_two_dimensional_copy_moves_rows(acl: Acl) -> None:
    stream = acl.stream()
    src, dst = acl.malloc(1024), acl.malloc(1024)
    acl.write(src, bytes(range(256)) * 4)

    acl.aclrtMemcpy2dAsync(dst, 64, src + 3, 256, 10, 4, c.DEVICE_TO_DEVICE, stream)
    acl.synchronize(stream)

    got = acl.read(dst, 256)
    for row in range(4):
        assert got[row * 64 : row * 64 + 64] == bytes(range(3, 13)) + bytes(54)
    assert acl.code.aclrtMemcpy2dAsync(dst, 8, src, 256, 10, 4, 3, stream) == c.INVALID_PARAM
    assert (
        acl.code.aclrtMemcpy2dAsync(dst, 6_000_000, src, 6_000_000, 5_000_001, 1, 3, stream)
        == c.INVALID_PARAM
    )


def batch(acl: Acl, pairs: list[tuple[int, int]], size: int, stream: int) -> tuple[int, int]:
    count = len(pairs)
    addresses, sizes = ctypes.c_void_p * count, ctypes.c_size_t * count
    attrs, indexes, failed = (ctypes.c_uint8 * 64)(), (ctypes.c_size_t * 1)(0), ctypes.c_size_t()
    code = acl.code.aclrtMemcpyBatchAsync(
        addresses(*(p[0] for p in pairs)),
        sizes(*[size] * count),
        addresses(*(p[1] for p in pairs)),
        sizes(*[size] * count),
        count,
        attrs,
        indexes,
        1,
        ctypes.byref(failed),
        stream,
    )
    return code, failed.value


def test_batch_copies_between_host_and_device_only(acl: Acl) -> None:
    stream = acl.stream()
    pinned, device = acl.malloc_host(128), acl.malloc(128)
    ctypes.memset(pinned, 8, 128)

    assert batch(acl, [(device, pinned), (device + 64, pinned + 64)], 64, stream)[0] == 0
    acl.synchronize(stream)

    assert acl.read(device, 128) == b"\x08" * 128
    assert batch(acl, [(device, pinned), (device + 64, device)], 64, stream) == (c.INVALID_PARAM, 1)


def test_memset_checks_and_sets(acl: Acl) -> None:
    device = acl.malloc(64)
    buffer = ctypes.create_string_buffer(64)

    acl.aclrtMemset(device, 64, 0x1FE, 16)

    assert acl.read(device, 64) == b"\xfe" * 16 + bytes(48)
    assert acl.code.aclrtMemset(device, 8, 0, 9) == c.INVALID_PARAM
    assert acl.code.aclrtMemsetAsync(ctypes.addressof(buffer), 64, 0, 64, None) == c.INVALID_PARAM


# --- memory between processes ---

EXPORTER = """
acl.aclrtSetDevice(0)
stream = acl.stream()
memory = acl.malloc(4 << 20, fill=1)
say(acl.export(memory, 4 << 20).hex())
while command := hear():
    if command == "read":
        say(set(acl.read(memory, 4 << 20)))
    elif command == "wait":
        acl.aclrtValueWait(memory, 42, c.EQ, stream)
        say("waiting")
        acl.synchronize(stream)
        say("got", acl.read_word(memory + 8))
    elif command == "write":
        acl.aclrtValueWrite(memory, 43, 0, stream)
        acl.synchronize(stream)
        say("done")
    elif command == "free":
        acl.aclrtFree(memory)
        say("freed")
    elif command == "close":
        acl.aclrtIpcMemClose(key)
        say("closed")
"""


@contextlib.contextmanager
def exporter(device: int = 0) -> Iterator[tuple[Peer, bytes]]:
    with peer(EXPORTER.replace("SetDevice(0)", f"SetDevice({device})")) as other:
        yield other, bytes.fromhex(other.hear())


def test_key_is_65_defined_bytes_of_text(acl: Acl) -> None:
    memory = acl.malloc(2 * MIB)
    key = acl.export(memory, 2 * MIB)

    assert len(key) == 65
    assert key[64] == 0
    assert key[:64].isascii()
    assert 0 not in key[:64]


def test_imported_memory_is_the_exporters_memory(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, stream = acl.import_key(key), acl.stream()
        near = acl.malloc(4 * MIB, fill=9)

        acl.copy(near, memory, 4 * MIB, stream)
        acl.synchronize(stream)
        assert set(acl.read(near, 4 * MIB)) == {1}
        acl.aclrtMemsetAsync(near, 4 * MIB, 7, 4 * MIB, stream)
        acl.copy(memory, near, 4 * MIB, stream)
        acl.synchronize(stream)

        other.say("read")
        assert other.hear() == "{7}"
        acl.aclrtIpcMemClose(key)
        assert acl.code.aclrtIpcMemClose(key) == c.INVALID_PARAM


def test_value_write_wakes_a_stream_of_another_process_after_the_bytes_before_it(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, stream = acl.import_key(key), acl.stream()
        near = acl.malloc(64)
        acl.write_word(near, 1234)
        other.say("wait")
        assert other.hear() == "waiting"

        acl.copy(memory + 8, near, 8, stream)
        acl.aclrtValueWrite(memory, 42, 0, stream)

        assert other.hear() == "got 1234"
        acl.synchronize(stream)
        acl.aclrtIpcMemClose(key)


def test_value_wait_on_imported_memory_sees_the_exporters_write(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, stream = acl.import_key(key), acl.stream()
        acl.aclrtValueWait(memory, 43, c.EQ, stream)
        other.say("write")
        assert other.hear() == "done"

        acl.synchronize(stream)
        acl.aclrtIpcMemClose(key)


def test_imported_memory_takes_part_in_asynchronous_device_copies_only(acl: Acl) -> None:
    with exporter() as (_, key):
        memory, stream = acl.import_key(key), acl.stream()
        near, pinned = acl.malloc(64), acl.malloc_host(64)

        assert acl.code.aclrtMemcpyAsync(near, 64, memory, 64, c.DEFAULT, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpyAsync(pinned, 64, memory, 64, c.DEVICE_TO_HOST, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpyAsync(memory, 64, pinned, 64, c.HOST_TO_DEVICE, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpy(near, 64, memory, 64, c.DEVICE_TO_DEVICE) == c.INVALID_PARAM
        acl.aclrtIpcMemClose(key)


def test_import_on_another_device_needs_peer_access(acl: Acl) -> None:
    with exporter(device=1) as (_, key):
        memory, stream, near = acl.import_key(key), acl.stream(), acl.malloc(64)
        acl.copy(near, memory, 64, stream)
        assert acl.code.aclrtSynchronizeStream(stream) == c.INVALID_PARAM
        acl.aclrtIpcMemClose(key)

        memory = acl.import_key(key, flags=1)
        acl.copy(near, memory, 64, stream)
        acl.synchronize(stream)
        assert acl.read(near, 64) == b"\x01" * 64
        acl.aclrtIpcMemClose(key)


def test_importing_ones_own_key_is_an_error(acl: Acl) -> None:
    key = acl.export(acl.malloc(2 * MIB), 2 * MIB)

    assert code_of(lambda: acl.import_key(key)) == c.INVALID_PARAM


def test_export_must_fit_the_pages(acl: Acl) -> None:
    huge, small = acl.malloc(4 * MIB), acl.malloc(8192)

    acl.export(huge + 2 * MIB, 2 * MIB)
    acl.export(small + 4096, 4096)
    for address, size in (
        (huge + 4096, 2 * MIB),
        (huge, 4096),
        (small + 64, 4096),
        (huge, 6 * MIB),
        (huge, 0),
    ):
        with pytest.raises(AclError) as error:
            acl.export(address, size)
        assert error.value.code == c.INVALID_PARAM
    assert code_of(lambda: acl.export(acl.malloc_host(4096), 4096)) == c.INVALID_PARAM


def test_white_list_is_enforced(acl: Acl) -> None:
    memory = acl.malloc(2 * MIB, fill=4)
    key = acl.export(memory, 2 * MIB, flags=0)
    program = """
    acl.aclrtSetDevice(0)
    key = bytes.fromhex(hear())
    say(acl.out('aclrtDeviceGetBareTgid', kind=ctypes.c_int32), code_of(lambda: acl.import_key(key)))
    hear()
    say(code_of(lambda: acl.import_key(key)))
    """
    with peer(program) as other:
        other.say(key.hex())
        pid, before = other.hear().split()
        acl.aclrtIpcMemSetImportPid(key, (ctypes.c_int32 * 1)(int(pid)), 1)
        other.say("again")
        after = other.hear()

    assert int(before) == c.NO_PERMISSION
    assert int(after) == 0


def test_malformed_or_closed_key_is_refused(acl: Acl) -> None:
    memory = acl.malloc(2 * MIB)
    key = acl.export(memory, 2 * MIB)
    acl.aclrtIpcMemClose(key)

    assert code_of(lambda: acl.aclrtIpcMemClose(key)) == c.INVALID_PARAM
    assert code_of(lambda: acl.import_key(b"no such key" + bytes(54))) == c.INVALID_PARAM
    with exporter() as (other, foreign):
        other.say("free")
        assert other.hear() == "freed"
        assert code_of(lambda: acl.import_key(foreign)) == c.IPC_ERROR


def test_dead_exporter_cannot_be_imported(acl: Acl) -> None:
    with exporter() as (other, key):
        other.kill()

        assert code_of(lambda: acl.import_key(key)) == c.IPC_ERROR


@pytest.mark.parametrize("what", ["copy", "value write", "value wait"])
def test_task_on_memory_of_a_dead_exporter_is_a_link_error(acl: Acl, what: str) -> None:
    with exporter() as (other, key):
        memory, near = acl.import_key(key), acl.malloc(64)
        stream = acl.stream(stop_on_failure=True)
        acl.copy(near, memory, 64, stream)
        acl.synchronize(stream)
        if what == "value wait":  # dies under a wait that runs
            acl.aclrtValueWait(memory, 99, c.EQ, stream)
        other.kill()

        if what == "copy":
            acl.copy(memory, near, 64, stream)
        elif what == "value write":
            acl.aclrtValueWrite(memory, 1, 0, stream)

        assert acl.code.aclrtSynchronizeStreamWithTimeout(stream, DEADLINE_S * 1000) == c.LINK_ERROR
        assert str(other.process.pid) in acl.message()
        acl.aclrtIpcMemClose(key)


def test_task_on_memory_that_the_exporter_freed_is_a_remote_error(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, near, stream = acl.import_key(key), acl.malloc(64), acl.stream()
        other.say("free")
        assert other.hear() == "freed"

        acl.copy(memory, near, 64, stream)

        assert acl.code.aclrtSynchronizeStream(stream) == c.REMOTE_ERROR
        acl.aclrtIpcMemClose(key)


def test_nothing_is_left_behind_after_sigkill(acl: Acl) -> None:
    def shared_memory() -> set[str]:
        return set(os.listdir("/dev/shm"))

    before = shared_memory()
    with exporter() as (other, _):
        during = shared_memory()
        other.kill()

    assert during - before == set()


# --- faults and delays ---


def test_nth_call_can_be_made_to_fail_and_does_nothing(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    calls = acl.library.emuCalls(b"aclrtValueWrite")

    acl.emuFailNext(b"aclrtValueWrite", 3, 507899)
    codes = [acl.code.aclrtValueWrite(word, i, 0, stream) for i in (1, 2, 3)]
    acl.synchronize(stream)

    assert codes == [0, 0, 507899]
    assert acl.read_word(word) == 2
    acl.aclrtValueWrite(word, 4, 0, stream)
    assert acl.library.emuCalls(b"aclrtValueWrite") == calls + 4
    assert acl.code.emuFailNext(b"noSuchFunction", 1, 1) == 100000


def test_nth_copy_task_can_be_made_to_fail(acl: Acl) -> None:
    one, two = acl.stream(), acl.stream()
    a = acl.malloc(64)
    acl.emuFailTask(one, 2, c.LINK_ERROR)

    acl.copy(a, a + 32, 32, two)
    acl.copy(a, a + 32, 32, two)
    acl.synchronize(two)
    acl.copy(a, a + 32, 32, one)
    acl.synchronize(one)
    acl.copy(a, a + 32, 32, one)

    assert acl.code.aclrtSynchronizeStream(one) == c.LINK_ERROR


def elapsed_ms(acl: Acl, stream: int, body: Callable[[], object]) -> float:
    start, end, ms = acl.event(c.EVENT_TIME_LINE), acl.event(c.EVENT_TIME_LINE), ctypes.c_float()
    acl.aclrtRecordEvent(start, stream)
    body()
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)
    return ms.value


def test_task_delay_slows_each_task(acl: Acl) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    acl.library.emuSetTaskDelay(ctypes.c_uint64(5_000))

    took = elapsed_ms(acl, stream, lambda: [acl.aclrtValueWrite(word, i, 0, stream) for i in range(4)])

    assert took >= 4 * 5


@pytest.mark.parametrize("direction", ["H2D", "D2H", "D2D"])
def test_bandwidth_slows_copies_of_its_direction_only(acl: Acl, direction: str) -> None:
    number = {"H2D": 0, "D2H": 1, "D2D": 2}[direction]
    stream, size = acl.stream(), 2 * MIB
    pinned, a, b = acl.malloc_host(size), acl.malloc(size), acl.malloc(size)
    copies = {
        "H2D": lambda: acl.copy(a, pinned, size, stream, c.HOST_TO_DEVICE),
        "D2H": lambda: acl.copy(pinned, a, size, stream, c.DEVICE_TO_HOST),
        "D2D": lambda: acl.copy(a, b, size, stream),
    }
    for copy in copies.values():
        copy()
    acl.synchronize(stream)

    acl.emuSetBandwidth(number, 20 * MIB)  # 100 ms
    try:
        took = {name: elapsed_ms(acl, stream, copy) for name, copy in copies.items()}
    finally:
        acl.emuSetBandwidth(number, 0)

    assert took.pop(direction) >= 99
    assert max(took.values()) < 80


def test_delays_and_bandwidth_come_from_the_environment() -> None:
    program = """
    acl.context()
    stream, word, size = acl.stream(), acl.malloc(64), 1 << 20
    a, b = acl.malloc(size), acl.malloc(size)
    start, end, ms = acl.event(8), acl.event(8), ctypes.c_float()
    acl.aclrtRecordEvent(start, stream)
    acl.copy(a, b, size, stream)
    acl.aclrtRecordEvent(end, stream)
    acl.synchronize(stream)
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)
    say(ms.value)
    """
    name = "TORCH_LLM_DATADIST_EMULATE_"
    with peer(program, **{name + "TASK_DELAY_US": "10000", name + "BANDWIDTH_D2D": str(50 * MIB)}) as other:
        assert float(other.hear()) >= 10 + 10 + 20


def test_stats_count_what_is_alive(acl: Acl) -> None:
    def stats() -> list[int]:
        numbers = (ctypes.c_uint64 * 7)()
        acl.library.emuStats(numbers)
        return list(numbers)

    before = stats()
    acl.malloc(MIB, fill=None)
    acl.stream()
    acl.event()
    after = stats()

    assert [b - a for a, b in zip(before, after, strict=True)][:5] == [1, MIB, 0, 1, 1]


# --- the life of a process ---


def test_forked_child_is_refused_by_name() -> None:
    program = """
    acl.aclrtSetDevice(0)
    pid = os.fork()
    if pid == 0:
        say(acl.code.aclrtSetDevice(0), acl.message())
        os._exit(0)
    os.waitpid(pid, 0)
    acl.malloc(64)
    """
    with peer(program) as other:
        told = other.hear()
        other.end()

    assert told.startswith("500000 aclrtSetDevice")
    assert "fork" in told


def test_fork_before_the_first_device_is_fine() -> None:
    program = """
    acl.out('aclrtGetDeviceCount')
    pid = os.fork()
    acl.aclrtSetDevice(0)
    word, stream = acl.malloc(64), acl.stream()
    acl.aclrtValueWrite(word, 5, 0, stream)
    acl.synchronize(stream)
    assert acl.read_word(word) == 5
    if pid == 0:
        os._exit(3)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    with peer(program) as other:
        assert other.hear() == "3"
        other.end()


@pytest.mark.parametrize("how", ["finalize", "reset and finalize", "neither"])
def test_process_ends_cleanly_with_work_that_never_ends(how: str) -> None:
    program = f"""
    acl.aclrtSetDevice(0)
    streams = [acl.stream() for _ in range(4)]
    word = acl.malloc(64)
    for stream in streams:
        for _ in range(100):
            acl.aclrtValueWait(word, 1, c.EQ, stream)
    if {how!r} == "reset and finalize":
        acl.aclrtResetDevice(0)
    if {how!r} != "neither":
        acl.aclFinalize()
    say("end")
    """
    with peer(program) as other:
        assert other.hear() == "end"
        assert other.end() == ""


def test_threads_that_submit_while_the_process_finalizes_get_an_error_and_do_not_crash() -> None:
    program = """
    acl.aclrtSetDevice(0)
    word = acl.malloc(64)
    begun, codes = threading.Barrier(4), []
    def body():
        acl.aclrtSetDevice(0)
        stream = acl.stream()
        begun.wait()
        while (code := acl.code.aclrtValueWrite(word, 1, 0, stream)) == 0:
            pass
        codes.append(code)
    threads = [threading.Thread(target=body) for _ in range(3)]
    [t.start() for t in threads]
    begun.wait()
    acl.aclFinalize()
    [t.join() for t in threads]
    say(len(codes))
    """
    with peer(program) as other:
        assert other.hear() == "3"
        other.end()
