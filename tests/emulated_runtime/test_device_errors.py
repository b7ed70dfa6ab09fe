"""What a device says of a failed task, and the repair of memory that a fault made break."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import code_of

BROKEN, SUSPECTED, ECC, LINK, CORE_TIMEOUT, SDMA = 507053, 507055, 507054, 507056, 507014, 507013
NONE, MEMORY, L2, CORE, LINKS = range(5)
OTHERS = 0xFFFF


class Place(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_size_t),
        ("reserved", ctypes.c_size_t * 14),
    ]


class Info(ctypes.Structure):
    _fields_ = [
        ("try_repair", ctypes.c_uint8),
        ("has_detail", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 2),
        ("type", ctypes.c_uint32),
        ("count", ctypes.c_size_t),
        ("places", Place * 20),
    ]


def verbose(acl: Acl) -> Info:
    info = Info()
    acl.aclrtGetErrorVerbose(0, ctypes.byref(info))
    return info


def broken(acl: Acl) -> list[tuple[int, int]]:
    places, count = (Place * 20)(), ctypes.c_size_t()
    acl.aclrtGetMemUceInfo(0, places, 20, ctypes.byref(count))
    return [(place.address, place.length) for place in places[: count.value]]


def fail_a_copy(acl: Acl, code: int, source: int, size: int = 64) -> None:
    stream, near = acl.stream(), acl.malloc(4096)
    acl.emuFailTask(stream, 1, code)
    acl.copy(near, source, size, stream)
    assert acl.sync_code(stream) == code
    acl.aclrtDestroyStream(stream)


@pytest.fixture(autouse=True)
def repaired(acl: Acl) -> Iterator[None]:
    yield
    left = [Place(*place) for place in broken(acl)]
    if left:
        acl.aclrtMemUceRepair(0, (Place * len(left))(*left), len(left))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (SUSPECTED, MEMORY),
        (LINK, LINKS),
        (507057, LINKS),
        (CORE_TIMEOUT, CORE),
        (507015, CORE),
        (SDMA, OTHERS),
    ],
)
def test_device_says_what_sort_its_latest_error_was(acl: Acl, code: int, kind: int) -> None:
    fail_a_copy(acl, code, acl.malloc(64))

    info = verbose(acl)

    assert (info.type, info.try_repair, info.has_detail) == (kind, 0, int(kind == CORE))
    assert broken(acl) == []
    assert acl.code.aclrtRepairError(0, ctypes.byref(info)) == c.UNSUPPORTED  # nothing of it can be repaired


@pytest.mark.parametrize("code", [BROKEN, ECC])
@pytest.mark.parametrize("by", ["aclrtRepairError", "aclrtMemUceRepair"])
def test_broken_memory_is_named_and_repaired_without_its_bytes(acl: Acl, code: int, by: str) -> None:
    source = acl.malloc(4096, fill=7)
    fail_a_copy(acl, code, source + 64, size=128)

    info = verbose(acl)
    assert (info.type, info.try_repair, info.has_detail, info.count) == (MEMORY, 1, 1, 1)
    assert (info.places[0].address, info.places[0].length) == (source + 64, 128)
    assert broken(acl) == [(source + 64, 128)]

    if by == "aclrtRepairError":
        acl.aclrtRepairError(0, ctypes.byref(info))
    else:
        acl.aclrtMemUceRepair(0, info.places, 1)

    assert acl.read(source, 256) == b"\x07" * 64 + bytes(128) + b"\x07" * 64
    assert broken(acl) == []
    assert verbose(acl).type == NONE


@pytest.mark.parametrize("code", [BROKEN, ECC])
def test_broken_memory_fails_each_task_that_touches_it_until_it_is_repaired_or_freed(
    acl: Acl, code: int
) -> None:
    source, near, stream = acl.malloc(4096, fill=7), acl.malloc(4096), acl.stream()
    fail_a_copy(acl, code, source + 64, size=128)

    acl.copy(near, source + 128, 128, stream)
    assert acl.sync_code(stream) == code
    assert "is broken" in acl.message()
    acl.copy(source + 191, near, 1, stream)
    assert acl.sync_code(stream) == code
    acl.copy(near, source + 192, 128, stream)
    acl.copy(near, source, 64, stream)
    acl.synchronize(stream)
    assert broken(acl) == [(source + 64, 128)]  # once

    acl.aclrtFree(source)
    assert broken(acl) == []


def test_error_of_a_graphs_task_is_the_devices(acl: Acl) -> None:
    stream, source, near = acl.stream(), acl.malloc(64), acl.malloc(64)
    acl.aclmdlRICaptureBegin(stream, 0)
    acl.copy(near, source, 64, stream)
    graph = acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)
    acl.emuFailTask(None, 1, BROKEN)

    acl.aclmdlRIExecuteAsync(graph, stream)

    assert acl.sync_code(stream) == 507011
    assert broken(acl) == [(source, 64)]
    acl.aclmdlRIDestroy(graph)


def test_what_is_not_broken_is_not_repaired(acl: Acl) -> None:
    source = acl.malloc(4096, fill=7)
    fail_a_copy(acl, BROKEN, source)
    both = (Place * 2)(Place(source, 64), Place(source + 64, 64))

    assert acl.code.aclrtMemUceRepair(0, both, 2) == c.INVALID_PARAM
    assert acl.code.aclrtMemUceRepair(0, both, 0) == c.INVALID_PARAM
    assert acl.code.aclrtMemUceRepair(99, both, 1) == 107001
    assert broken(acl) == [(source, 64)]  # not one of them
    assert code_of(lambda: acl.read(source, 64)) == BROKEN
    assert acl.read(source + 64, 64) == b"\x07" * 64


def test_list_of_broken_memory_takes_what_room_there_is(acl: Acl) -> None:
    source, count, places = acl.malloc(4096), ctypes.c_size_t(), (Place * 2)()
    for i in range(3):
        fail_a_copy(acl, BROKEN, source + 64 * i)

    acl.aclrtGetMemUceInfo(0, places, 2, ctypes.byref(count))

    assert [count.value, places[0].address, places[1].address] == [2, source, source + 64]
