"""Vector clocks: what comes before what."""

from __future__ import annotations

from torch_llm_datadist.emulator.race_trace import Line

HOST: Line = (0, 0)


class Clock:
    """A point of a line, with what came before it on the others."""

    __slots__ = ("at", "line", "others")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.at = 0
        self.others: dict[Line, int] = {}

    def covers(self, line: Line, at: int) -> bool:
        return at <= self.at if line == self.line else self.others.get(line, -1) >= at

    def join(self, other: Clock) -> None:
        if self.covers(other.line, other.at):
            return
        others = dict(self.others)
        for line, at in other.others.items():
            if others.get(line, -1) < at:
                others[line] = at
        others[other.line] = max(other.at, others.get(other.line, -1))
        others.pop(self.line, None)
        self.others = others  # never changed, only replaced: copies share it
        self.at += 1

    def copy(self) -> Clock:
        same = Clock(self.line)
        same.at, same.others = self.at, self.others
        return same
