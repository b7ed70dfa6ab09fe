"""Simulated time: what happens, in order, and the processors on which it happens."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

START_S = 1000.0  # the code under simulation takes 0 for "no time"
_MOST_LOOKING = 0.9  # of the processors: who looks around is late then, and gives way


class Simulation:
    """Deterministic by its seed: of what is due at one moment, what was asked for first happens first."""

    def __init__(self, seed: int) -> None:
        self.now = START_S
        self.chance = random.Random(seed)
        self.happened = 0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        """In the place of ``time.monotonic``."""
        return self.now

    def at(self, when: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._numbers), what))

    def after(self, delay_s: float, what: Callable[[], object]) -> None:
        self.at(self.now + delay_s, what)

    def run(self, until: float = float("inf")) -> None:
        """All that is due before that time; the clock stands at the last of it, or at ``until``."""
        while self._due and self._due[0][0] <= until:
            self.now, _, what = heapq.heappop(self._due)
            self.happened += 1
            what()
        if until != float("inf"):
            self.now = max(self.now, until)


class Cores:
    """Processors that some processes share: who comes first is served first, to the end.

    Args:
        crowd: how many times as long work takes that had to wait for its turn: threads that take turns find
            other things in the caches.

    Attributes:
        looking_around: how many of them threads take that look for work at fixed times, whatever there is.
    """

    def __init__(self, simulation: Simulation, count: int, crowd: float = 1.0) -> None:
        self._simulation = simulation
        self._free_at = [START_S] * count
        self._crowd = crowd
        self.looking_around = 0.0

    def use(self, seconds: float) -> float:
        """When that much work that is ready now ends."""
        share = 1 - min(_MOST_LOOKING, self.looking_around / len(self._free_at))
        free_at = heapq.heappop(self._free_at)
        takes = seconds / share * (self._crowd if free_at > self._simulation.now else 1.0)
        ends = max(self._simulation.now, free_at) + takes
        heapq.heappush(self._free_at, ends)
        return ends
