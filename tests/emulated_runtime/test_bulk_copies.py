"""Long copies go past the host's caches: every byte arrives, and nothing beside them is touched."""

from __future__ import annotations

import ctypes
import random

import pytest

from .acl_calls import Acl

KIB = 1024
LENGTHS = [16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 20 * KIB, 33 * KIB + 65, 256 * KIB + 127]
EDGE = 256


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("dst_offset", "src_offset"), [(0, 0), (1, 0), (0, 13), (63, 7)])
def test_a_long_copy_moves_its_bytes_and_no_others(
    acl: Acl, length: int, dst_offset: int, src_offset: int
) -> None:
    content = random.Random(length).randbytes(length)
    size = length + 3 * EDGE
    src, dst = acl.malloc(size, fill=0), acl.malloc(size, fill=0xA5)
    stream = acl.stream()
    host = ctypes.create_string_buffer(content, length)
    acl.aclrtMemcpy(src + EDGE + src_offset, length, ctypes.addressof(host), length, 1)

    acl.copy(dst + EDGE + dst_offset, src + EDGE + src_offset, length, stream)
    acl.aclrtSynchronizeStream(stream)

    back = ctypes.create_string_buffer(size)
    acl.aclrtMemcpy(ctypes.addressof(back), size, dst, size, 2)
    begin = EDGE + dst_offset
    assert back.raw[begin : begin + length] == content
    assert set(back.raw[:begin] + back.raw[begin + length :]) == {0xA5}
    acl.aclrtFree(src)
    acl.aclrtFree(dst)


@pytest.mark.parametrize("distance", [1, 64, 40 * KIB])
def test_a_long_copy_onto_itself_is_right_in_either_direction(acl: Acl, distance: int) -> None:
    length = 64 * KIB
    content = random.Random(distance).randbytes(length)
    memory = acl.malloc(2 * length, fill=0)
    host = ctypes.create_string_buffer(content, length)
    stream = acl.stream()
    acl.aclrtMemcpy(memory, length, ctypes.addressof(host), length, 1)

    acl.copy(memory + distance, memory, length, stream)
    acl.copy(memory, memory + distance, length, stream)
    acl.aclrtSynchronizeStream(stream)

    back = ctypes.create_string_buffer(length)
    acl.aclrtMemcpy(ctypes.addressof(back), length, memory, length, 2)
    assert back.raw == content
    acl.aclrtFree(memory)
