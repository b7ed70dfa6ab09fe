"""Walks through the traces of all processes at once and finds what nothing orders."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch_llm_datadist.emulator.race_clock import HOST, Clock
from torch_llm_datadist.emulator.race_shadow import Access, Shadow
from torch_llm_datadist.emulator.race_trace import (
    Event,
    Line,
    Memory,
    line_of,
    memory_of,
    origin_text,
    sync_of,
)

REMEMBERED_WRITES = 64  # per word


@dataclass
class Race:
    memory: Memory
    begin: int
    end: int
    earlier: Event
    earlier_wrote: bool
    later: Event
    later_writes: bool

    def __str__(self) -> str:
        kind = "memory" if self.memory[1] else "host memory"
        return (
            f"{self.end - self.begin} bytes at offset {self.begin} of {kind} {self.memory[1]}, "
            "with nothing that orders\n"
            f"    the {'write' if self.earlier_wrote else 'read'} by {origin_text(self.earlier)}\n"
            f"    the {'write' if self.later_writes else 'read'} by {origin_text(self.later)}"
        )


def value_holds(current: int, value: int, mode: int) -> bool:
    """The four modes of aclrtValueWait, on 64 bits."""
    if mode == 0:
        return (current - value) % 2**64 < 2**63
    if mode == 1:
        return current == value
    if mode == 2:
        return current & value != 0
    return (current | value) != 2**64 - 1


class Checker:
    """Walks through all processes' events in the order of time."""

    def __init__(self) -> None:
        self.host = Clock(HOST)
        self.clocks: dict[Line, Clock] = {}
        self.ended: dict[Line, Clock] = {}
        self.pasts: dict[tuple[Line, int], Clock] = {}
        self.shadows: dict[Memory, Shadow] = {}
        self.sync_words: dict[Memory, list[int]] = {}
        self.writes: dict[tuple[Memory, int], deque[tuple[int | None, Clock]]] = {}
        self.records: dict[object, list[Clock]] = {}
        self.races: list[Race] = []
        self.reported: set[tuple[object, ...]] = set()

    def clock(self, line: Line) -> Clock:
        if line not in self.clocks:
            self.clocks[line] = Clock(line)
        return self.clocks[line]

    def run(self, events: Iterable[Event]) -> list[Race]:
        steps: list[tuple[int, int, Any, Event]] = []
        for order, event in enumerate(events):
            self._steps_of(event, order, steps)
        steps.sort(key=lambda step: step[:2])
        for _, _, step, event in steps:
            step(event)
        return self.races

    def _steps_of(self, event: Event, order: int, steps: list[tuple[int, int, Any, Event]]) -> None:
        category, name, facts = event.get("cat"), event.get("name"), event.get("args", {})
        if category == "task" and event["ph"] == "X":
            if word := facts.get("word") or facts.get("tells"):
                self._know_word(event, word)
            if facts["submitted"]:
                steps.append((facts["submitted"], order, self.submitted, event))
            steps.append((facts["begin"], order, self.begun, event))
            steps.append((facts["end"], order, self.task_ended, event))
        elif category == "host_work":
            steps.append((facts["begin"], order, self.host_work, event))
            steps.append((facts["end"], order, self.host_work_ended, event))
        elif category in ("host", "sync", "memory"):
            step = {
                "waited for stream": self.host_waited,
                "saw event": self.host_saw,
                "released": self.released,
                "acquired": self.acquired,
                "restarted": self.restarted,
                "freed": self.freed,
            }.get(str(name))
            if step is not None:
                steps.append((facts["at"], order, step, event))

    def _know_word(self, event: Event, word: list[int]) -> None:
        file, begin, _ = word
        words = self.sync_words.setdefault(memory_of(event, file), [])
        i = bisect_left(words, begin)
        if i == len(words) or words[i] != begin:
            words.insert(i, begin)

    # A task's three moments. It takes its past from the host when it is submitted, tells what it tells as it
    # begins, and learns what it learns as it ends.

    def submitted(self, event: Event) -> None:
        facts = event["args"]
        key = (line_of(event), facts["number"])
        if key in self.pasts:  # a task of a replay, submitted as a whole
            return
        source = self.host
        if "from_stream" in facts:
            source = self.clock((event["pid"], facts["from_stream"]))
        self.pasts[key] = source.copy()

    def begun(self, event: Event) -> None:
        facts = event["args"]
        clock = self.clock(line_of(event))
        past = self.pasts.get((line_of(event), facts["number"]))
        if past is not None:
            clock.join(past)
        elif not facts["submitted"]:
            clock.join(self.host)
        clock.at += 1
        self.touch(event, clock)
        kind = facts["kind"]
        if kind == "event record":
            self.records[sync_of(event)] = [clock.copy()]
        elif kind == "notify record":
            self.records.setdefault(sync_of(event), []).append(clock.copy())
        elif kind == "host function":
            self.host.join(clock)

    def task_ended(self, event: Event) -> None:
        facts = event["args"]
        line = line_of(event)
        clock = self.clock(line)
        kind = facts["kind"]
        if facts["code"] == 0:
            self.learn_from_words(event, clock)  # once more: it may have read what was written meanwhile
            if kind == "value wait" and "word" in facts:
                self.value_waited(event, clock)
            elif kind in ("event wait", "notify wait"):
                records = self.records.get(sync_of(event), [])
                if records:
                    clock.join(records[0])
                else:
                    self.join_all_ended(clock)
                if kind == "notify wait":
                    self.records.pop(sync_of(event), None)
            elif kind == "host function":
                clock.join(self.host)
        self.ended[line] = clock.copy()

    def host_work(self, event: Event) -> None:
        self.host.at += 1
        self.touch(event, self.host)

    def host_work_ended(self, event: Event) -> None:
        self.learn_from_words(event, self.host)

    def host_waited(self, event: Event) -> None:
        ended = self.ended.get((event["pid"], event["args"]["stream"]))
        if ended is not None:
            self.host.join(ended)

    def host_saw(self, event: Event) -> None:
        for record in self.records.get(sync_of(event), []):
            self.host.join(record)

    def released(self, event: Event) -> None:
        clock = self.clock((event["pid"], event["args"]["stream"]))
        self.records.setdefault(sync_of(event), []).append(clock.copy())

    def acquired(self, event: Event) -> None:
        clock = self.clock((event["pid"], event["args"]["stream"]))
        for record in self.records.get(sync_of(event), []):
            clock.join(record)

    def restarted(self, event: Event) -> None:
        self.records.pop(sync_of(event), None)

    def freed(self, event: Event) -> None:
        file, begin, end = event["args"]["spot"]
        memory = memory_of(event, file)
        if memory in self.shadows:
            self.shadows[memory].forget(begin, end)
        for word in self.words_in(memory, begin, end):
            self.writes.pop((memory, word), None)

    # Words

    def words_in(self, memory: Memory, begin: int, end: int) -> list[int]:
        words = self.sync_words.get(memory, [])
        return words[bisect_left(words, begin) : bisect_left(words, end)]

    def write_word(self, memory: Memory, word: int, value: int | None, clock: Clock) -> None:
        writes = self.writes.setdefault((memory, word), deque(maxlen=REMEMBERED_WRITES))
        writes.append((value, clock.copy()))

    def learn_from_words(self, event: Event, clock: Clock) -> None:
        """What is read of sync words may be their last value, or any before it."""
        for file, begin, end in event["args"].get("reads", []):
            memory = memory_of(event, file)
            for word in self.words_in(memory, begin, end):
                for _, written in self.writes.get((memory, word), ()):
                    clock.join(written)

    def value_waited(self, event: Event, clock: Clock) -> None:
        """The first of the last row of writes that satisfy the wait: what came later may as well not have."""
        facts = event["args"]
        memory, word = memory_of(event, facts["word"][0]), facts["word"][1]
        first: Clock | None = None
        for value, written in reversed(self.writes.get((memory, word), ())):
            if value is None or value_holds(value, facts["value"], facts["mode"]):
                first = written
            elif first is not None:
                break
        if first is not None:
            clock.join(first)
        else:
            self.join_all_ended(clock)

    def join_all_ended(self, clock: Clock) -> None:
        for ended in self.ended.values():
            clock.join(ended)
        clock.join(self.host)

    # Data

    def touch(self, event: Event, clock: Clock) -> None:
        facts = event["args"]
        reads, writes = facts.get("reads", []), facts.get("writes", [])
        self.learn_from_words(event, clock)
        access = Access(clock.line, clock.at, event)
        for spots, is_write in ((reads, False), (writes, True)):
            for file, begin, end in spots:
                self.touch_data(memory_of(event, file), begin, end, access, clock, is_write)
        if facts["kind"] == "value write" and "word" in facts:
            file, begin, _ = facts["word"]
            self.write_word(memory_of(event, file), begin, facts["value"], clock)
            return
        for file, begin, end in writes:
            memory = memory_of(event, file)
            for word in self.words_in(memory, begin, end):
                self.write_word(memory, word, facts.get("value"), clock)

    def touch_data(
        self, memory: Memory, begin: int, end: int, access: Access, clock: Clock, writes: bool
    ) -> None:
        at = begin
        for word in [*self.words_in(memory, begin & ~7, end), end]:
            if word > at:
                shadow = self.shadows.setdefault(memory, Shadow())
                for found in shadow.touch(at, word, access, clock, writes):
                    self.report(memory, found, access, writes)
            at = max(at, word + 8)

    def report(
        self, memory: Memory, found: tuple[int, int, Access, bool], later: Access, later_writes: bool
    ) -> None:
        begin, end, earlier, earlier_wrote = found
        pair = sorted(
            [
                (earlier.line, earlier.origin["name"], earlier_wrote),
                (later.line, later.origin["name"], later_writes),
            ]
        )
        if tuple(pair) in self.reported:
            return
        self.reported.add(tuple(pair))
        self.races.append(Race(memory, begin, end, earlier.origin, earlier_wrote, later.origin, later_writes))
