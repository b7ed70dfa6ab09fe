# ruff: noqa: E501
"""Writes docs/performance.md from the results of the last runs.

python -m benchmarks.write_performance DIRECTORY FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .projected import WAYS, by_size

TEXT = """# Performance

Written by `make performance` from the last runs of `make bench` and `make compare-peers`.

**All figures of this page are of emulated device memory on a CPU, or projected; none was measured on an NPU.**

## How to read it

- Compare ratios, not absolute times: machines differ, and so does what else runs on them. The load of the machine
  when a run began stands with it.
- *x memcpy* is the time of one thread's memcpy of the same pieces over ours, in the same run, in turn. Above 1 we are
  faster. The emulated copy engines write past the caches, several pages side by side, where the processor can.
- A transfer is timed from the call at the sender to the moment when the receiver's stream has passed the wait for its
  flag. Other blocks each time; all bytes are compared after every run, and spoiled before the next.
- *projected* figures are simulated time: what the cost table of a product says that the queued tasks take. Each number of the
  table has its source; some are assumed.

## How to tune

- **Let the layers of a cache lie in one allocation**, at a constant distance, at both ends: a block is then one 2-D copy over
  all layers instead of one copy per layer. On hardware a copy task costs the host microseconds.
- **Hand out neighbouring blocks.** What is adjacent at both ends, or lies at a constant distance, is one copy.
- Larger blocks move faster until some 256 KiB.
- Push what a forward produced through `prepare_push` and a `Binding`, bound before the forward: nothing is planned when a layer
  is released.
- `TASK_QUEUE_ENABLE=1`, torch_npu's default, takes the queueing off the calling thread.
"""


def head(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [f"{machine['where']}; {machine['cpu']}, load {machine['load']}; {versions}.", ""]


def blocks(results: dict[str, Any]) -> list[str]:
    lines = ["## Pushes between two processes", "", *head(results["machine"])]
    lines += [line for note in results.get("notes", []) for line in (note, "")]
    lines += [
        "| case | runs | median µs | p99 µs | GB/s | x memcpy | blocking call, median µs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(
            f"| ({name}) {case['case']} | {case['runs']} | {case['median_us']:.0f} | {case['p99_us']:.0f} | "
            f"{case['gb_per_s']:.2f} | {case['to_memcpy']:.2f} | {case['blocking']['median_us']:.0f} |"
        )
    if results.get("latency"):
        lines += [
            "", "Case f beside the same chain of streams made by hand, between the same processes: an op writes a word on its stream; "
            "a second stream, fed by a C++ thread, waits for it, copies to the receiver and writes a word there; a third waits for that. "
            "From `bind`, by hand from when the thread is told, and from the op; median µs:", "",
            "| `TASK_QUEUE_ENABLE` | | from `bind` (p99) | by hand (p99) | ratio | from the op (p99) | by hand (p99) | ratio |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for queue, found in results["latency"].items():
            for name in ("back to back", "idle"):
                row = f"| {queue} | {name} |"
                for what in ("bind", "op"):
                    ours, hand = found[f"{name}, {what}"], found[f"{name}, hand, {what}"]
                    row += (
                        f" {ours['median_us']:.0f} ({ours['p99_us']:.0f}) | {hand['median_us']:.0f} ({hand['p99_us']:.0f}) | "
                        f"{ours['median_us'] / hand['median_us']:.2f} |"
                    )
                lines.append(row)
    return lines


def peers(results: dict[str, Any]) -> list[str]:
    lines = ["## Beside other libraries", "", *head(results["machine"])]
    lines += [
        f"TCP in {results['network']}. Ours is emulated device memory, theirs is CPU memory. A figure is the median of the rounds' "
        "medians, each round in fresh processes.", "",
        "| case | library | median µs | least to most | GB/s | x memcpy |", "|---|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, case in results["cases"].items():
        for engine, row in sorted(case["engines"].items(), key=lambda item: item[1]["median_us"]):
            lines.append(
                f"| ({name}) {case['case']} | {engine} | {row['median_us']:.0f} | {row['least_us']:.0f} to {row['most_us']:.0f} | "
                f"{row['gb_per_s']:.2f} | {row['to_memcpy']:.2f} |"
            )
        lines += [
            f"| ({name}) | {engine} | failed: {why} | | | |" for engine, why in case["failures"].items()
        ]
    return lines


def scale(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Scale",
        "",
        *head(results["machine"]),
        "| | host time of an op, median µs | p99 µs | |",
        "|---|--:|--:|---|",
    ]
    for row in results["links"]:
        lines.append(
            f"| {row['links']} links | {row['median_us']:.1f} | {row['p99_us']:.0f} | {row['set_up_ms_each']:.1f} ms and "
            f"{row['kib_each']:.0f} KiB to make each, both ends in this process |"
        )
    for row in results["tensors"]:
        lines.append(
            f"| {row['tensors']} registered tensors | {row['median_us']:.1f} | {row['p99_us']:.0f} | "
            f"{row['set_up_ms_each']:.2f} ms to register each |"
        )
    for row in results["planning"]:
        lines.append(
            f"| planning {row['blocks']} blocks | {row['median_us']:.0f} | {row['p99_us']:.0f} | no op: the planner alone |"
        )
    return lines


def projected(results: dict[str, Any]) -> list[str]:
    lines = [
        f"## Projected for {results['profile']}", "",
        "Projected, not measured: 128 MiB in scattered blocks in simulated time, from the bind to the receiver's gate, in GB/s.",
        "", "| block | direct, projected | packed, projected | automatic, projected | " + " | ".join(f"{name}, published for HIXL" for name in results["published"]) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(results["published"]),
    ]  # fmt: skip
    for size, row in by_size(results["projected"]).items():
        kib = size >> 10
        ours = " | ".join(f"{row[way]['gb_per_s']:.1f}" for way in WAYS)
        theirs = " | ".join(str(table.get(str(kib), "-")) for table in results["published"].values())
        lines.append(f"| {kib} KiB | {ours} | {theirs} |")
    lines += ["", "| cost | value | source |", "|---|--:|---|"]
    lines += [
        f"| {name} | {value} | {source} |" for name, (value, source) in results["projected"]["costs"].items()
    ]
    return lines


def main() -> None:
    directory, target = Path(sys.argv[1]), Path(sys.argv[2])
    text = TEXT
    for name, write in (("blocks", blocks), ("peers", peers), ("scale", scale), ("projected", projected)):
        source = directory / f"{name}.json"
        if source.exists():
            text += "\n" + "\n".join(write(json.loads(source.read_text()))) + "\n"
        else:
            print(f"{source} is not there; left out")
    target.write_text(text)


if __name__ == "__main__":
    main()
