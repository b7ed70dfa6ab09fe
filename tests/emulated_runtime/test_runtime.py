"""The table of entry points, devices and contexts, and the life of a process."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, FEW_MS, HostFunction, in_thread, joined, peer
from .symbols import symbols

# --- the table of entry points ---


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
    say(acl.code.aclrtCntNotifyCreate(None, 0), acl.message())
    acl.code.aclrtCntNotifyCreate(None, 0)
    """
    with peer(program) as other:
        operator, memory = other.hear(), other.hear()
        errors = other.end()

    assert operator.startswith(f"{c.UNSUPPORTED} ")
    assert "MatMul" in operator
    assert memory.startswith(f"{c.UNSUPPORTED} aclrtCntNotifyCreate")
    assert errors.count("aclopCompileAndExecute('MatMul') is not implemented") == 1
    assert errors.count("aclrtCntNotifyCreate is not implemented") == 1


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


def test_device_capabilities_are_never_zero(library: Acl) -> None:
    for info in range(3):
        assert library.last_out("aclGetDeviceCapability", 0, info, kind=ctypes.c_int64) > 0


# --- devices and contexts ---


def test_devices_are_eight_unless_the_environment_says_otherwise() -> None:
    program = "say(acl.out('aclrtGetDeviceCount', kind=ctypes.c_uint32))"
    clean = {"TORCH_LLM_DATADIST_EMULATE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": ""}

    for environment, count in (({}, 8), ({"TORCH_LLM_DATADIST_EMULATE_DEVICES": "3"}, 3)):
        with peer(program, **{**clean, **environment}) as other:
            assert other.hear() == str(count)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DEVICES", "65", "a whole number from 1 to 64"),
        ("DEVICES", "-1", "a whole number from 1 to 64"),
        ("DEVICES", "0", "a whole number from 1 to 64"),
        ("DEVICES", "8 or so", "a whole number from 1 to 64"),
        ("LAZY", "2", "a whole number from 0 to 1"),
        ("SEED", "-5", "a whole number from 0 on"),
        ("DEVICE_MEMORY", "99999999999999999999", "a whole number from 0 on"),
        ("TIME", "simulatd", "real or simulated"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(variable: str, value: str, expected: str) -> None:
    name = f"TORCH_LLM_DATADIST_EMULATE_{variable}"

    with peer("say('went on')", **{name: value}) as other:
        _, errors = other.process.communicate(timeout=DEADLINE_S)

    assert other.process.returncode == 2
    assert f"{name}={value} is not known; expected {expected}" in errors


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
        codes.append(acl.sync_code(None))

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
    say(active(), acl.sync_code(None))
    """
    with peer(program) as other:
        assert other.hear() == "1"
        assert other.hear() == f"0 {c.NO_CONTEXT}"


def test_set_current_context_switches_the_device(acl: Acl) -> None:
    other = acl.context(3)

    assert acl.out("aclrtGetDevice", kind=ctypes.c_int32) == 3

    acl.aclrtDestroyContext(other)
    assert acl.sync_code(None) == c.NO_CONTEXT


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
    assert acl.sync_code(stream) == c.NO_CONTEXT
    acl.aclrtSetCurrentContext(mine)
    assert acl.sync_code(stream) == c.BAD_HANDLE


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
        acl.sync_code(stream),
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
