"""What was done, and what went wrong."""

from __future__ import annotations

import time
from collections import Counter

FOOTPRINT = ("rss", "device", "files", "threads")
# What may be more at the end than after the warm-up: bytes, descriptors, threads.
MAY_GROW = {"rss": 16 << 20, "device": 8 << 20, "files": 8, "threads": 16}
SHOWN = 6
SERIES = 12  # of what a process holds, from the first to the last


class Findings:
    def __init__(self) -> None:
        self.began = time.monotonic()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.recovered: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.bytes_checked = 0
        self.wrong: list[str] = []
        self.hangs: list[str] = []
        self.broken: list[str] = []
        self.leaks: list[str] = []
        self._slowest: list[tuple[float, str]] = []
        self._footprints: dict[str, list[tuple[float, dict[str, int]]]] = {}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:8.2f} s  {text}", flush=True)

    def add(self, where: list[str], text: str) -> None:
        where.append(text)
        self.say(text)

    @property
    def are_bad(self) -> bool:
        return bool(self.wrong or self.hangs or self.broken or self.leaks)

    def took(self, step: str, seconds: float) -> None:
        self._slowest = sorted([*self._slowest, (seconds, step)], reverse=True)[:SHOWN]

    def footprint(self, who: str, found: dict[str, int]) -> None:
        self._footprints.setdefault(who, []).append((time.monotonic() - self.began, found))

    def judge_footprints(self) -> None:
        """Compares the last one of each process with the one after its warm-up, a third of its series:
        until then each pool has come to its size."""
        for who, series in self._footprints.items():
            if len(series) < 3:
                continue
            warm_at, warm = series[max(1, len(series) // 3)]
            for what in FOOTPRINT:
                grown = series[-1][1][what] - warm[what]
                if grown > MAY_GROW[what]:
                    self.add(self.leaks, f"{who}: {what} grew by {grown} between {warm_at:.0f} s and the end")

    def report(self) -> str:
        lines = [f"{time.monotonic() - self.began:.1f} s"]
        kinds = sorted(self.done.keys() | self.failed.keys())
        lines += [f"  {k:30} {self.done[k]:8} done {self.failed[k]:7} failed" for k in kinds]
        lines += [
            f"  transfers that arrived   {sum(self.done.values())}",
            f"  faults                   {_listed(self.faults)}",
            f"  recovered                {_listed(self.recovered)}",
            f"  refused with             {_listed(self.refused)}",
            f"  steps that were left out {_listed(self.left_out)}",
            f"  bytes checked            {self.bytes_checked:_}",
            "  footprints, from the first to the last one of each process that lived through several",
        ]
        for who, series in self._footprints.items():
            if len(series) > 1:
                text = "; ".join(
                    f"{what} {_series(what, [f[what] for _, f in series])}" for what in FOOTPRINT
                )
                lines.append(f"    {who}: {text}")
        lines.append("  the slowest steps")
        lines += [f"    {seconds:.1f} s: {step}" for seconds, step in self._slowest]
        for name in ("wrong", "hangs", "broken", "leaks"):
            found = getattr(self, name)
            lines.append(f"  {name:24} {len(found)}")
            lines += [f"    {text}" for text in found[:20]]
        return "\n".join(lines)


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{number} x {what}" for what, number in sorted(counter.items())) or "none"


def _series(what: str, values: list[int]) -> str:
    last = len(values) - 1
    shown = values if last < SERIES else [values[last * i // (SERIES - 1)] for i in range(SERIES)]
    if what in ("rss", "device"):
        return " ".join(f"{value / 2**20:.1f}" for value in shown) + " MiB"
    return " ".join(map(str, shown))
