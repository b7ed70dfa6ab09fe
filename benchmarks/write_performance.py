# ruff: noqa: E501
"""Writes docs/performance.md from the results of the last runs.

python -m benchmarks.write_performance DIRECTORY FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .plots import NOTE, draw_peers
from .projected import WAYS, by_size
from .report import load

PICTURE = "performance_peers.png"

TEXT = """# Performance

Written by `make performance`, which runs `make bench` and, where `make peers` was, `make compare-peers`.

**All figures of this page are of emulated device memory on a CPU, or projected; none was measured on an NPU.**

## How to read it

- Compare ratios, not absolute times: machines differ, and so does what else runs on them. What ran when a run
  began stands with it.
- *x memcpy* is the time of one thread's memcpy of the same pieces over ours, in the same run, in turn. Above 1 we are
  faster. The emulated copy engines write past the caches, several pages side by side, where the processor can.
- A transfer is timed from the call at the sender to the moment when the receiver's stream has passed the wait for its
  flag: planning (`prepare_push`), `bind` and the op count, the way of the ticket to the receiver does not. Other contents at
  each start, other blocks each time; all bytes are compared after every run, memcpy's and other libraries' too, and spoiled
  before the next.
- Median and 99th percentile, of the runs that stand beside them.
- `CHECK=--check` makes `make bench` and `make compare-peers` fail where a median misses what `benchmarks/bounds.py` wants.
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


MEMORY = """## What a link holds

At each end, whether it is busy or not: 268 KiB of device memory, which is 256 transfers in flight x 128 layers x 8 bytes of arrival
flags and 12 KiB of mail, in pieces of 16 links (4.2 MiB); and 6 KiB of page-locked host memory, the watchdog's copy of that mail. A
socket of ZeroMQ and the peer's cache tables come to it. A link that has been idle for 5 seconds holds no stream. What goes packed
needs staging, which the first `expect` on a link makes (`packed_staging_bytes`); host caches need 2 MiB, made by the first of
their transfers.
"""


def head(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [f"{machine['where']}; {machine['cpu']}; {load(machine)}; {versions}.", ""]


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
            "That chain has no plan and begins with its op, so *from the op* is like for like; its `bind` tells the thread what to queue. *Idle*: "
            "after 2 ms of it. Median µs:", "",
            "| `TASK_QUEUE_ENABLE` | | runs | from the call (p99) | from `bind` (p99) | by hand (p99) | ratio | from the op (p99) | by hand (p99) | ratio |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for queue, found in results["latency"].items():
            for name in ("back to back", "idle"):
                call = found[f"{name}, call"]
                row = (
                    f"| {queue} | {name} | {call['runs']} | {call['median_us']:.0f} ({call['p99_us']:.0f}) |"
                )
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
    lines += [line for note in results.get("notes", []) for line in (note, "")]
    lines += [f"![Each library's speed by case, as a multiple of memcpy: {NOTE}]({PICTURE})", ""]
    lines += [
        f"TCP in {results['network']}. Ours is emulated device memory, theirs is CPU memory. Each round is in fresh processes. A time is the median "
        "of the rounds' medians, p99 is that of all runs; ratios are of what ran in one round, and the median of those. "
        f"Versions: {', '.join(f'{engine}: {version}' for engine, version in results['versions'].items())}.", "",
        "| case | library | rounds x runs | median µs | least to most | p99 µs | GB/s | x memcpy | its time over ours |", "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, case in results["cases"].items():
        for engine, row in sorted(case["engines"].items(), key=lambda item: item[1]["median_us"]):
            lines.append(
                f"| ({name}) {case['case']} | {engine} | {row['rounds']} x {row['runs']} | {row['median_us']:.0f} | "
                f"{row['least_us']:.0f} to {row['most_us']:.0f} | {row['p99_us']:.0f} | {row['gb_per_s']:.2f} | {row['to_memcpy']:.2f} | "
                f"{row['to_ours']:.2f} |"
            )
        lines += [
            f"| ({name}) | {engine} | failed: {why} | | | | | | |" for engine, why in case["failures"].items()
        ]
    return lines


def scale(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Scale",
        "",
        *head(results["machine"]),
        f"{results['processes']} processes with many instances each, linked with one another more and more. The op is `push_blocks` of one block "
        "of two tensors by an instance of the first process; beside it, in turn, the same of two further processes with one link and two "
        "tensors. What a link takes is counted at one end.",
        "",
        "| links | registered tensors | host time of an op, median µs | p99 µs | runs | beside one link, median µs | ratio | to make one |",
        "|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in results["links"]:
        made = (
            f"a link: {row['set_up_ms_each']:.1f} ms, {row['device_kib_each']:.0f} KiB of device memory, {row['kib_each']:.0f} KiB resident"
            if "set_up_ms_each" in row
            else f"a registered tensor: {row['register_ms_each']:.2f} ms"
        )
        lines.append(
            f"| {row['links']} | {row['tensors']} | {row['median_us']:.1f} | {row['p99_us']:.0f} | {row['runs']} | "
            f"{row['one_link']['median_us']:.1f} | {row['to_one_link']:.2f} | {made} |"
        )
    lines += ["", "| the planner alone | median µs | p99 µs | runs |", "|---|--:|--:|--:|"]
    for row in results["planning"]:
        lines.append(
            f"| {row['blocks']} blocks in random order | {row['median_us']:.0f} | {row['p99_us']:.0f} | {row['runs']} |"
        )
    return lines


def dispatch(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Host cost of the ops", "", *head(results["machine"]), f"{results['sizes']}.", "",
        *[line for note in results.get("notes", []) for line in (note, "")],
        "From the call to its return. The empty op is one in C++ of the same schema that queues a handler without a body, called with the "
        "same arguments beside each call of ours, before it and behind it in turn. Ops are called as what is registered with torch; *by its function* is the documented "
        "Python function in front of it. *On its core* is the same difference in processor time of the calling thread. The emulated "
        "devices stand still while calls are timed, or they would take turns with the caller on its cores. *100 blocks* are at random, and no two of them merge or share a 2-D copy. `publish` is a method of `CacheManager`, in Python. `store_layer`, `read_layer` and `checksum_blocks` are made of "
        "aten ops, and cost what those cost.", "",
        "| | runs | median µs | p99 µs | an empty op, µs | over it, µs | on its core, µs | over an empty Python custom_op, µs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    lines += [
        f"| {row['op']} | {row['runs']} | {row['median_us']:.1f} | {row['p99_us']:.0f} | {row['empty_us']:.1f} | {row['over_empty_us']:+.1f} | "
        f"{row['over_empty_core_us']:+.1f} | {row['over_custom_op_us']:+.1f} |"
        for row in results["ops"]
    ]
    return lines


def overlap(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Pushes inside of a forward", "", *head(results["machine"]),
        "From the first kernel to the last arrival, in ms, of emulated kernels and an emulated link. The bound is the same forward "
        "without transfers + 1.2 transfers of a layer + 5 ms. Medians.", "",
        "| | layers | runs | forward alone | pushed per layer (p99) | bound | pushed afterwards (p99) |", "|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    lines += [
        f"| {mode} | {row['layers']} | {row['runs']} | {row['forward_alone_ms']:.1f} | "
        f"{row['overlapped_ms']:.1f} ({row['overlapped_p99_ms']:.1f}) | {row['bound_ms']:.1f} | "
        f"{row['afterwards_ms']:.1f} ({row['afterwards_p99_ms']:.1f}) |"
        for mode, row in results["modes"].items()
    ]
    return lines


def projected(results: dict[str, Any]) -> list[str]:
    lines = [
        f"## Projected for {results['profile']}", "", *head(results["machine"]),
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


SECTIONS = {
    "blocks": blocks,
    "peers": peers,
    "dispatch": dispatch,
    "overlap": overlap,
    "scale": scale,
    "projected": projected,
}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Of what the benchmarks of these names wrote."""
    sections = ["\n".join(write(found[name])) for name, write in SECTIONS.items() if name in found]
    return "\n".join([TEXT, *(section + "\n" for section in sections), MEMORY])


def main() -> None:
    directory, target = Path(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for name in SECTIONS:
        source = directory / f"{name}.json"
        if source.exists():
            found[name] = json.loads(source.read_text())
        else:
            print(f"{source} is not there; left out")
    target.write_text(page(found))
    if "peers" in found:
        draw_peers(found["peers"], target.parent / PICTURE)


if __name__ == "__main__":
    main()
