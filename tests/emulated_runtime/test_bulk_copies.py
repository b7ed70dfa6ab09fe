"""Long copies go past the host's caches: every byte arrives, and nothing beside them is touched."""

from __future__ import annotations

import ctypes
import random

import pytest

from .acl_calls import Acl, AclError
from .acl_harness import Gate

KIB, MIB = 1024, 1024 * 1024
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


def test_a_flag_behind_a_row_of_long_copies_is_written_after_their_last_byte(acl: Acl) -> None:
    """Several threads share such a copy, and the task is done when the last of them is."""
    size, copies = 2 * MIB + 4 * KIB, 12
    src = [acl.malloc(size, fill=turn + 1) for turn in range(copies)]
    dst, word = acl.malloc(size, fill=0), acl.malloc(8, fill=0)
    last = acl.malloc(copies * 8, fill=0)  # what the end of each copy was when its flag had been seen
    first, second = acl.stream(), acl.stream()

    for turn in range(copies):
        acl.aclrtValueWait(word, 2 * turn, 0, first)
        acl.copy(dst, src[turn], size, first)
        acl.aclrtValueWrite(word, 2 * turn + 1, 0, first)
        acl.aclrtValueWait(word, 2 * turn + 1, 0, second)
        for part in range(8):
            acl.copy(last + turn * 8 + part, dst + size * (part + 1) // 8 - 1, 1, second)
        acl.aclrtValueWrite(word, 2 * turn + 2, 0, second)
    acl.aclrtSynchronizeStream(second)

    back = ctypes.create_string_buffer(copies * 8)
    acl.aclrtMemcpy(ctypes.addressof(back), copies * 8, last, copies * 8, 2)
    assert list(back.raw) == [turn + 1 for turn in range(copies) for _ in range(8)]
    for address in (*src, dst, word, last):
        acl.aclrtFree(address)


@pytest.mark.parametrize("distance", [1, KIB, 40 * KIB])
def test_a_copy_onto_itself_that_several_threads_could_share_is_right(acl: Acl, distance: int) -> None:
    length = 3 * MIB
    content = random.Random(distance).randbytes(length)
    memory = acl.malloc(length + 64 * KIB, fill=0)
    host, back = ctypes.create_string_buffer(content, length), ctypes.create_string_buffer(length)
    stream = acl.stream()
    acl.aclrtMemcpy(memory, length, ctypes.addressof(host), length, 1)

    acl.copy(memory + distance, memory, length, stream)
    acl.copy(memory, memory + distance, length, stream)
    acl.aclrtSynchronizeStream(stream)

    acl.aclrtMemcpy(ctypes.addressof(back), length, memory, length, 2)
    assert back.raw == content
    acl.aclrtFree(memory)


@pytest.mark.parametrize(
    ("width", "pitch", "height", "apart"),
    [
        (24 * KIB, 64 * KIB, 40, 32 * KIB),  # rows of one slab, between one another
        (24 * KIB, 64 * KIB, 40, 3 * 64 * KIB + 40 * KIB),
        (20 * KIB + 12, 20 * KIB + 12, 40, 40 * 21 * KIB),  # without gaps, side by side
        (100 * KIB, 128 * KIB, 12, 12 * 128 * KIB),
    ],
)
def test_rows_of_a_slab_are_copied_between_its_other_rows(
    acl: Acl, width: int, pitch: int, height: int, apart: int
) -> None:
    size = apart + pitch * height + width
    content = random.Random(width).randbytes(size)
    memory = acl.malloc(size, fill=0)
    host, back = ctypes.create_string_buffer(content, size), ctypes.create_string_buffer(size)
    stream = acl.stream()
    acl.aclrtMemcpy(memory, size, ctypes.addressof(host), size, 1)

    for _ in range(4):
        acl.aclrtMemcpy2dAsync(memory + apart, pitch, memory, pitch, width, height, 3, stream)
    acl.aclrtSynchronizeStream(stream)

    expected = bytearray(content)
    for row in range(height):
        at = row * pitch
        expected[at + apart : at + apart + width] = content[at : at + width]
    acl.aclrtMemcpy(ctypes.addressof(back), size, memory, size, 2)
    assert back.raw == bytes(expected)
    acl.aclrtFree(memory)


class Slab:
    """Device memory with random bytes, and what the copies that are queued will have made of them."""

    def __init__(self, acl: Acl, size: int, seed: int) -> None:
        self.acl, self.size = acl, size
        self.expected = bytearray(random.Random(seed).randbytes(size))
        self.memory = acl.malloc(size, fill=0)
        acl.write(self.memory, bytes(self.expected))

    def copy(self, dst: int, src: int, width: int, stream: int, rows: int = 1, pitch: int = 0) -> None:
        if rows == 1:
            self.acl.copy(self.memory + dst, self.memory + src, width, stream)
        else:
            self.acl.aclrtMemcpy2dAsync(
                self.memory + dst, pitch, self.memory + src, pitch, width, rows, 3, stream
            )
        for at in range(0, rows * pitch or 1, pitch or 1):
            self.expected[dst + at : dst + at + width] = self.expected[src + at : src + at + width]

    def is_as_expected(self) -> bool:
        found = self.acl.read(self.memory, self.size)
        self.acl.aclrtFree(self.memory)
        return found == bytes(self.expected)


# Bytes of a copy. The last ones are long enough for several threads to share a row of them.
SHORT = [24, 4 * KIB, 16 * KIB, 40 * KIB]


@pytest.mark.parametrize("length", SHORT)
@pytest.mark.parametrize("kind", ["each reads the one before", "each overwrites", "overwritten while read"])
def test_copies_that_stand_in_a_row_and_touch_the_same_bytes_keep_their_order(
    acl: Acl, length: int, kind: str
) -> None:
    places = 40
    slab, stream = Slab(acl, (places + 2) * length, 3), acl.stream()

    gate = Gate(acl, stream)  # so that all of them stand in a row
    for turn in range(places):
        if kind == "each reads the one before":
            slab.copy((turn + 1) * length, turn * length, length, stream)
        elif kind == "each overwrites":
            slab.copy(places * length + turn % 7, turn * length, length, stream)
        else:
            slab.copy(turn * length, (turn + 1) * length, length, stream)
    gate.open()
    acl.aclrtSynchronizeStream(stream)

    assert slab.is_as_expected()


@pytest.mark.parametrize("seed", range(6))
def test_copies_in_a_row_end_as_they_do_one_by_one(acl: Acl, seed: int) -> None:
    """Runs of bytes and rows of a slab, between one another, over one another, at random."""
    chooser, pitch, rows = random.Random(seed), 64 * KIB, 6
    slab, stream = Slab(acl, rows * pitch, seed), acl.stream()
    apart = chooser.choice([2 * KIB, 16 * KIB])  # between the places that are chosen

    gate = Gate(acl, stream)
    for _ in range(120):
        width = chooser.choice([8, 24, apart - 8, apart])
        dst, src = chooser.sample(range(0, pitch - apart + 1, apart), 2)
        if chooser.random() < 0.5:
            slab.copy(dst, src, width, stream, rows, pitch)
        else:
            slab.copy(
                dst + pitch * chooser.randrange(rows), src + pitch * chooser.randrange(rows), width, stream
            )
    gate.open()
    acl.aclrtSynchronizeStream(stream)

    assert slab.is_as_expected()


def test_a_copy_that_fails_in_a_row_fails_alone(acl: Acl) -> None:
    """What stood before it has moved, what stood behind it goes on: the stream is one that does."""
    length, stream = 16 * KIB, acl.stream()
    slab, gone = Slab(acl, 16 * length, 5), acl.malloc(length)

    gate = Gate(acl, stream)
    for turn in range(8):
        slab.copy((8 + turn) * length, turn * length, length, stream)
        if turn == 3:
            acl.copy(gone, slab.memory, length, stream)
    acl.aclrtFree(gone)
    gate.open()
    with pytest.raises(AclError, match="is not in live memory"):
        acl.aclrtSynchronizeStream(stream)

    acl.aclrtSynchronizeStream(stream)
    assert slab.is_as_expected()
