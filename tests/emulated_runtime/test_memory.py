"""Device, pinned and ordinary memory, and copies between them."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from pathlib import Path

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, MIB, Gate, peer

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

    gc.collect()  # what other tests left open is not closed in between
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

    assert acl.sync_code(stream) == c.COPY_ENGINE
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


def test_memset_checks_and_sets(acl: Acl) -> None:
    device = acl.malloc(64)
    buffer = ctypes.create_string_buffer(64)

    acl.aclrtMemset(device, 64, 0x1FE, 16)

    assert acl.read(device, 64) == b"\xfe" * 16 + bytes(48)
    assert acl.code.aclrtMemset(device, 8, 0, 9) == c.INVALID_PARAM
    assert acl.code.aclrtMemsetAsync(ctypes.addressof(buffer), 64, 0, 64, None) == c.INVALID_PARAM


def test_cache_operation_keeps_its_place_and_is_checked(acl: Acl) -> None:
    stream, memory, pinned = acl.stream(), acl.malloc(64), acl.malloc_host(64)
    before = acl.library.emuCalls(b"aclrtCmoAsync")
    gate = Gate(acl, stream)
    for kind in range(4):
        acl.aclrtCmoAsync(memory, 64, kind, stream)
    acl.aclrtValueWrite(memory, 1, 0, stream)

    assert acl.read_word(memory) == 0
    gate.open()
    acl.synchronize(stream)

    assert acl.read_word(memory) == 1
    assert acl.code.aclrtCmoAsync(None, 64, 0, stream) == c.INVALID_PARAM
    assert acl.code.aclrtCmoAsync(memory, 0, 0, stream) == c.INVALID_PARAM
    assert acl.code.aclrtCmoAsync(memory, 64, 4, stream) == c.INVALID_PARAM
    assert acl.code.aclrtCmoAsync(pinned, 64, 0, stream) == c.INVALID_PARAM
    assert acl.library.emuCalls(b"aclrtCmoAsync") == before + 8
