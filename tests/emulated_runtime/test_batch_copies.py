"""Copies in batches and in pieces, and words that are filled."""

from __future__ import annotations

import ctypes
import struct

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import Gate, peer

HOST, DEVICE, UNREGISTERED, NUMA = 0, 1, 2, 4
H2D, D2H, D2D = (DEVICE, HOST), (HOST, DEVICE), (DEVICE, DEVICE)
FORMS = ["aclrtMemcpyBatch", "aclrtMemcpyBatchV2", "aclrtMemcpyBatchAsync", "aclrtMemcpyBatchAsyncV2"]
NO_INDEX = 2**64 - 1


def batch(
    acl: Acl,
    pairs: list[tuple[int, int]],
    size: int,
    stream: int,
    form: str = "aclrtMemcpyBatchAsync",
    directions: tuple[tuple[int, int], ...] = (H2D,),
    starts: tuple[int, ...] = (0,),
    dest_max: int | None = None,
) -> tuple[int, int]:
    """The code, and the index of the copy that failed. ``directions`` hold from the copies ``starts`` on."""
    count = len(pairs)
    addresses, sizes = ctypes.c_void_p * count, ctypes.c_size_t * count
    attrs = b"".join(struct.pack("4I16x", 0, dst, 0, src) for dst, src in directions)
    failed = ctypes.c_size_t(NO_INDEX)
    code = getattr(acl.code, form)(
        addresses(*(p[0] for p in pairs)),
        sizes(*[size if dest_max is None else dest_max] * count),
        addresses(*(p[1] for p in pairs)),
        sizes(*[size] * count),
        count,
        attrs,
        (ctypes.c_size_t * len(starts))(*starts),
        len(directions),
        *([] if form.endswith("V2") else [ctypes.byref(failed)]),
        *([stream] if "Async" in form else []),
    )
    return code, failed.value


@pytest.mark.parametrize("form", FORMS)
def test_batch_moves_between_host_and_device(acl: Acl, form: str) -> None:
    stream, pinned, device = acl.stream(), acl.malloc_host(192), acl.malloc(192)
    ctypes.memset(pinned, 8, 64)
    acl.aclrtMemset(device + 64, 128, 9, 128)

    code, failed = batch(
        acl, [(device, pinned), (pinned + 64, device + 64), (pinned + 128, device + 128)], 64, stream, form,
        directions=(H2D, D2H), starts=(0, 1),
    )  # fmt: skip
    acl.synchronize(stream)

    assert (code, failed) == (0, NO_INDEX)
    assert acl.read(device, 64) == b"\x08" * 64
    assert ctypes.string_at(pinned + 64, 128) == b"\x09" * 128


@pytest.mark.parametrize("form", FORMS)
def test_batch_between_devices_is_refused_and_the_copy_named(acl: Acl, form: str) -> None:
    stream, pinned, device = acl.stream(), acl.malloc_host(64), acl.malloc(128)

    code, failed = batch(acl, [(device, pinned), (device + 64, device)], 64, stream, form)

    assert code == c.INVALID_PARAM
    assert failed == (NO_INDEX if form.endswith("V2") else 1)
    assert "copy 1" in acl.message()


@pytest.mark.parametrize(
    ("directions", "starts"),
    [
        ((D2D,), (0,)),
        ((D2H,), (0,)),  # the other way than the pointers
        (((DEVICE, NUMA),), (0,)),
        ((H2D,), (1,)),  # does not begin at 0
        ((H2D, H2D), (0, 0)),
        ((H2D, H2D), (0, 2)),  # there is no copy 2
    ],
)
def test_batch_attributes_are_checked(
    acl: Acl, directions: tuple[tuple[int, int], ...], starts: tuple[int, ...]
) -> None:
    stream, pinned, device = acl.stream(), acl.malloc_host(128), acl.malloc(128)
    pairs = [(device, pinned), (device + 64, pinned + 64)]

    assert batch(acl, pairs, 64, stream, directions=directions, starts=starts)[0] == c.INVALID_PARAM


def test_batch_sizes_are_checked(acl: Acl) -> None:
    pinned, device = acl.malloc_host(128), acl.malloc(128)

    assert batch(acl, [(device, pinned)], 64, acl.stream(), dest_max=32) == (c.INVALID_PARAM, 0)
    assert batch(acl, [], 64, acl.stream())[0] == c.INVALID_PARAM


PIECES = """
import ctypes
acl.context()
size = 65 << 20
pinned, device, stream = acl.malloc_host(size), acl.malloc(size, fill=None), acl.stream()
stats = (ctypes.c_uint64 * 32)()
def tasks():
    acl.library.emuStats(stats)
    return stats[5]
before = tasks()
acl.copy(device, pinned, size, stream, c.HOST_TO_DEVICE)
acl.synchronize(stream)
say(tasks() - before)
"""


@pytest.mark.parametrize(("product", "tasks"), [("A2", 2), ("950", 1)])
def test_long_copies_between_host_and_device_are_several_tasks(product: str, tasks: int) -> None:
    with peer(PIECES, TORCH_LLM_DATADIST_EMULATE_PROFILE=product) as other:
        assert other.hear() == str(tasks)


def test_words_are_filled_in_stream_order(acl: Acl) -> None:
    stream, device = acl.stream(), acl.malloc(64)
    gate = Gate(acl, stream)

    acl.aclrtMemsetD32Async(device + 4, 60, 0x01020304, 3, stream)

    assert acl.read(device, 64) == bytes(64)
    gate.open()
    acl.synchronize(stream)
    assert acl.read(device, 20) == bytes(4) + b"\x04\x03\x02\x01" * 3 + bytes(4)
    acl.aclrtMemsetD32(device, 64, 7, 16)
    assert acl.read(device, 64) == b"\x07\x00\x00\x00" * 16


def test_words_on_the_host_are_filled_before_the_call_returns(acl: Acl) -> None:
    stream, buffer = acl.stream(), ctypes.create_string_buffer(64)
    acl.emuStreamDelay(stream, 10_000)

    acl.aclrtMemsetD32Async(ctypes.addressof(buffer), 64, 5, 4, stream)

    assert buffer.raw == b"\x05\x00\x00\x00" * 4 + bytes(48)
    assert acl.is_idle(stream)


@pytest.mark.parametrize(
    ("offset", "memory", "words", "code"),
    [(2, 62, 4, 107008), (0, 64, 17, c.INVALID_PARAM), (0, 64, 0, c.INVALID_PARAM)],
)
def test_word_fills_are_checked(acl: Acl, offset: int, memory: int, words: int, code: int) -> None:
    device = acl.malloc(64)

    assert acl.code.aclrtMemsetD32(device + offset, memory, 1, words) == code
    assert acl.code.aclrtMemsetD32Async(device + offset, memory, 1, words, None) == code
