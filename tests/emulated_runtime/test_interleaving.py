"""Random interleaving: another order between streams with each seed, never another one inside a stream."""

from __future__ import annotations

import pytest

from .acl_harness import peer

PREPARE = """
    acl.library.emuDecisions.restype = ctypes.c_uint64
    acl.library.emuDecisions.argtypes = [ctypes.c_void_p]
    context = acl.context(0)
    one, two = acl.stream(), acl.stream()
    memory = acl.malloc(4 << 20)
"""


def answers(program: str, seed: str, count: int = 1) -> list[str]:
    with peer(PREPARE + program, TORCH_LLM_DATADIST_EMULATE_SEED=seed) as asked:
        return [asked.hear() for _ in range(count)]


def test_the_same_seed_takes_the_same_decisions_and_another_one_others() -> None:
    program = """
    for round in range(100):
        acl.aclrtValueWrite(memory, round, 0, one)
        acl.aclrtValueWrite(memory + 64, round, 0, two)
    acl.copy(memory + 1024, memory + (2 << 20), 1 << 20, one)
    acl.synchronize(one)
    acl.synchronize(two)
    say(acl.library.emuDecisions(one), acl.library.emuDecisions(two))
    """

    first, again, other = (answers(program, seed)[0].split() for seed in ("7", "7", "8"))

    assert first == again
    assert first[0] != first[1]
    assert not set(first) & set(other)


def test_without_a_seed_nothing_is_decided() -> None:
    assert answers("    say(acl.library.emuDecisions(one))", "") == ["0"]


def test_a_wait_that_is_missing_is_met_both_ways() -> None:
    # Each round starts both streams at once; which of them is first there is up to their holds.
    program = """
    seen = set()
    for round in range(400):
        acl.write_word(memory + 128, 0)
        acl.aclrtValueWait(memory + 128, 1, c.EQ, one)
        acl.aclrtValueWait(memory + 128, 1, c.EQ, two)
        acl.aclrtValueWrite(memory, round, 0, one)
        acl.copy(memory + 64, memory, 8, two)  # should wait for one
        acl.write_word(memory + 128, 1)
        acl.synchronize(one)
        acl.synchronize(two)
        seen.add(acl.read_word(memory + 64) == round)
        if len(seen) == 2: break
    say(sorted(seen))
    """

    assert answers(program, "1") == ["[False, True]"]


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
@pytest.mark.parametrize("rows", [1, 64])
def test_a_large_copy_is_seen_half_done_and_ends_whole(rows: int) -> None:
    program = f"""
    size, rows = 2 << 20, {rows}
    halves = 0
    for round in range(1, 200):
        acl.aclrtMemset(memory + size, size, round, size)
        if rows == 1:
            acl.copy(memory, memory + size, size, one)
        else:
            acl.aclrtMemcpy2dAsync(memory, size // rows, memory + size, size // rows, size // rows, rows,
                                   c.DEVICE_TO_DEVICE, one)
        while not acl.is_idle(one):
            begin, end = acl.read(memory, 1)[0], acl.read(memory + size - 1, 1)[0]
            halves += begin == round and end == round - 1
        assert acl.read(memory, size) == bytes([round]) * size
        if halves: break
    say(halves > 0)
    """

    assert answers(program, "3") == ["True"]


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_a_copy_stands_still_between_its_pieces() -> None:
    # 32 KiB move in microseconds: what is seen half done twice was held between its two pieces.
    program = """
    import time
    size, held = 32 << 10, False
    for round in range(1, 256):
        acl.aclrtMemset(memory + size, size, round, size)
        acl.copy(memory, memory + size, size, one)
        looks = 0
        while not acl.is_idle(one) and not held:
            begin, end = acl.read(memory, 1)[0], acl.read(memory + size - 1, 1)[0]
            looks = looks + 1 if begin == round and end == round - 1 else 0
            held = looks >= 3
        acl.synchronize(one)
        if held: break
    say(held)
    """

    assert answers(program, "3") == ["True"]


def test_order_inside_a_stream_stays() -> None:
    program = """
    for value in range(1500):
        acl.aclrtValueWrite(memory + 8 * value, value, 0, one)
        acl.copy(memory + (1 << 20) + 8 * value, memory + 8 * value, 8, one)
    acl.synchronize(one)
    words = acl.read(memory + (1 << 20), 8 * 1500)
    say(all(int.from_bytes(words[8 * i: 8 * i + 8], "little") == i for i in range(1500)))
    """

    assert answers(program, "5") == ["True"]


def test_a_stream_stops_between_its_tasks() -> None:
    # 1500 tasks take about a millisecond by themselves; this seed's holds add up to a hundred.
    program = """
    import time
    start = time.monotonic()
    for value in range(1500):
        acl.aclrtValueWrite(memory, value, 0, one)
    acl.synchronize(one)
    say(time.monotonic() - start)
    """

    assert float(answers(program, "5")[0]) > 0.05


def test_overlapping_copies_are_not_torn() -> None:
    program = """
    pattern = bytes(range(256)) * 4096
    acl.write(memory, pattern)
    for _ in range(3):
        acl.copy(memory + 64, memory, 1 << 20, one)
        acl.copy(memory, memory + 64, 1 << 20, one)
    acl.synchronize(one)
    say(acl.read(memory, 1 << 20) == pattern)
    """

    assert answers(program, "9") == ["True"]
