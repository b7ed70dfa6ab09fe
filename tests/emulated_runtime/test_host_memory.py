"""Host memory: allocated pinned, registered by its owner, or neither."""

from __future__ import annotations

import ctypes
import mmap
import struct

import pytest

from torch_llm_datadist.emulator import faults

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import FEW_MS, Gate, in_thread, joined

PAGE = 4096
MAPPED, IO, READ_ONLY, PINNED = 0x2, 0x4, 0x8, 0x10000000


class Pages:
    """Ordinary memory that begins at a page; unregistered at the end of a test by its owner."""

    def __init__(self, count: int) -> None:
        self.buffer = ctypes.create_string_buffer((count + 1) * PAGE)
        self.address = (ctypes.addressof(self.buffer) + PAGE - 1) // PAGE * PAGE


def device_pointer(acl: Acl, address: int, flag: int = 0) -> int:
    return acl.code.aclrtHostGetDevicePointer(address, ctypes.byref(ctypes.c_void_p()), flag)


@pytest.mark.parametrize("flags", [MAPPED, IO, READ_ONLY, PINNED, MAPPED | READ_ONLY | PINNED])
def test_registered_memory_is_pinned_until_it_is_unregistered(acl: Acl, flags: int) -> None:
    pages, device, stream = Pages(1), acl.malloc(64), acl.stream()
    ctypes.memset(pages.address, 1, 64)
    acl.aclrtHostRegisterV2(pages.address, PAGE, flags)
    gate = Gate(acl, stream)

    acl.copy(device, pages.address, 64, stream, c.HOST_TO_DEVICE)  # returns although the stream is held
    ctypes.memset(pages.address, 2, 64)  # too early
    gate.open()
    acl.synchronize(stream)

    assert acl.read(device, 64) == b"\x02" * 64
    acl.aclrtHostUnregister(pages.address)
    acl.emuStreamDelay(stream, 5_000)
    acl.copy(device, pages.address, 64, stream, c.HOST_TO_DEVICE)
    assert acl.is_idle(stream)  # pageable: waited for


def mapped_page() -> tuple[mmap.mmap, int]:
    page = mmap.mmap(-1, PAGE)
    pointer = ctypes.c_char.from_buffer(page)
    return page, ctypes.addressof(pointer)


@pytest.mark.parametrize("kind", [c.HOST_TO_DEVICE, c.DEVICE_TO_HOST])
@pytest.mark.parametrize("first_form", [False, True])
def test_queued_copy_of_memory_that_is_unregistered_and_gone_is_507013(
    acl: Acl, kind: int, first_form: bool
) -> None:
    page, address = mapped_page()
    device, stream = acl.malloc(64), acl.stream()
    if first_form:
        acl.aclrtHostRegister(address, PAGE, 0, ctypes.byref(ctypes.c_void_p()))
    else:
        acl.aclrtHostRegisterV2(address, PAGE, PINNED)
    gate = Gate(acl, stream)
    ends = (device, address) if kind == c.HOST_TO_DEVICE else (address, device)
    acl.copy(*ends, 64, stream, kind)

    acl.aclrtHostUnregister(address)
    page.close()
    gate.open()

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert "was unregistered before the copy ran" in acl.message()


def test_copy_that_reaches_past_what_is_registered_now_is_507013(acl: Acl) -> None:
    pages, device, stream = Pages(2), acl.malloc(2 * PAGE), acl.stream()
    acl.aclrtHostRegisterV2(pages.address, 2 * PAGE, PINNED)
    gate = Gate(acl, stream)
    acl.copy(device, pages.address, 2 * PAGE, stream, c.HOST_TO_DEVICE)

    acl.aclrtHostUnregister(pages.address)
    acl.aclrtHostRegisterV2(pages.address, PAGE, PINNED)
    gate.open()

    assert acl.sync_code(stream) == c.COPY_ENGINE
    acl.aclrtHostUnregister(pages.address)


def test_unregister_waits_for_copies_under_way_and_no_other_call_does(acl: Acl) -> None:
    pages, device, stream = Pages(2), acl.malloc(64), acl.stream()
    acl.aclrtHostRegisterV2(pages.address, PAGE, PINNED)
    held = faults.hold_copy(32, bytes=64)
    acl.copy(device, pages.address, 64, stream, c.HOST_TO_DEVICE)
    held.wait()

    context = acl.out("aclrtGetCurrentContext")

    def unregister() -> None:
        acl.aclrtSetCurrentContext(context)
        acl.aclrtHostUnregister(pages.address)

    unregistering = in_thread(unregister)
    unregistering.join(FEW_MS / 1000)
    assert unregistering.is_alive()
    # Meanwhile it is no longer registered for anybody else, and other memory may come and go.
    assert device_pointer(acl, pages.address) == 507911
    acl.aclrtHostRegisterV2(pages.address + PAGE, PAGE, PINNED)
    acl.aclrtHostUnregister(pages.address + PAGE)
    held.disarm()

    joined(unregistering)
    acl.synchronize(stream)


def test_range_that_is_registered_in_part_is_pageable(acl: Acl) -> None:
    pages, device, stream = Pages(2), acl.malloc(2 * PAGE), acl.stream()
    acl.aclrtHostRegisterV2(pages.address, PAGE, PINNED)
    acl.emuStreamDelay(stream, 5_000)

    acl.copy(device, pages.address, 2 * PAGE, stream, c.HOST_TO_DEVICE)

    assert acl.is_idle(stream)
    acl.aclrtHostUnregister(pages.address)


@pytest.mark.parametrize(
    ("offset", "size", "flags"),
    [(8, PAGE, MAPPED), (0, 0, MAPPED), (0, PAGE, 0), (0, PAGE, 1), (0, PAGE, 0x12)],
)
def test_register_arguments_are_checked(acl: Acl, offset: int, size: int, flags: int) -> None:
    pages = Pages(2)

    assert acl.code.aclrtHostRegisterV2(pages.address + offset, size, flags) == c.INVALID_PARAM


def test_register_twice_is_507910_and_unregister_twice_507911(acl: Acl) -> None:
    pages = Pages(2)
    acl.aclrtHostRegisterV2(pages.address, 2 * PAGE, MAPPED)

    assert acl.code.aclrtHostRegisterV2(pages.address + PAGE, PAGE, MAPPED) == 507910
    assert acl.code.aclrtHostUnregister(pages.address + PAGE) == 507911
    acl.aclrtHostUnregister(pages.address)
    assert acl.code.aclrtHostUnregister(pages.address) == 507911


def test_first_form_of_register_gives_a_device_pointer(acl: Acl) -> None:
    pages, out = Pages(1), ctypes.c_void_p()
    assert acl.code.aclrtHostRegister(pages.address, PAGE, 5, ctypes.byref(out)) == c.INVALID_PARAM

    acl.aclrtHostRegister(pages.address, PAGE, 0, ctypes.byref(out))

    assert out.value
    assert device_pointer(acl, pages.address + 8) == 0
    assert device_pointer(acl, pages.address, flag=1) == c.INVALID_PARAM
    acl.aclrtHostUnregister(pages.address)
    assert device_pointer(acl, pages.address) == 507911


def test_device_pointer_needs_memory_that_was_mapped(acl: Acl) -> None:
    pages = Pages(1)
    acl.aclrtHostRegisterV2(pages.address, PAGE, PINNED)

    assert device_pointer(acl, pages.address) == c.INVALID_PARAM
    acl.aclrtHostUnregister(pages.address)


def test_device_does_not_write_what_is_registered_read_only(acl: Acl) -> None:
    pages, device, stream = Pages(1), acl.malloc(64), acl.stream()
    acl.aclrtHostRegisterV2(pages.address, PAGE, READ_ONLY)

    code = acl.code.aclrtMemcpyAsync(pages.address, 64, device, 64, c.DEVICE_TO_HOST, stream)

    assert code == c.INVALID_PARAM
    acl.aclrtHostUnregister(pages.address)


def test_allocation_with_a_config_is_pinned_and_its_attributes_checked(acl: Acl) -> None:
    def config(attribute: int) -> tuple[object, object]:
        attributes = ctypes.create_string_buffer(struct.pack("II8x", attribute, 0))
        return ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(attributes), 1)), attributes

    out, stream, device = ctypes.c_void_p(), acl.stream(), acl.malloc(64)
    fine, _kept = config(3)
    acl.aclrtMallocHostWithCfg(ctypes.byref(out), 64, fine)
    gate = Gate(acl, stream)
    acl.copy(device, out.value, 64, stream, c.HOST_TO_DEVICE)
    gate.open()
    acl.synchronize(stream)
    acl.aclrtFreeHost(out.value)

    strange, _kept = config(9)
    assert acl.code.aclrtMallocHostWithCfg(ctypes.byref(out), 64, strange) == c.INVALID_PARAM
    assert acl.code.aclrtMallocHostWithCfg(ctypes.byref(out), 0, None) == c.INVALID_PARAM
