"""Device memory shared between processes."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

from . import acl_calls as c
from .acl_calls import Acl, AclError
from .acl_harness import DEADLINE_S, MIB, Peer, code_of, peer

EXPORTER = """
acl.aclrtSetDevice(0)
stream = acl.stream()
memory = acl.malloc(4 << 20, fill=1)
key = acl.export(memory, 4 << 20)
say(key.hex())
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


def test_copies_and_value_writes_to_imported_memory_are_captured(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, stream, near = acl.import_key(key), acl.stream(), acl.malloc(64, fill=7)
        acl.aclmdlRICaptureBegin(stream, 0)
        acl.copy(memory, near, 64, stream)
        acl.aclrtValueWrite(memory + 64, 5, 0, stream)
        graph = acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)
        other.say("read")
        assert other.hear() == "{1}"

        acl.aclmdlRIExecuteAsync(graph, stream)
        acl.synchronize(stream)

        other.say("read")
        assert ast.literal_eval(other.hear()) == {0, 1, 5, 7}
        acl.aclmdlRIDestroy(graph)
        acl.aclrtIpcMemClose(key)


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


def test_imported_memory_of_another_device_takes_part_in_asynchronous_device_copies_only(acl: Acl) -> None:
    with exporter(device=1) as (_, key):
        memory, stream = acl.import_key(key, flags=1), acl.stream()
        near, pinned = acl.malloc(64), acl.malloc_host(64)

        assert acl.code.aclrtMemcpyAsync(near, 64, memory, 64, c.DEFAULT, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpyAsync(pinned, 64, memory, 64, c.DEVICE_TO_HOST, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpyAsync(memory, 64, pinned, 64, c.HOST_TO_DEVICE, stream) == c.INVALID_PARAM
        assert acl.code.aclrtMemcpy(near, 64, memory, 64, c.DEVICE_TO_DEVICE) == c.INVALID_PARAM
        acl.aclrtIpcMemClose(key)


def test_imported_memory_of_the_same_device_is_like_ones_own(acl: Acl) -> None:
    with exporter() as (_, key):
        memory, stream = acl.import_key(key), acl.stream()
        near, pinned = acl.malloc(64), acl.malloc_host(64)

        acl.aclrtMemcpyAsync(near, 64, memory, 64, c.DEFAULT, stream)
        acl.aclrtMemcpyAsync(pinned, 64, memory, 64, c.DEVICE_TO_HOST, stream)
        acl.aclrtMemcpy(memory + 64, 64, memory, 64, c.DEVICE_TO_DEVICE)
        acl.synchronize(stream)

        assert acl.read(near, 64) == ctypes.string_at(pinned, 64) == b"\x01" * 64
        acl.aclrtIpcMemClose(key)


def test_import_on_another_device_needs_peer_access(acl: Acl) -> None:
    with exporter(device=1) as (_, key):
        memory, stream, near = acl.import_key(key), acl.stream(), acl.malloc(64)
        acl.copy(near, memory, 64, stream)
        assert acl.sync_code(stream) == c.INVALID_PARAM
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

        assert acl.sync_code(stream) == c.REMOTE_ERROR
        acl.aclrtIpcMemClose(key)


def test_nothing_is_left_behind_after_sigkill(acl: Acl) -> None:
    def shared_memory() -> set[str]:
        return set(os.listdir("/dev/shm"))

    before = shared_memory()
    with exporter() as (other, _):
        during = shared_memory()
        other.kill()

    assert during - before == set()


def test_flags_and_length_of_a_key_are_checked(acl: Acl) -> None:
    memory, key = acl.malloc(2 * MIB), ctypes.create_string_buffer(65)

    assert acl.code.aclrtIpcMemGetExportKey(memory, 2 * MIB, key, 64, 1) == c.INVALID_PARAM
    assert acl.code.aclrtIpcMemGetExportKey(memory, 2 * MIB, key, 65, 2) == c.INVALID_PARAM
    acl.aclrtIpcMemGetExportKey(memory, 2 * MIB, key, 65, 1)
    out = ctypes.c_void_p()
    assert acl.code.aclrtIpcMemImportByKey(ctypes.byref(out), key, 2) == c.INVALID_PARAM


def test_exporter_that_closes_first_ends_the_import(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, stream, near = acl.import_key(key), acl.stream(), acl.malloc(64)
        acl.copy(near, memory, 64, stream)
        acl.synchronize(stream)
        other.say("close")
        assert other.hear() == "closed"

        acl.copy(near, memory, 64, stream)

        assert acl.sync_code(stream) == c.REMOTE_ERROR
        acl.aclrtIpcMemClose(key)


def test_key_that_was_imported_twice_is_closed_twice(acl: Acl) -> None:
    with exporter() as (_, key):
        first, second = acl.import_key(key), acl.import_key(key)
        stream, near = acl.stream(), acl.malloc(64)
        acl.aclrtIpcMemClose(key)

        acl.copy(near, second, 64, stream)
        acl.synchronize(stream)

        assert first == second
        acl.aclrtIpcMemClose(key)
        acl.copy(near, second, 64, stream)
        assert acl.sync_code(stream) == c.COPY_ENGINE


def test_imported_memory_is_not_exported_again(acl: Acl) -> None:
    with exporter() as (_, key):
        memory = acl.import_key(key)

        assert code_of(lambda: acl.export(memory, 4 * MIB)) == c.INVALID_PARAM
        acl.aclrtIpcMemClose(key)


def test_stop_on_failure_stops_the_context_when_the_exporter_died(acl: Acl) -> None:
    with exporter() as (other, key):
        memory, near = acl.import_key(key), acl.malloc(64)
        stream, bystander = acl.stream(stop_on_failure=True), acl.stream()
        other.kill()

        acl.copy(near, memory, 64, stream)

        assert acl.sync_code(stream) == c.LINK_ERROR
        assert acl.sync_code(bystander) == c.LINK_ERROR


def test_key_of_a_process_that_had_the_number_before_is_refused(acl: Acl) -> None:
    with exporter() as (_, key):
        fields = key.decode().split(":")
        fields[2] = f"{int(fields[2], 16) - 1:010x}"  # the same number, started at another time
        older = ":".join(fields).encode()

        assert code_of(lambda: acl.import_key(older)) == c.IPC_ERROR
        acl.import_key(key)
        acl.aclrtIpcMemClose(key)
