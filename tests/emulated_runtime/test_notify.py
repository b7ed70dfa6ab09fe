"""Notifies: one bit between two streams, of one process or of two."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import FEW_MS, MIB, Peer, code_of, peer

NO_NOTIFY = 207009
PER_DEVICE = 8192
ANY_PROCESS, PEER_ACCESS = 2, 2  # of notifies; memory has 1 for both


def notify(acl: Acl, flags: int = 0) -> int:
    return acl.out("aclrtCreateNotify", flags)


def key_of(acl: Acl, made: int, flags: int = ANY_PROCESS) -> bytes:
    key = ctypes.create_string_buffer(b"\xff" * c.KEY_LENGTH, c.KEY_LENGTH)
    acl.aclrtNotifyGetExportKey(made, ctypes.addressof(key), c.KEY_LENGTH, flags)
    return key.raw


def import_code(acl: Acl, key: bytes, flags: int = 0) -> int:
    return acl.code.aclrtNotifyImportByKey(ctypes.byref(ctypes.c_void_p()), key, flags)


def is_held(acl: Acl, stream: int) -> bool:
    return acl.code.aclrtSynchronizeStreamWithTimeout(stream, FEW_MS) == c.STREAM_TIMEOUT


# --- in one process ---


def test_wait_may_come_before_the_record(acl: Acl) -> None:
    waiting, recording, bit = acl.stream(), acl.stream(), notify(acl)
    acl.aclrtWaitAndResetNotify(bit, waiting, 0)
    assert is_held(acl, waiting)

    acl.aclrtRecordNotify(bit, recording)

    acl.synchronize(waiting)


def test_two_records_before_one_wait_are_one(acl: Acl) -> None:
    stream, bit = acl.stream(), notify(acl)
    acl.aclrtRecordNotify(bit, stream)
    acl.aclrtRecordNotify(bit, stream)
    acl.aclrtWaitAndResetNotify(bit, stream, 0)
    acl.synchronize(stream)

    acl.aclrtWaitAndResetNotify(bit, stream, 0)

    assert is_held(acl, stream)


def test_wait_with_timeout_is_a_task_error(acl: Acl) -> None:
    stream, bit = acl.stream(), notify(acl)

    acl.aclrtWaitAndResetNotify(bit, stream, 1)

    assert acl.sync_code(stream) == c.WAIT_TIMEOUT


def test_wait_ends_with_an_abort(acl: Acl) -> None:
    stream, bit = acl.stream(), notify(acl)
    acl.aclrtWaitAndResetNotify(bit, stream, 0)

    acl.aclrtStreamAbort(stream)

    acl.synchronize(stream)


def test_batch_reset_clears_all_or_none(acl: Acl) -> None:
    stream, bits = acl.stream(), [notify(acl) for _ in range(3)]
    for bit in bits:
        acl.aclrtRecordNotify(bit, stream)
    acl.synchronize(stream)

    assert acl.code.aclrtNotifyBatchReset((ctypes.c_void_p * 2)(bits[0], 0x1234), 2) == c.BAD_HANDLE
    acl.aclrtWaitAndResetNotify(bits[0], stream, 0)
    acl.synchronize(stream)
    acl.aclrtNotifyBatchReset((ctypes.c_void_p * 3)(*bits), 3)
    for bit in bits[1:]:
        waiting = acl.stream()
        acl.aclrtWaitAndResetNotify(bit, waiting, 0)
        assert is_held(acl, waiting)
    assert acl.code.aclrtNotifyBatchReset((ctypes.c_void_p * 1)(bits[0]), 0) == c.INVALID_PARAM


def test_device_has_8192_and_one_more_is_207009() -> None:
    program = f"""
    def make():
        return acl.code.aclrtCreateNotify(ctypes.byref(out), 0)
    out, last = ctypes.c_void_p(), None
    first = acl.context(0)
    codes = {{make() for _ in range({PER_DEVICE})}}
    last = out.value
    full = make()
    acl.context(1)
    elsewhere = make()
    acl.aclrtSetCurrentContext(first)
    acl.aclrtDestroyNotify(last)
    say(codes, full, elsewhere, make())
    """
    with peer(program) as other:
        assert other.hear() == f"{{0}} {NO_NOTIFY} 0 0"


def test_only_the_device_that_made_it_waits(acl: Acl) -> None:
    bit = notify(acl)
    mine = acl.out("aclrtGetCurrentContext")
    theirs = acl.context(1)
    stream = acl.stream()

    codes = [acl.code.aclrtWaitAndResetNotify(bit, stream, 0), acl.code.aclrtRecordNotify(bit, stream)]
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)

    assert codes == [c.INVALID_PARAM] * 2  # the record: this device may not reach the other one


@pytest.mark.parametrize(
    ("name", "args", "code"),
    [
        ("aclrtRecordNotify", (None, None), c.INVALID_PARAM),
        ("aclrtRecordNotify", (0x1234, None), c.BAD_HANDLE),
        ("aclrtWaitAndResetNotify", (0x1234, None, 0), c.BAD_HANDLE),
        ("aclrtDestroyNotify", (0x1234,), c.BAD_HANDLE),
        ("aclrtGetNotifyId", (0x1234, None), c.BAD_HANDLE),
        ("aclrtCreateNotify", (None, 0), c.INVALID_PARAM),
    ],
)
def test_wrong_handles_are_refused(acl: Acl, name: str, args: tuple[object, ...], code: int) -> None:
    assert getattr(acl.code, name)(*args) == code


def test_freed_notify_is_refused(acl: Acl) -> None:
    bit = notify(acl)
    acl.aclrtDestroyNotify(bit)

    assert acl.code.aclrtDestroyNotify(bit) == c.BAD_HANDLE
    assert acl.code.aclrtRecordNotify(bit, None) == c.BAD_HANDLE


def test_flags_are_checked(acl: Acl) -> None:
    assert acl.code.aclrtCreateNotify(ctypes.byref(ctypes.c_void_p()), 2) == c.INVALID_PARAM
    device_only = notify(acl, 1)
    assert acl.code.aclrtRecordNotify(device_only, None) == c.INVALID_PARAM
    assert acl.code.aclrtWaitAndResetNotify(device_only, None, 0) == c.INVALID_PARAM
    assert code_of(lambda: key_of(acl, notify(acl), flags=1)) == c.INVALID_PARAM
    key = ctypes.create_string_buffer(64)
    assert acl.code.aclrtNotifyGetExportKey(notify(acl), key, 64, 0) == c.INVALID_PARAM


def test_counting_notifies_are_refused_by_name(acl: Acl) -> None:
    assert acl.code.aclrtCntNotifyCreate(ctypes.byref(ctypes.c_void_p()), 0) == c.UNSUPPORTED
    assert "aclrtCntNotifyCreate" in acl.message()


def test_record_and_wait_can_be_captured(acl: Acl) -> None:
    stream, bit = acl.stream(), notify(acl)
    acl.aclmdlRICaptureBegin(stream, 0)
    acl.aclrtWaitAndResetNotify(bit, stream, 0)
    graph = acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)

    for _ in range(2):  # each replay consumes one record
        acl.aclmdlRIExecuteAsync(graph, stream)
        assert is_held(acl, stream)
        acl.aclrtRecordNotify(bit, acl.stream())
        acl.synchronize(stream)
    acl.aclmdlRIDestroy(graph)


# --- between processes ---

MAKER = """
import ctypes
acl.aclrtSetDevice(DEVICE)
stream = acl.stream()
bit = acl.out("aclrtCreateNotify", 0)
def key(flags):
    out = ctypes.create_string_buffer(65)
    acl.aclrtNotifyGetExportKey(bit, out, 65, flags)
    return out.raw.hex()
say(key(FLAGS), acl.last_out("aclrtGetNotifyId", bit, kind=ctypes.c_uint32))
while command := hear():
    if command == "wait":
        acl.aclrtWaitAndResetNotify(bit, stream, 0)
        say("waiting")
        acl.synchronize(stream)
        say("woken")
    elif command.startswith("allow"):
        pid = (ctypes.c_int32 * 1)(int(command.split()[1]))
        acl.aclrtNotifySetImportPid(bit, pid, 1)
        say("allowed")
    elif command == "destroy":
        acl.aclrtDestroyNotify(bit)
        say("destroyed")
"""


@contextlib.contextmanager
def maker(flags: int = ANY_PROCESS, device: int = 0) -> Iterator[tuple[Peer, bytes, int]]:
    with peer(MAKER.replace("DEVICE", str(device)).replace("FLAGS", str(flags))) as other:
        key, number = other.hear().split()
        yield other, bytes.fromhex(key), int(number)


def test_importer_records_and_the_maker_wakes(acl: Acl) -> None:
    with maker() as (other, key, number):
        bit, stream = acl.out("aclrtNotifyImportByKey", key, 0), acl.stream()
        assert acl.last_out("aclrtGetNotifyId", bit, kind=ctypes.c_uint32) == number
        for _ in range(2):
            other.say("wait")
            assert other.hear() == "waiting"
            acl.aclrtRecordNotify(bit, stream)
            assert other.hear() == "woken"
        acl.synchronize(stream)
        acl.aclrtDestroyNotify(bit)  # every process that has it destroys it
        other.say("destroy")
        assert other.hear() == "destroyed"


def test_importer_only_records(acl: Acl) -> None:
    with maker() as (_, key, _):
        bit = acl.out("aclrtNotifyImportByKey", key, 0)

        assert acl.code.aclrtWaitAndResetNotify(bit, None, 0) == c.INVALID_PARAM
        assert acl.code.aclrtNotifyBatchReset((ctypes.c_void_p * 1)(bit), 1) == c.INVALID_PARAM
        assert code_of(lambda: key_of(acl, bit)) == c.INVALID_PARAM
        acl.aclrtDestroyNotify(bit)


def test_import_rules(acl: Acl) -> None:
    with maker() as (other, key, _):
        assert import_code(acl, key, 1) == c.INVALID_PARAM  # memory's flag
        assert code_of(lambda: acl.import_key(key)) == c.INVALID_PARAM  # it is no memory
        other.say("destroy")
        assert other.hear() == "destroyed"
        assert import_code(acl, key) == c.IPC_ERROR
        other.kill()
        assert import_code(acl, key) == c.IPC_ERROR
    assert import_code(acl, key_of(acl, notify(acl))) == c.INVALID_PARAM  # one's own
    assert import_code(acl, acl.export(acl.malloc(2 * MIB), 2 * MIB)) == c.INVALID_PARAM
    assert import_code(acl, b"no key" + bytes(59)) == c.INVALID_PARAM


def test_white_list_is_enforced(acl: Acl) -> None:
    pid = acl.out("aclrtDeviceGetBareTgid", kind=ctypes.c_int32)
    assert acl.code.aclrtNotifySetImportPid(notify(acl), (ctypes.c_int32 * 1)(pid), 1) == c.INVALID_PARAM
    with maker(flags=0) as (other, key, _):
        assert import_code(acl, key) == c.NO_PERMISSION
        other.say("allow", pid)
        assert other.hear() == "allowed"
        assert import_code(acl, key) == 0


def test_import_on_another_device_needs_peer_access(acl: Acl) -> None:
    with maker(device=1) as (_, key, _):
        for flags, code in ((0, c.INVALID_PARAM), (PEER_ACCESS, 0)):
            stream, bit = acl.stream(), acl.out("aclrtNotifyImportByKey", key, flags)
            acl.aclrtRecordNotify(bit, stream)
            assert acl.sync_code(stream) == code


@pytest.mark.parametrize(("how", "code"), [("destroyed", c.REMOTE_ERROR), ("dead", c.LINK_ERROR)])
def test_record_after_the_maker_let_go_is_a_task_error(acl: Acl, how: str, code: int) -> None:
    with maker() as (other, key, _):
        bit, stream = acl.out("aclrtNotifyImportByKey", key, 0), acl.stream()
        if how == "dead":
            other.kill()
        else:
            other.say("destroy")
            assert other.hear() == how

        acl.aclrtRecordNotify(bit, stream)

        assert acl.sync_code(stream) == code


SERVERS = """
import ctypes, os
class ServerPid(ctypes.Structure):
    _fields_ = [("sdid", ctypes.c_uint32), ("pid", ctypes.POINTER(ctypes.c_int32)), ("num", ctypes.c_size_t)]
acl.aclrtSetDevice(0)
pids = (ctypes.c_int32 * 1)(os.getpid())
servers = (ServerPid * 1)(ServerPid(0, pids, 1))
bit = acl.out("aclrtCreateNotify", 0)
key = ctypes.create_string_buffer(65)
def code(name, *args):
    return getattr(acl.code, name)(*args)
memory = acl.malloc(2 << 20)
memory_key = acl.export(memory, 2 << 20, flags=0)
say(code("aclrtNotifyGetExportKey", bit, key, 65, 0),
    code("aclrtNotifySetImportPidInterServer", bit, servers, 1),
    code("aclrtIpcMemImportPidInterServer", memory_key, servers, 1),
    code("aclrtIpcMemSetAttr", memory_key, 0, 1))
"""


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("A2", f"0 {c.UNSUPPORTED} {c.UNSUPPORTED} {c.UNSUPPORTED}"),
        ("A3", "0 0 0 0"),
        ("950DT", f"{c.UNSUPPORTED} {c.UNSUPPORTED} {c.UNSUPPORTED} {c.UNSUPPORTED}"),
    ],
)
def test_what_a_product_has_between_processes_and_servers(product: str, expected: str) -> None:
    with peer(SERVERS, TORCH_LLM_DATADIST_EMULATE_PROFILE=product) as other:
        assert other.hear() == expected


def test_notify_of_a_graph_is_in_use_until_the_graph_goes() -> None:
    program = f"""
    acl.context(0)
    def make():
        out = ctypes.c_void_p()
        return acl.code.aclrtCreateNotify(ctypes.byref(out), 0), out.value
    made = [make()[1] for _ in range({PER_DEVICE})]
    stream = acl.stream()
    acl.aclmdlRICaptureBegin(stream, 0)
    acl.aclrtRecordNotify(made[0], stream)
    acl.aclrtWaitAndResetNotify(made[0], stream, 0)
    graph = acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)
    acl.aclrtDestroyNotify(made[0])
    say(make()[0], acl.message())
    acl.aclmdlRIExecuteAsync(graph, stream)
    say(acl.sync_code(stream))
    acl.aclmdlRIDestroy(graph)
    say(make()[0])
    """
    with peer(program) as other:
        full, ran, free = other.hear(), other.hear(), other.hear()

    assert full.startswith(f"{NO_NOTIFY} ")
    assert "EE1023" in full
    assert (ran, free) == ("0", "0")
