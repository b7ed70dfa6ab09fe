"""Who may touch mapped memory, and what of it depends on product, CANN and driver."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import peer
from .test_virtual_memory import HELPERS, PAGE, physical, reserve

NONE, READ, READ_WRITE = 0, 1, 3
DEVICE, HOST = 1, 0
GIB, TIB = 2**30, 2**40
FABRIC = 2


def describe(flags: int, device: int, where: int = DEVICE) -> object:
    return (ctypes.c_uint32 * 6)(flags, device, where, 0, 0, 0)


def mapped(acl: Acl, pages: int = 1) -> int:
    base = reserve(acl, pages * PAGE)
    for i in range(pages):
        acl.aclrtMapMem(base + i * PAGE, PAGE, 0, physical(acl), 0)
    return base


def access(acl: Acl, address: int, device: int) -> int:
    flag = ctypes.c_uint64()
    acl.aclrtMemGetAccess(address, (ctypes.c_uint32 * 2)(device, DEVICE), ctypes.byref(flag))
    return flag.value


def test_own_device_reads_and_writes_and_others_do_not(acl: Acl) -> None:
    base = mapped(acl)

    assert access(acl, base + 100, 0) == READ_WRITE
    assert access(acl, base, 7) == NONE


@pytest.mark.parametrize(
    ("flags", "read", "write"),
    [(NONE, c.COPY_ENGINE, c.COPY_ENGINE), (READ, 0, c.COPY_ENGINE), (READ_WRITE, 0, 0)],
)
def test_access_that_was_set_is_what_tasks_get(acl: Acl, flags: int, read: int, write: int) -> None:
    base, near, stream = mapped(acl), acl.malloc(64), acl.stream()

    acl.aclrtMemSetAccess(base, PAGE, describe(flags, 0), 1)

    assert access(acl, base, 0) == flags
    acl.copy(near, base, 64, stream)
    assert acl.sync_code(stream) == read
    acl.copy(base, near, 64, stream)
    assert acl.sync_code(stream) == write


def test_another_device_is_let_in_without_peer_access(acl: Acl) -> None:
    base = mapped(acl, 2)
    acl.aclrtMemSetAccess(base, 2 * PAGE, describe(READ_WRITE, 6), 1)
    mine, theirs = acl.out("aclrtGetCurrentContext"), acl.context(6)
    near, stream = acl.malloc(64, fill=4), acl.stream()

    acl.copy(base + PAGE - 32, near, 64, stream)  # across two mappings
    code = acl.sync_code(stream)
    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)

    assert code == 0
    assert access(acl, base, 6) == READ_WRITE
    assert acl.read(base + PAGE - 32, 64) == b"\x04" * 64


@pytest.mark.parametrize(
    ("offset", "size", "desc", "count", "code"),
    [
        (0, PAGE, describe(2, 0), 1, c.INVALID_PARAM),
        (0, PAGE, describe(READ, 0, HOST), 1, c.INVALID_PARAM),
        (0, PAGE, describe(READ, 99), 1, 107001),
        (0, PAGE, describe(READ, 0), 0, c.INVALID_PARAM),
        (0, PAGE // 2, describe(READ, 0), 1, c.INVALID_PARAM),
        (4096, PAGE, describe(READ, 0), 1, c.INVALID_PARAM),
        (PAGE, PAGE, describe(READ, 0), 1, c.INVALID_PARAM),  # reserved, nothing is mapped there
    ],
)
def test_set_access_rules(acl: Acl, offset: int, size: int, desc: object, count: int, code: int) -> None:
    base = reserve(acl, 2 * PAGE)
    acl.aclrtMapMem(base, PAGE, 0, physical(acl), 0)

    assert acl.code.aclrtMemSetAccess(base + offset, size, desc, count) == code


def test_reserve_rules(acl: Acl) -> None:
    out = ctypes.c_void_p()

    def reserve_code(size: int, alignment: int = 0, expected: int | None = None, flags: int = 0) -> int:
        return acl.code.aclrtReserveMemAddress(ctypes.byref(out), size, alignment, expected, flags)

    assert reserve_code(0) == c.INVALID_PARAM
    assert reserve_code(PAGE, alignment=3 * PAGE) == c.INVALID_PARAM
    assert reserve_code(PAGE, expected=40 * TIB) == c.INVALID_PARAM
    assert reserve_code(PAGE, flags=3) == c.INVALID_PARAM
    assert reserve_code(PAGE, flags=1) == 0


DRIVER = """
acl.context()
base, handle = reserve(acl, 2 << 20), physical(acl)
acl.aclrtMapMem(base, 2 << 20, 0, handle, 0)
say(acl.code.aclrtMemRetainAllocationHandle(base, ctypes.byref(ctypes.c_void_p())))
"""


@pytest.mark.parametrize(("driver", "code"), [("25.5", c.UNSUPPORTED), ("26.0", 0), ("26.1", 0)])
def test_handle_is_retained_from_driver_26_on(driver: str, code: int) -> None:
    with peer(HELPERS + DRIVER, TORCH_LLM_DATADIST_EMULATE_DRIVER=driver) as other:
        assert other.hear() == str(code)


A3 = {"TORCH_LLM_DATADIST_EMULATE_PROFILE": "A3"}

UNCACHED = f"""
acl.context()
def code(size, expected, name="aclrtReserveMemAddressNoUCMemory"):
    return getattr(acl.code, name)(ctypes.byref(ctypes.c_void_p()), size, 0, expected, 1)
say(code({GIB}, {40 * TIB}), code({GIB}, None), code({GIB} + 4096, {40 * TIB}), code({GIB}, {39 * TIB}),
    code({2 * GIB}, {224 * TIB - GIB}))
"""


@pytest.mark.parametrize(
    ("product", "codes"),
    [
        ("A2", [c.UNSUPPORTED] * 5),
        ("A3", [0, c.UNSUPPORTED, c.INVALID_PARAM, c.INVALID_PARAM, c.INVALID_PARAM]),
    ],
)
def test_uncached_ranges_are_gigabytes_in_a_window_on_a3(product: str, codes: list[int]) -> None:
    with peer(UNCACHED, TORCH_LLM_DATADIST_EMULATE_PROFILE=product) as other:
        assert other.hear().split() == [str(code) for code in codes]


FABRIC_HELPERS = (
    HELPERS
    + f"""
def export(handle, flags=1):
    data = ctypes.create_string_buffer(b"\\xff" * 128, 128)
    acl.aclrtMemExportToShareableHandleV2(handle, flags, {FABRIC}, data)
    return data.raw
def open_it(data):
    handle = ctypes.c_void_p()
    acl.aclrtMemImportFromShareableHandleV2(data, {FABRIC}, 0, ctypes.byref(handle))
    return handle.value
"""
)
EXPORTER = (
    FABRIC_HELPERS
    + f"""
acl.aclrtSetDevice(0)
base, handle = reserve(acl, 2 << 20), physical(acl)
acl.aclrtMapMem(base, 2 << 20, 0, handle, 0)
acl.aclrtMemset(base, 64, 3, 64)
data = export(handle, flags=0)
say(data.hex(), code_of(lambda: export(handle)), code_of(lambda: open_it(data)))
pid = (ctypes.c_int32 * 1)(int(hear()))
acl.aclrtMemSetPidToShareableHandleV2(data, {FABRIC}, pid, 1)
say("allowed")
hear()
say(set(acl.read(base, 64)))
"""
)
IMPORTER = (
    FABRIC_HELPERS
    + """
acl.aclrtSetDevice(1)
data = bytes.fromhex(hear())
say(os.getpid(), code_of(lambda: open_it(data)), code_of(lambda: open_it(b"x" * 128)))
hear()
base, stream = reserve(acl, 2 << 20), acl.stream()
acl.aclrtMapMem(base, 2 << 20, 0, open_it(data), 0)
acl.copy(base, acl.malloc(64, fill=8), 64, stream)
say(acl.sync_code(stream))
"""
)


def test_fabric_handle_is_128_bytes_that_another_process_imports_on_a3() -> None:
    with peer(EXPORTER, **A3) as exporter, peer(IMPORTER, **A3) as importer:
        data, again, at_home = exporter.hear().split()
        assert len(data) == 256
        assert (int(again), int(at_home)) == (c.INVALID_PARAM, c.INVALID_PARAM)
        importer.say(data)
        pid, stranger, nonsense = importer.hear().split()
        assert (int(stranger), int(nonsense)) == (c.NO_PERMISSION, c.INVALID_PARAM)
        exporter.say(pid)
        assert exporter.hear() == "allowed"
        importer.say("go on")
        assert importer.hear() == "0"
        exporter.say("go on")
        assert exporter.hear() == "{8}"


# A key, a handle of the host and a fabric handle, each without a white list; and a key with one.
OFFERS = (
    FABRIC_HELPERS
    + """
acl.aclrtSetDevice(0)
memory, listed = acl.malloc(2 << 20), acl.malloc(2 << 20)
shared = ctypes.c_uint64()
acl.aclrtMemExportToShareableHandle(physical(acl), 0, 1, ctypes.byref(shared))
key = acl.export(listed, 2 << 20, 0)
say(acl.export(memory, 2 << 20).hex(), shared.value, export(physical(acl)).hex(), key.hex())
pid = (ctypes.c_int32 * 1)(int(hear()))
acl.aclrtIpcMemImportPidInterServer(key, ctypes.byref(c.ServerPid.of(pid)), 1)
say("allowed")
hear()
"""
)
TAKES = (
    FABRIC_HELPERS
    + """
acl.aclrtSetDevice(0)
key, shared, data, listed = hear().split()
handle = ctypes.c_void_p()
take = lambda: acl.aclrtMemImportFromShareableHandle(ctypes.c_uint64(int(shared)), 0, ctypes.byref(handle))
pod = acl.last_out("aclrtGetDeviceInfo", 0, 405, kind=ctypes.c_int64)
say(os.getpid(), pod)
hear()
say(
    code_of(lambda: acl.import_key(bytes.fromhex(key))),
    code_of(take),
    code_of(lambda: open_it(bytes.fromhex(data))),
    code_of(lambda: acl.import_key(bytes.fromhex(listed))),
)
"""
)


@pytest.mark.parametrize(
    ("host", "pod", "codes"),
    [
        ("near", "7", [0, 0, 0, 0]),
        ("far", "7", [c.IPC_ERROR, c.IPC_ERROR, 0, 0]),
        ("far", "8", [c.IPC_ERROR] * 4),
    ],
)
def test_keys_stay_on_their_host_and_fabric_handles_in_their_super_pod(
    host: str, pod: str, codes: list[int]
) -> None:
    def at(host: str, pod: str) -> dict[str, str]:
        return {
            **A3,
            "TORCH_LLM_DATADIST_EMULATE_HOST": host,
            "TORCH_LLM_DATADIST_EMULATE_SUPER_POD": pod,
        }

    with peer(OFFERS, **at("near", "7")) as exporter, peer(TAKES, **at(host, pod)) as importer:
        importer.say(exporter.hear())
        pid, told = importer.hear().split()
        exporter.say(pid)
        assert exporter.hear() == "allowed"
        importer.say("go on")

        assert told == pod
        assert importer.hear().split() == [str(code) for code in codes]


def test_a_machine_without_fabric_is_part_of_no_super_pod(acl: Acl) -> None:
    value = ctypes.c_int64()

    assert acl.code.aclrtGetDeviceInfo(0, 405, ctypes.byref(value)) == c.UNSUPPORTED


def test_fabric_is_refused_by_name_elsewhere(acl: Acl) -> None:
    data = ctypes.create_string_buffer(128)
    handle = physical(acl)

    assert acl.code.aclrtMemExportToShareableHandleV2(handle, 1, FABRIC, data) == c.UNSUPPORTED
    assert "A3" in acl.message()
    out = ctypes.c_void_p()
    assert acl.code.aclrtMemImportFromShareableHandleV2(data, FABRIC, 0, ctypes.byref(out)) == c.UNSUPPORTED
    assert acl.code.aclrtMemExportToShareableHandleV2(handle, 1, 5, data) == c.INVALID_PARAM


def test_second_form_of_sharing_works_with_numbers_as_the_first(acl: Acl) -> None:
    number, out = ctypes.c_uint64(), ctypes.c_void_p()
    acl.aclrtMemExportToShareableHandleV2(physical(acl), 0, 1, ctypes.byref(number))
    pids = (ctypes.c_int32 * 1)(1)

    acl.aclrtMemSetPidToShareableHandleV2(ctypes.byref(number), 1, pids, 1)
    assert acl.code.aclrtMemSetPidToShareableHandleV2(ctypes.byref(number), 1, pids, 0) == c.INVALID_PARAM
    importing = acl.code.aclrtMemImportFromShareableHandleV2
    assert importing(ctypes.byref(number), 1, 1, ctypes.byref(out)) == c.INVALID_PARAM
    assert importing(ctypes.byref(number), 1, 0, ctypes.byref(out)) == c.INVALID_PARAM  # at home
