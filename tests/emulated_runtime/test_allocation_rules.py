"""What an allocation is: its alignment, how its size is rounded, the pages that a policy gives it."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import MIB, peer

NORMAL, HUGE, HUGE_1G = 4096, 2 * MIB, 1024 * MIB
HUGE_FIRST, HUGE_ONLY, NORMAL_ONLY, HUGE_FIRST_P2P, HUGE_ONLY_P2P, NORMAL_ONLY_P2P = range(6)
HUGE_1G_ONLY, HUGE_1G_ONLY_P2P = 6, 7


def page_of(acl: Acl, address: int) -> int:
    words = (ctypes.c_uint32 * 7)()
    acl.aclrtPointerGetAttributes(address, words)
    return words[2]


def used(acl: Acl) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    acl.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


@pytest.mark.parametrize(
    ("policy", "size", "page"),
    [
        (HUGE_FIRST, 64, NORMAL),
        (HUGE_FIRST, MIB, NORMAL),
        (HUGE_FIRST, MIB + 1, HUGE),
        (HUGE_FIRST_P2P, MIB, NORMAL),
        (HUGE_FIRST_P2P, MIB + 1, HUGE),
        (HUGE_ONLY, 64, HUGE),
        (HUGE_ONLY_P2P, 64, HUGE),
        (NORMAL_ONLY, 3 * MIB, NORMAL),
        (NORMAL_ONLY_P2P, 3 * MIB, NORMAL),
        (HUGE_1G_ONLY, 64, HUGE_1G),
        (HUGE_1G_ONLY_P2P, 64, HUGE_1G),
    ],
)
def test_policy_decides_about_the_pages(acl: Acl, policy: int, size: int, page: int) -> None:
    before = used(acl)
    address = acl.out("aclrtMallocAlign32", size, policy)

    assert page_of(acl, address) == page
    assert used(acl) - before == -(-size // page) * page
    acl.aclrtMemset(address, 64, 3, 64)
    assert acl.read(address, 64) == b"\x03" * 64
    acl.aclrtFree(address)
    assert used(acl) == before


@pytest.mark.parametrize("policy", [8, 255])
def test_unknown_policy_is_refused(acl: Acl, policy: int) -> None:
    out = ctypes.c_void_p()

    assert acl.code.aclrtMallocAlign32(ctypes.byref(out), 64, policy) == c.INVALID_PARAM
    assert str(policy) in acl.message()


@pytest.mark.parametrize(("size", "rounded"), [(1, 32), (32, 32), (33, 64), (4096, 4096), (4097, 4128)])
@pytest.mark.parametrize(("name", "extra"), [("aclrtMalloc", 32), ("aclrtMallocAlign32", 0)])
def test_size_is_rounded_up_to_32_and_malloc_adds_32(
    acl: Acl, name: str, extra: int, size: int, rounded: int
) -> None:
    base, whole = ctypes.c_void_p(), ctypes.c_size_t()
    address = acl.out(name, size, HUGE_FIRST)
    acl.aclrtMemGetAddressRange(address, ctypes.byref(base), ctypes.byref(whole))

    assert (base.value, whole.value) == (address, rounded + extra)
    assert address % 64 == 0
    acl.aclrtFree(address)


IMPORTER = """
key = bytes.fromhex(hear())
acl.context(0)
words = (ctypes.c_uint32 * 7)()
acl.aclrtPointerGetAttributes(acl.import_key(key) + 8, words)
say(*words[:3])
"""


def test_imported_memory_is_memory_of_a_device_to_its_importer(acl: Acl) -> None:
    address = acl.malloc(4096)

    with peer(IMPORTER) as other:
        other.say(acl.export(address, 4096).hex())
        assert other.hear() == f"0 1 {NORMAL}"
