"""What grows with links, registered tensors and blocks, and what does not.

    python -m torch_llm_datadist run -m benchmarks.bench_scale [--links N…] [--tensors N] [--json FILE]

Four processes of many instances each are linked with one another, more and more of them. The cost of an op is
the host time of ``ops.push_blocks`` for one block of two tensors by an instance of the first process, beside
the same in two further processes with one link and two tensors: a few calls each in turn, so that both meet
the same state of the machine. "On its core" is processor time of the calling thread alone. Last the instance
also has many registered tensors. Planning is a C++ call on block lists in random order.
"""

from __future__ import annotations

import random
import statistics
import time
from itertools import islice
from typing import Any

import torch

from torch_llm_datadist import _native

from . import report
from .members import BLOCK_BYTES, BLOCKS, Process

PROCESSES = 4
TURNS, CALLS = 60, 5


class Cluster:
    """The first process links its instances with those of the others; two more have one link."""

    def __init__(self, most_links: int) -> None:
        # As many instances at either side of the links as that takes, about.
        self._ours = max(1, round(most_links**0.5 * 0.7))
        theirs = -(-most_links // self._ours)
        others = PROCESSES - 1
        share = [theirs // others + (i < theirs % others) for i in range(others)]
        first_ids = [1 + self._ours + sum(share[:i]) for i in range(others)]
        self._processes = [Process(1, self._ours, 0)]
        self._processes += [
            Process(first, count, 1 + i % 7)
            for i, (first, count) in enumerate(zip(first_ids, share, strict=True))
            if count > 0
        ]
        self._few = [Process(1, 1, 0), Process(2, 1, 1)]
        for process in (*self._processes, *self._few):
            process.is_ready()
        ports: dict[int, int] = {}
        for process in self._processes[1:]:
            ports |= process.ask("ports")
        self._remote = next(iter(ports))
        self._links = 0
        self._pairs = (
            (ours, remote, port) for remote, port in ports.items() for ours in range(1, self._ours + 1)
        )
        self._few[0].ask("link", [(1, self._few[1].ask("ports"))])

    def link(self, count: int) -> dict[str, float]:
        """Until there are so many links."""
        wanted: dict[int, dict[int, int]] = {}
        for ours, remote, port in islice(self._pairs, count - self._links):
            wanted.setdefault(ours, {})[remote] = port
        self._links = count
        made: dict[str, float] = self._processes[0].ask("link", list(wanted.items()))
        return made

    def register(self, tensors: int) -> float:
        milliseconds: float = self._processes[0].ask("register", tensors)
        return milliseconds

    def op_cost(self) -> dict[str, Any]:
        many: list[tuple[float, float]] = []
        few: list[tuple[float, float]] = []
        for turn in range(TURNS + 5):
            ours = self._processes[0].ask("op_seconds", self._remote, CALLS)
            beside = self._few[0].ask("op_seconds", 2, CALLS)
            if turn >= 5:  # the first ones warm up
                many += ours
                few += beside
        (clock, core), (clock_of_few, core_of_few) = zip(*many, strict=True), zip(*few, strict=True)
        return {
            **report.sum_up(clock),
            "core_us": statistics.median(core) * 1e6,
            "one_link": {**report.sum_up(clock_of_few), "core_us": statistics.median(core_of_few) * 1e6},
            "to_one_link": statistics.median(clock) / statistics.median(clock_of_few),
            "to_one_link_core": statistics.median(core) / statistics.median(core_of_few),
        }

    def close(self) -> None:
        # The side that made the links first: it unlinks, and its peers follow.
        for process in (self._processes[0], self._few[0], *self._processes[1:], self._few[1]):
            process.close()
        for process in (*self._processes, *self._few):
            process.join()


def links(counts: list[int], tensors: int) -> list[dict[str, Any]]:
    cluster = Cluster(max(counts))
    rows: list[dict[str, Any]] = []
    for count in sorted(counts):
        made = cluster.link(count)
        rows.append({"links": count, "tensors": 2, **cluster.op_cost(), **made})
    milliseconds = cluster.register(tensors)
    rows.append(
        {"links": max(counts), "tensors": tensors, **cluster.op_cost(), "register_ms_each": milliseconds}
    )
    cluster.close()
    return rows


def planning(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        # In random order, and yet one run in the end: so that the answer is short.
        ids = torch.tensor(random.Random(count).sample(range(count), count))
        seconds = []
        for _ in range(21):
            started = time.perf_counter()
            copies = _native.load().plan_copies([(1 << 20, 1 << 40, 64, 0, 0)], ids, ids, count, count)
            seconds.append(time.perf_counter() - started)
            if len(copies) != 1:
                raise SystemExit(f"{len(copies)} copies, expected 1")
        rows.append({"blocks": count, **report.sum_up(seconds[1:])})
    return rows


def print_row(row: dict[str, Any]) -> None:
    made = (
        f"{row['set_up_ms_each']:.1f} ms, {row['device_kib_each']:.0f} KiB of device memory and "
        f"{row['kib_each']:.0f} KiB resident each"
        if "set_up_ms_each" in row
        else f"{row['register_ms_each']:.2f} ms to register each tensor"
    )
    beside = row["one_link"]
    print(
        f"  {row['links']:4d} links, {row['tensors']:4d} tensors {row['median_us']:7.1f} us "
        f"(p99 {row['p99_us']:.0f}, {row['runs']} runs), {row['core_us']:.1f} on its core; beside one link "
        f"{beside['median_us']:.1f} us (p99 {beside['p99_us']:.0f}), {beside['core_us']:.1f}: "
        f"{row['to_one_link']:.2f}, {row['to_one_link_core']:.2f}; {made}",
        flush=True,
    )


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--links", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--tensors", type=int, default=1000, help="of one instance in the end")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = report.machine()
    report.print_head(facts)
    print(
        f"caches of 2 tensors of {BLOCKS} blocks of {BLOCK_BYTES >> 10} KiB; an op moves one block of both; "
        f"{TURNS} turns of {CALLS} ops"
    )
    results: dict[str, Any] = {"machine": facts, "processes": PROCESSES}
    print("planning of blocks in random order")
    results["planning"] = planning(options.blocks)
    for row in results["planning"]:
        print(f"  {row['blocks']:7d} blocks   {row['median_us']:7.0f} us (p99 {row['p99_us']:.0f})")
    print(f"host time of an op, {PROCESSES} processes with many instances each")
    results["links"] = links(options.links, options.tensors)
    for row in results["links"]:
        print_row(row)
    report.write(options.json, results)


if __name__ == "__main__":
    main()
