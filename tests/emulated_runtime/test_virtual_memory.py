"""Reserved addresses, physical memory, and sharing it between processes."""

from __future__ import annotations

import ctypes
import textwrap

import pytest

from torch_llm_datadist.emulator import faults

from . import acl_calls as c
from .acl_calls import Acl, AclError
from .acl_harness import MIB, code_of, in_thread, joined, peer

PAGE = 2 * MIB

# The same three helpers for the programs of peers.
HELPERS = """
def prop(device=0):
    return (ctypes.c_uint32 * 8)(0, 0, 4, device, 1, 0, 0, 0)

def physical(acl, size=2 << 20, device=0):
    return acl.out("aclrtMallocPhysical", size, prop(device), 0)

def reserve(acl, size):
    return acl.out("aclrtReserveMemAddress", size, 0, None, 0)
"""


def prop(device: int = 0) -> object:
    return (ctypes.c_uint32 * 8)(0, 0, 4, device, 1, 0, 0, 0)


def physical(acl: Acl, size: int = PAGE, device: int = 0) -> int:
    return acl.out("aclrtMallocPhysical", size, prop(device), 0)


def reserve(acl: Acl, size: int) -> int:
    return acl.out("aclrtReserveMemAddress", size, 0, None, 0)


def test_mapped_memory_is_device_memory_until_it_is_unmapped(acl: Acl) -> None:
    base, handle, stream = reserve(acl, 4 * PAGE), physical(acl), acl.stream()
    near = acl.malloc(64, fill=5)

    acl.copy(base + PAGE, near, 64, stream)
    assert acl.sync_code(stream) == c.COPY_ENGINE  # nothing is mapped there
    acl.aclrtMapMem(base + PAGE, PAGE, 0, handle, 0)
    acl.copy(base + PAGE, near, 64, stream)
    acl.synchronize(stream)
    assert acl.read(base + PAGE, 64) == b"\x05" * 64

    acl.aclrtUnmapMem(base + PAGE)
    assert acl.library.emuHostAlias(ctypes.c_void_p(base + PAGE)) is None
    acl.aclrtMapMem(base, PAGE, 0, handle, 0)
    assert acl.read(base, 64) == b"\x05" * 64  # the bytes stay with the physical memory


def test_addresses_can_be_reserved_without_a_context(acl: Acl) -> None:
    codes: list[int] = []

    def body() -> None:  # as torch_npu does to find out whether it may use expandable segments
        out = ctypes.c_void_p()
        codes.append(acl.code.aclrtReserveMemAddress(ctypes.byref(out), 512, 0, None, 1))
        codes.append(acl.code.aclrtReleaseMemAddress(out.value))

    joined(in_thread(body))

    assert codes == [0, 0]


def test_neighbouring_mappings_form_one_range(acl: Acl) -> None:
    base = reserve(acl, 3 * PAGE)
    for i in range(2):
        acl.aclrtMapMem(base + i * PAGE, PAGE, 0, physical(acl), 0)
    near, stream = acl.malloc(PAGE, fill=6), acl.stream()

    acl.copy(base + PAGE // 2, near, PAGE, stream)
    acl.synchronize(stream)
    assert set(acl.read(base + PAGE // 2, PAGE)) == {6}

    acl.copy(base + PAGE + PAGE // 2, near, PAGE, stream)
    assert acl.sync_code(stream) == c.COPY_ENGINE


def test_physical_memory_counts_until_handle_and_mapping_are_gone(acl: Acl) -> None:
    def used() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        acl.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    before = used()
    base, handle = reserve(acl, PAGE), physical(acl)
    acl.aclrtMapMem(base, PAGE, 0, handle, 0)
    acl.aclrtFreePhysical(handle)
    mapped = used()
    acl.aclrtUnmapMem(base)

    assert mapped == before + PAGE
    assert used() == before
    assert acl.code.aclrtFreePhysical(handle) == c.BAD_HANDLE


def test_mapping_rules(acl: Acl) -> None:
    base, handle = reserve(acl, 2 * PAGE), physical(acl)
    elsewhere = physical(acl, device=1)

    def map_code(address: int, size: int, offset: int = 0, which: int = handle) -> int:
        return acl.code.aclrtMapMem(address, size, offset, which, 0)

    assert map_code(base, PAGE // 2) == c.INVALID_PARAM  # not the whole
    assert map_code(base, PAGE, offset=PAGE) == c.INVALID_PARAM
    assert map_code(base + 2 * PAGE, PAGE) == c.INVALID_PARAM  # outside
    assert map_code(base + 4096, PAGE) == c.INVALID_PARAM
    assert map_code(base, PAGE) == 0
    assert map_code(base, PAGE) == c.INVALID_PARAM  # taken
    assert map_code(base + PAGE, PAGE, which=elsewhere) == c.INVALID_PARAM  # mixes devices
    assert acl.code.aclrtReleaseMemAddress(base) == c.INVALID_PARAM  # still mapped
    assert acl.code.aclrtFree(base) == c.INVALID_PARAM
    assert acl.code.aclrtUnmapMem(base + PAGE) == c.INVALID_PARAM
    acl.aclrtUnmapMem(base)
    acl.aclrtReleaseMemAddress(base)
    assert acl.code.aclrtReleaseMemAddress(base) == c.INVALID_PARAM


def test_physical_size_is_a_multiple_of_the_granularity(acl: Acl) -> None:
    granularity = acl.last_out("aclrtMemGetAllocationGranularity", prop(), 0, kind=ctypes.c_size_t)

    assert granularity == PAGE
    assert code_of(lambda: physical(acl, PAGE + 4096)) == c.INVALID_PARAM


def test_handle_is_got_back_from_an_address(acl: Acl) -> None:
    base, handle = reserve(acl, PAGE), physical(acl)
    acl.aclrtMapMem(base, PAGE, 0, handle, 0)

    again = acl.last_out("aclrtMemRetainAllocationHandle", base + 100, kind=ctypes.c_void_p)
    acl.aclrtFreePhysical(handle)
    other = reserve(acl, PAGE)
    acl.aclrtMapMem(other, PAGE, 0, again, 0)
    acl.aclrtMemset(base, 8, 1, 8)

    assert acl.read(other, 8) == b"\x01" * 8


def shared(acl: Acl, handle: int, flags: int = c.NO_PID_CHECK) -> int:
    return acl.last_out("aclrtMemExportToShareableHandle", handle, 0, flags, kind=ctypes.c_uint64)


def test_physical_memory_is_exported_once_and_not_imported_at_home(acl: Acl) -> None:
    handle, out = physical(acl), ctypes.c_uint64()
    number = shared(acl, handle)

    assert code_of(lambda: shared(acl, handle)) == c.INVALID_PARAM
    assert acl.code.aclrtMemImportFromShareableHandle(number, 0, ctypes.byref(out)) == c.INVALID_PARAM
    assert (
        acl.code.aclrtMemExportToShareableHandleV2(handle, 1, 2, ctypes.byref(out)) == c.UNSUPPORTED
    )  # fabric


IMPORTER = (
    HELPERS
    + """
acl.aclrtSetDevice(1)
number = int(hear())
base, stream = reserve(acl, 2 << 20), acl.stream()
def open_it():
    handle = ctypes.c_void_p()
    acl.aclrtMemImportFromShareableHandle(number, 1, ctypes.byref(handle))
    acl.aclrtMapMem(base, 2 << 20, 0, handle.value, 0)
def write(value):
    acl.copy(base, acl.malloc(64, fill=value), 64, stream)
    return acl.code.aclrtSynchronizeStream(stream)
"""
)


def test_imported_physical_memory_is_the_exporters(acl: Acl) -> None:
    base, handle = reserve(acl, PAGE), physical(acl)
    acl.aclrtMapMem(base, PAGE, 0, handle, 0)
    acl.aclrtMemset(base, PAGE, 0, PAGE)

    with peer(IMPORTER + "open_it(); say(write(7)); hear(); say(write(8))") as other:
        other.say(shared(acl, handle))
        assert other.hear() == "0"
        assert acl.read(base, 64) == b"\x07" * 64
        acl.aclrtUnmapMem(base)
        acl.aclrtFreePhysical(handle)
        other.say("again")
        assert other.hear() == "0"  # the importer holds the memory as well


def test_copies_to_and_from_imported_physical_memory_go_to_a_peer(acl: Acl) -> None:
    exporter = """
    acl.aclrtSetDevice(0)
    out = ctypes.c_uint64()
    acl.aclrtMemExportToShareableHandle(physical(acl), 0, 1, ctypes.byref(out))
    say(out.value)
    hear()
    """
    with peer(HELPERS + textwrap.dedent(exporter)) as other:
        handle = ctypes.c_void_p()
        acl.aclrtMemImportFromShareableHandle(int(other.hear()), 0, ctypes.byref(handle))
        base, stream, near = reserve(acl, PAGE), acl.stream(), acl.malloc(128)
        acl.aclrtMapMem(base, PAGE, 0, handle.value, 0)
        counter = faults.fail_task(2**40, c.COPY_ENGINE, direction="peer")

        acl.copy(base, near, 64, stream)
        acl.copy(near, base, 64, stream)
        acl.copy(near, near + 64, 64, stream)

        acl.synchronize(stream)
        assert counter.hits == 2
        counter.disarm()


def test_white_list_of_physical_memory_is_enforced(acl: Acl) -> None:
    handle = physical(acl)
    number = shared(acl, handle, flags=0)

    with peer(IMPORTER + "say(os.getpid(), code_of(open_it)); hear(); say(code_of(open_it))") as other:
        other.say(number)
        pid, before = map(int, other.hear().split())
        acl.aclrtMemSetPidToShareableHandle(number, (ctypes.c_int32 * 1)(pid), 1)
        other.say("again")
        assert (before, int(other.hear())) == (c.NO_PERMISSION, 0)


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_dead_exporter_of_physical_memory(acl: Acl, when: str) -> None:
    exporter = """
    acl.aclrtSetDevice(0)
    out = ctypes.c_uint64()
    acl.aclrtMemExportToShareableHandle(physical(acl), 0, 1, ctypes.byref(out))
    say(out.value)
    hear()
    """
    with peer(HELPERS + textwrap.dedent(exporter)) as other:
        number = int(other.hear())
        if when == "before the import":
            other.kill()
            out = ctypes.c_void_p()
            assert acl.code.aclrtMemImportFromShareableHandle(number, 0, ctypes.byref(out)) == c.IPC_ERROR
            return
        handle = ctypes.c_void_p()
        acl.aclrtMemImportFromShareableHandle(number, 0, ctypes.byref(handle))
        base, stream, near = reserve(acl, PAGE), acl.stream(), acl.malloc(64)
        acl.aclrtMapMem(base, PAGE, 0, handle.value, 0)
        acl.copy(near, base, 64, stream)
        acl.synchronize(stream)
        other.kill()

        acl.copy(base, near, 64, stream)
        assert acl.sync_code(stream) == c.LINK_ERROR


def test_memory_limit_holds_for_physical_memory() -> None:
    program = HELPERS + "acl.context()\nphysical(acl)\nsay(code_of(lambda: physical(acl)))"

    with peer(program, TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY=str(3 * MIB)) as other:
        assert other.hear() == str(c.OUT_OF_MEMORY)


def test_key_export_of_mapped_memory_is_refused(acl: Acl) -> None:
    base = reserve(acl, PAGE)
    acl.aclrtMapMem(base, PAGE, 0, physical(acl), 0)

    with pytest.raises(AclError) as error:
        acl.export(base, PAGE)
    assert error.value.code == c.UNSUPPORTED


@pytest.mark.parametrize("first", ["own", "imported"])
def test_one_range_mixes_no_own_and_imported_memory(acl: Acl, first: str) -> None:
    exporter = """
    acl.aclrtSetDevice(0)
    out = ctypes.c_uint64()
    acl.aclrtMemExportToShareableHandle(physical(acl), 0, 1, ctypes.byref(out))
    say(out.value)
    hear()
    """
    with peer(HELPERS + textwrap.dedent(exporter)) as other:
        imported = ctypes.c_void_p()
        acl.aclrtMemImportFromShareableHandle(int(other.hear()), 0, ctypes.byref(imported))
        base, own = reserve(acl, 2 * PAGE), physical(acl)
        handles = [own, imported.value] if first == "own" else [imported.value, own]
        acl.aclrtMapMem(base, PAGE, 0, handles[0], 0)

        assert acl.code.aclrtMapMem(base + PAGE, PAGE, 0, handles[1], 0) == c.INVALID_PARAM
        assert "own and imported" in acl.message()
        acl.aclrtUnmapMem(base)
        acl.aclrtMapMem(base + PAGE, PAGE, 0, handles[1], 0)  # alone it may be there
        acl.aclrtUnmapMem(base + PAGE)


HOLDER = (
    HELPERS
    + """
acl.aclrtSetDevice(0)
handle = ctypes.c_void_p()
acl.aclrtMemImportFromShareableHandle(int(hear()), 0, ctypes.byref(handle))
base = reserve(acl, 2 << 20)
acl.aclrtMapMem(base, 2 << 20, 0, handle.value, 0)
say("holds")
hear()
acl.aclrtFreePhysical(handle.value)
say("mapped")
hear()
acl.aclrtUnmapMem(base)
say("let go")
hear()
"""
)


@pytest.mark.parametrize("end", ["lets go", "dies"])
def test_physical_memory_counts_until_the_importer_lets_go_of_it(acl: Acl, end: str) -> None:
    def used() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        acl.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    before = used()
    handle = physical(acl)
    with peer(HOLDER) as other:
        other.say(shared(acl, handle))
        assert other.hear() == "holds"
        acl.aclrtFreePhysical(handle)
        assert used() == before + PAGE
        if end == "dies":
            other.kill()
        else:
            other.say("free the handle")
            assert other.hear() == "mapped"
            assert used() == before + PAGE  # a mapping holds it as well
            other.say("unmap")
            assert other.hear() == "let go"
        assert used() == before


def test_memory_that_an_importer_holds_is_not_to_be_had_again() -> None:
    program = (
        HELPERS
        + """
acl.context()
handle, out = physical(acl), ctypes.c_uint64()
acl.aclrtMemExportToShareableHandle(handle, 0, 1, ctypes.byref(out))
say(out.value)
hear()
acl.aclrtFreePhysical(handle)
say(code_of(lambda: physical(acl)))
hear()
say(code_of(lambda: physical(acl)))
"""
    )
    with (
        peer(program, TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY=str(3 * MIB)) as other,
        peer(HOLDER) as holder,
    ):
        holder.say(other.hear())
        assert holder.hear() == "holds"
        other.say("free it")
        assert other.hear() == str(c.OUT_OF_MEMORY)
        holder.kill()
        other.say("try again")
        assert other.hear() == "0"


@pytest.mark.parametrize(
    ("attribute", "granularity"), [(4, PAGE), (5, PAGE), (10, 1 << 30), (17, 1 << 30)], ids=str
)
@pytest.mark.parametrize("option", [0, 1])
def test_granularity_is_that_of_the_pages(acl: Acl, attribute: int, granularity: int, option: int) -> None:
    asked = (ctypes.c_uint32 * 8)(0, 0, attribute, 0, 1, 0, 0, 0)

    name = "aclrtMemGetAllocationGranularity"
    assert acl.last_out(name, asked, option, kind=ctypes.c_size_t) == granularity
    assert (
        acl.code.aclrtMemGetAllocationGranularity(asked, 2, ctypes.byref(ctypes.c_size_t()))
        == c.INVALID_PARAM
    )


def test_share_flags_and_types_are_checked(acl: Acl) -> None:
    handle, out = physical(acl), ctypes.c_uint64()

    assert acl.code.aclrtMemExportToShareableHandle(handle, 0, 2, ctypes.byref(out)) == c.INVALID_PARAM
    assert acl.code.aclrtMemExportToShareableHandle(handle, 1, 0, ctypes.byref(out)) == c.INVALID_PARAM
    assert acl.code.aclrtMemExportToShareableHandleV2(handle, 0, 3, ctypes.byref(out)) == c.INVALID_PARAM
    acl.aclrtMemExportToShareableHandle(handle, 0, 1, ctypes.byref(out))  # none of that was an export
