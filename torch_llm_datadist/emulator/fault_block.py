"""The block that holds a process's faults, for other processes: csrc/emulator/fault_block.h in Python."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NAME = "torch_llm_datadist_faults_"  # and the pid: a fork inherits its parent's file, too
_MAGIC = 0x53544C554146504E
_VERSION = 1
_HEADER = struct.Struct("<QIIiIII")
_ARMED_AT = 20
_BIRTHS_AT = 24
_SLOTS_AT = _HEADER.size
_COUNTS = struct.Struct("<QQQ")  # generation (odd: armed), hits, fired
_RULE = struct.Struct("<Q64sQqqQQQQqQ")
_SLOT_SIZE = _COUNTS.size + _RULE.size
_WORD = struct.Struct("<Q")


class Kind(enum.IntEnum):
    """What may be asked for."""

    FAIL_CALL = 1
    LATE_CALL = 2
    FAIL_TASK = 3
    TASK_DELAY = 4
    BANDWIDTH = 5
    SPLIT = 6
    HOLD_COPY = 7
    FLIP_BYTE = 8
    OVERTAKE = 9
    FREEZE = 10
    LOSE = 11
    LIMIT = 12
    DEAD_EXPORTER = 13
    COUNT_AS_PID = 14
    EXPORT_PAGE = 15
    SPOIL_CAPTURE = 16
    BAD_TEXT = 17
    HOLD_HOST = 18
    INTERLEAVE = 19


# They are over after the last match that counts.
_COUNTING = {
    Kind.FAIL_CALL,
    Kind.LATE_CALL,
    Kind.FAIL_TASK,
    Kind.FLIP_BYTE,
    Kind.OVERTAKE,
    Kind.SPOIL_CAPTURE,
}


@dataclass(frozen=True)
class Rule:
    """When, and what. Zero, or -1 where zero means something, stands for "any"."""

    kind: Kind
    function: str = ""
    stream: int = 0
    device: int = -1
    direction: int = -1
    address: int = 0
    size: int = 0  # in bytes; exactly
    nth: int = 1
    times: int = 1
    code: int = 0
    amount: int = 0

    def filters(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.function,
            self.stream,
            self.device,
            self.direction,
            self.address,
            self.size,
        )

    def is_used_up(self, hits: int) -> bool:
        return self.kind in _COUNTING and self.times != 0 and hits + 1 >= self.nth + self.times

    def pack(self) -> bytes:
        return _RULE.pack(
            self.kind,
            self.function.encode(),
            self.stream,
            self.device,
            self.direction,
            self.address,
            self.size,
            self.nth,
            self.times,
            self.code,
            self.amount,
        )

    @staticmethod
    def unpack(packed: bytes) -> Rule:
        kind, function, *numbers = _RULE.unpack(packed)
        return Rule(Kind(kind), function.rstrip(b"\0").decode(), *numbers)


class Block:
    """One process's faults. Reads and writes are system calls, so that their order holds on every machine."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._path = _find(pid)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        magic, version, self._slot_count, owner, _, _, name_bytes = _HEADER.unpack(
            os.pread(self._fd, _HEADER.size, 0)
        )
        if magic != _MAGIC or owner != pid:
            raise LookupError(f"process {pid} has a file {NAME}{pid} that is no block of faults")
        if version != _VERSION:
            raise RuntimeError(
                f"process {pid} runs an emulator with faults of layout {version}; this one knows {_VERSION}"
            )
        names = os.pread(self._fd, name_bytes, _SLOTS_AT + self._slot_count * _SLOT_SIZE).decode()
        # The entry points of that process, and whether their calls can be told apart by address and size.
        self.functions = {line.split()[0]: line.endswith(" *") for line in names.splitlines()}

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # The lock belongs to the open file: opened anew, it keeps out this process's other threads, too.
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _slot_at(self, index: int) -> int:
        return _SLOTS_AT + index * _SLOT_SIZE

    def counts(self, index: int) -> tuple[int, int, int]:
        """A slot's generation, hits and how often its rule took effect."""
        generation, hits, fired = _COUNTS.unpack(os.pread(self._fd, _COUNTS.size, self._slot_at(index)))
        return generation, hits, fired

    def _rule(self, index: int) -> Rule | None:
        if self.counts(index)[0] % 2 == 0:
            return None
        return Rule.unpack(os.pread(self._fd, _RULE.size, self._slot_at(index) + _COUNTS.size))

    def _clear(self, index: int) -> int:
        generation = self.counts(index)[0]
        if generation % 2 == 1:
            generation += 1
            os.pwrite(self._fd, _WORD.pack(generation), self._slot_at(index))
        return generation

    def _set_armed(self, bits: int) -> None:
        os.pwrite(self._fd, struct.pack("<I", bits), _ARMED_AT)

    def _armed(self) -> int:
        return int.from_bytes(os.pread(self._fd, 4, _ARMED_AT), "little")

    def births(self) -> int:
        """How many device threads do not carry their name yet."""
        return int.from_bytes(os.pread(self._fd, 4, _BIRTHS_AT), "little")

    def arm(self, rule: Rule) -> tuple[int, int]:
        """Adds the rule, or replaces the one that differs in numbers only; its slot and generation."""
        with self._writing():
            index = self._place_for(rule)
            at = self._slot_at(index)
            generation = self._clear(index) + 1
            os.pwrite(self._fd, _COUNTS.pack(generation - 1, 0, 0) + rule.pack(), at)
            os.pwrite(self._fd, _WORD.pack(generation), at)
            self._set_armed(self._armed() | 1 << rule.kind)
        return index, generation

    def _place_for(self, rule: Rule) -> int:
        free, used_up = None, None
        for index in range(self._slot_count):
            there = self._rule(index)
            if there is None:
                free = index if free is None else free
            elif there.filters() == rule.filters():
                return index
            elif there.is_used_up(self.counts(index)[1]):
                used_up = index
        place = used_up if free is None else free
        if place is None:
            raise RuntimeError(
                f"{self._slot_count} faults are armed in process {self.pid}, which is the most"
            )
        return place

    def disarm(self, matches: Callable[[Rule], bool]) -> None:
        with self._writing():
            armed = self._armed() & 1 << Kind.BAD_TEXT
            for index in range(self._slot_count):
                rule = self._rule(index)
                if rule is None:
                    continue
                if matches(rule):
                    self._clear(index)
                elif not rule.is_used_up(self.counts(index)[1]):
                    armed |= 1 << rule.kind
            self._set_armed(armed)

    def disarm_slot(self, index: int, generation: int) -> None:
        """Ends one rule, unless another has its place already."""
        with self._writing():
            if self.counts(index)[0] == generation:
                self._clear(index)
        self.disarm(lambda rule: False)  # what is left says what is armed


def _find(pid: int) -> str:
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if f":{NAME}{pid} " in os.readlink(f"{directory}/{number}") + " ":
                return f"{directory}/{number}"
    raise LookupError(f"process {pid} runs no emulated NPU, or made no call to its runtime yet")
