"""The limits of single copies: long ones are several tasks, 2-D ones are bounded."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import MIB, Gate, peer

MOST_WIDTH, MOST_HEIGHT = 5_000_000, 5_242_880


# Counts tasks by filling the queue of 2048. The bytes are never moved: an abort drops what is queued behind
# the wait, so the memory costs address space only.
D2D_PIECES = """
acl.context()
size = (4 << 30) + EXTRA
src, dst = acl.malloc(size, fill=None), acl.malloc(size, fill=None)
stream, word = acl.stream(), acl.malloc(64)
acl.aclrtValueWait(word, 1, c.EQ, stream)
context = acl.out("aclrtGetCurrentContext")
full, ended = threading.Event(), threading.Event()
def fill():
    acl.aclrtSetCurrentContext(context)
    for _ in range(2047 // TASKS):
        acl.copy(dst, src, size, stream)
    for _ in range(2047 % TASKS):
        acl.aclrtValueWrite(word + 8, 1, 0, stream)
    full.set()
    acl.code.aclrtValueWrite(word + 8, 1, 0, stream)
    ended.set()
threading.Thread(target=fill, daemon=True).start()
was_full = full.wait(10)
say(was_full, ended.wait(0.03))
acl.aclrtStreamAbort(stream)
say(ended.wait(20))
"""


@pytest.mark.parametrize(("extra", "tasks"), [(0, 1), (64, 2)])
def test_device_copy_is_a_task_per_4_gib(extra: int, tasks: int) -> None:
    program = D2D_PIECES.replace("EXTRA", str(extra)).replace("TASKS", str(tasks))
    with peer(program, TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY=str(16 << 30)) as other:
        assert other.hear() == "True False"
        assert other.hear() == "True"


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (MOST_WIDTH, 1, 0),
        (MOST_WIDTH + 1, 1, c.INVALID_PARAM),
        (1, MOST_HEIGHT, 0),
        (1, MOST_HEIGHT + 1, c.INVALID_PARAM),
        (0, 1, 0),
        (1, 0, 0),
    ],
)
def test_2d_copies_have_a_widest_and_a_highest(acl: Acl, width: int, height: int, code: int) -> None:
    stream = acl.stream()
    size = MOST_HEIGHT + 8
    src, dst = acl.malloc(size, fill=None), acl.malloc(size, fill=None)
    gate = Gate(acl, stream)
    pitch = max(width, 1)

    assert acl.code.aclrtMemcpy2dAsync(dst, pitch, src, pitch, width, height, 3, stream) == code
    if code != 0:
        assert str(MOST_WIDTH) in acl.message()
    acl.aclrtStreamAbort(stream)
    gate.open()
    acl.aclrtFree(src)
    acl.aclrtFree(dst)


@pytest.mark.parametrize(
    ("dst_pitch", "src_pitch", "kind", "code"),
    [(8, 16, 3, c.INVALID_PARAM), (16, 8, 3, c.INVALID_PARAM), (16, 16, 0, 100000), (16, 16, 5, 100000)],
)
def test_2d_copies_check_pitches_and_kind(
    acl: Acl, dst_pitch: int, src_pitch: int, kind: int, code: int
) -> None:
    a = acl.malloc(128)

    assert acl.code.aclrtMemcpy2dAsync(a, dst_pitch, a + 64, src_pitch, 9, 2, kind, None) == code
    assert acl.code.aclrtMemcpy2d(a, dst_pitch, a + 64, src_pitch, 9, 2, kind) == code


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_2d_copies_reach_pinned_host_memory(acl: Acl, direction: str) -> None:
    stream, device, pinned = acl.stream(), acl.malloc(128), acl.malloc_host(128)
    ctypes.memset(pinned, 0, 128)
    if direction == "h2d":
        ctypes.memset(pinned, 7, 64)
        acl.aclrtMemcpy2dAsync(device, 16, pinned, 8, 4, 3, c.HOST_TO_DEVICE, stream)
        acl.synchronize(stream)
        got = acl.read(device, 64)
    else:
        acl.aclrtMemset(device, 64, 7, 64)
        acl.aclrtMemcpy2dAsync(pinned, 16, device, 8, 4, 3, c.DEVICE_TO_HOST, stream)
        acl.synchronize(stream)
        got = ctypes.string_at(pinned, 64)

    assert got == (b"\x07" * 4 + bytes(12)) * 3 + bytes(16)


def test_conditional_copy_is_in_stream_order_like_the_plain_one(acl: Acl) -> None:
    stream, device, pinned = acl.stream(), acl.malloc(64, fill=5), acl.malloc_host(64)
    ctypes.memset(pinned, 0, 64)
    gate = Gate(acl, stream)

    acl.aclrtMemcpyAsyncWithCondition(pinned, 64, device, 64, c.DEVICE_TO_HOST, stream)

    assert ctypes.string_at(pinned, 64) == bytes(64)
    gate.open()
    acl.synchronize(stream)
    assert ctypes.string_at(pinned, 64) == b"\x05" * 64
    assert acl.code.aclrtMemcpyAsyncWithCondition(device, 8, pinned, 9, 1, stream) == c.INVALID_PARAM


@pytest.mark.parametrize("kind", [c.HOST_TO_DEVICE, c.DEFAULT, 5])
def test_kinds_that_move_to_the_device(acl: Acl, kind: int) -> None:
    stream, device, pinned = acl.stream(), acl.malloc(64), acl.malloc_host(64)
    ctypes.memset(pinned, 4, 64)

    acl.copy(device, pinned, 64, stream, kind)
    acl.synchronize(stream)

    assert acl.read(device, 64) == b"\x04" * 64


def test_synchronous_kinds_are_0_to_4(acl: Acl) -> None:
    a = acl.malloc(MIB)

    assert acl.code.aclrtMemcpy(a, 64, a + 64, 64, c.DEVICE_TO_DEVICE) == 0
    for kind in (-1, 5, 6, 7):
        assert acl.code.aclrtMemcpy(a, 64, a + 64, 64, kind) == 100000
