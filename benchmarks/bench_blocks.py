"""Pushes of scattered blocks between two processes, from the call to the flag seen at the receiver.

    python -m torch_llm_datadist run -m benchmarks.bench_blocks [--cases abcdef] [--runs N] [--check]
        [--json FILE]
    … --profile a3      projected times of emulated hardware instead

From the call: the sender plans (``prepare_push``), binds and calls the op; how the ticket reaches the
receiver in between does not count. Every run takes other blocks, and all their bytes are compared at the
receiver, which then spoils them; contents are others at each start. A run of ours and one of memcpy
alternate. "x memcpy" is the time of one thread's memcpy of the same pieces within one process over ours:
above 1, we are faster. "blocking" is CacheManager.push_blocks from call to return.

The chain by hand of case f is what the library does, without it, between the same processes: its op writes a
word, for which a second stream waits that a thread has fed. It has no plan, and so begins with its op: from
the op is like for like. Its "bind" tells the thread what to queue.

``--check`` fails where a median misses what ``bounds.py`` wants.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

from . import bounds, report
from .cases import CASES, Case
from .pair import ByHand, Memcpy, Pair

SHORT = {"a": 9, "b": 25, "c": 11, "d": 11, "e": 60, "f": 100}
IDLE_S = 0.002


def measure(case: Case, runs: int) -> dict[str, Any]:
    pair = Pair(case)
    memcpy = Memcpy(case, pair.content)
    ours, blocking, copies = [], [], []
    pair.warm_up()
    for _ in range(runs):
        src, dst = pair.blocks()
        copies.append(memcpy.run(src, dst))
        ours.append(pair.push(src, dst).call)
        blocking.append(pair.push_blocking(*pair.blocks()))
    pair.close()
    return {
        "case": str(case),
        "bytes": case.total_bytes,
        **report.sum_up(ours),
        "gb_per_s": case.total_bytes / statistics.median(ours) / 1e9,
        "memcpy": report.sum_up(copies),
        "to_memcpy": statistics.median(copies) / statistics.median(ours),
        "blocking": report.sum_up(blocking),
        "blocking_to_memcpy": statistics.median(copies) / statistics.median(blocking),
    }


def measure_latency(runs: int) -> dict[str, Any]:
    """Case f beside the same chain by hand, back to back and after idleness; in this process's mode."""
    pair = Pair(CASES["f"])
    by_hand = ByHand(pair)
    found: dict[str, list[float]] = {}
    for run in range(runs + 5):
        for name, idle_s in (("back to back", 0.0), ("idle", IDLE_S)):
            ours = pair.push(*pair.blocks(), idle_s)
            hand_bind, hand_op = by_hand.run(idle_s)
            if run >= 5:
                times = {**ours._asdict(), "hand, bind": hand_bind, "hand, op": hand_op}
                for what, seconds in times.items():
                    found.setdefault(f"{name}, {what}", []).append(seconds)
    pair.close()
    return {name: report.sum_up(seconds) for name, seconds in found.items()}


def latency_in_child(queue: str, runs: int) -> dict[str, Any]:
    """``TASK_QUEUE_ENABLE`` is read once per process."""
    import json

    command = [sys.executable, "-m", "torch_llm_datadist", "run", "-m", "benchmarks.bench_blocks"]
    done = subprocess.run(
        [*command, "--latency-only", str(runs)],
        env={**os.environ, "TASK_QUEUE_ENABLE": queue},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_case(name: str, result: dict[str, Any]) -> None:
    print(
        f"({name}) {result['case']:28s} {result['runs']:5.0f} {result['median_us']:9.0f} "
        f"{result['p99_us']:9.0f} {result['gb_per_s']:7.2f} {result['to_memcpy']:9.2f} "
        f"{result['blocking']['median_us']:10.0f} {result['blocking_to_memcpy']:9.2f}",
        flush=True,
    )


def print_latency(queue: str, found: dict[str, Any]) -> None:
    for name in ("back to back", "idle"):
        for what, words in (("call", "from the call"), ("bind", "from bind"), ("op", "from the op")):
            ours, hand = found[f"{name}, {what}"], found.get(f"{name}, hand, {what}")
            line = (
                f"TASK_QUEUE_ENABLE={queue}, {name:12s}  {words:13s} {ours['median_us']:6.0f} us "
                f"(p99 {ours['p99_us']:.0f}, {ours['runs']} runs)"
            )
            if hand is not None:
                line += (
                    f", by hand {hand['median_us']:6.0f} us (p99 {hand['p99_us']:.0f}); "
                    f"ratio {ours['median_us'] / hand['median_us']:.2f}"
                )
            print(line, flush=True)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--cases", default="abcdef")
    parser.add_argument("--runs", type=int, help="of each case; by default a short set")
    parser.add_argument("--check", action="store_true", help="fail where a bound is missed")
    parser.add_argument("--profile", choices=["a2", "a3", "A2", "A3"], help="projected, in simulated time")
    parser.add_argument("--latency-only", type=int, help="for this script itself")
    options = parser.parse_args()
    if options.latency_only:
        import json

        print(json.dumps(measure_latency(options.latency_only)))
        return
    if options.profile:
        from .projected import main as project

        project(options.profile.upper(), options.json)
        return
    facts = report.machine()
    report.print_head(facts)
    print(
        f"{'':32s} {'runs':>5s} {'median us':>9s} {'p99 us':>9s} {'GB/s':>7s} {'x memcpy':>9s} "
        f"{'blocking':>10s} {'x memcpy':>9s}"
    )
    results: dict[str, Any] = {"machine": facts, "cases": {}, "latency": {}}
    for name in options.cases:
        results["cases"][name] = measure(CASES[name], options.runs or SHORT[name])
        print_case(name, results["cases"][name])
    if "f" in options.cases:
        print("(f) beside the same chain by hand, which begins with its op: from the op is like for like")
        for queue in ("0", "1"):
            results["latency"][queue] = latency_in_child(queue, options.runs or SHORT["f"])
            print_latency(queue, results["latency"][queue])
    report.write(options.json, results)
    if options.check:
        bounds.require(bounds.blocks(results))


if __name__ == "__main__":
    main()
