"""What ``--check`` holds the medians of one run to; each function names what is missed."""

from __future__ import annotations

from typing import Any

# Pushes of blocks: memcpy's time for the same pieces, by one thread, over ours.
TO_MEMCPY = {"a": 1.3, "b": 1.0, "c": 1.3, "d": 0.95}
# The time of the best of the other libraries over ours.
TO_BEST_PEER = {"a": 1.5, "b": 1.15, "c": 1.5, "d": 1.5}
# One 4 KiB block from the op to the flag seen, over the same chain of streams made by hand.
TO_CHAIN_BY_HAND = 1.5
# Host time of an op that moves one block, beyond an empty op of its kind; and what 100 blocks that do not
# merge may add to it.
OVER_EMPTY_US = 5.0
PER_100_BLOCKS_US = 3.0
MANY_BLOCKS = ", 100 blocks"  # how the name of such a row ends


def blocks(results: dict[str, Any]) -> list[str]:
    """Of bench_blocks."""
    missed = [
        f"({name}): {found:.2f} x memcpy, {TO_MEMCPY[name]} is wanted"
        for name, found in ((name, case["to_memcpy"]) for name, case in results["cases"].items())
        if found < TO_MEMCPY.get(name, 0.0)
    ]
    for queue, found in results["latency"].items():
        for when in ("back to back", "idle"):
            ratio = found[f"{when}, op"]["median_us"] / found[f"{when}, hand, op"]["median_us"]
            if ratio > TO_CHAIN_BY_HAND:
                missed.append(
                    f"(f) TASK_QUEUE_ENABLE={queue}, {when}: {ratio:.2f} x the chain by hand, at most "
                    f"{TO_CHAIN_BY_HAND} is wanted"
                )
    return missed


def peers(results: dict[str, Any]) -> list[str]:
    """Of compare_peers. A library that failed may have been the best one."""
    missed = []
    for name, case in results["cases"].items():
        missed += [f"({name}): {engine} failed: {why}" for engine, why in case["failures"].items()]
        ours = case["engines"]["ours"]["to_memcpy"]
        if ours < TO_MEMCPY.get(name, 0.0):
            missed.append(f"({name}): {ours:.2f} x memcpy, {TO_MEMCPY[name]} is wanted")
        others = {
            engine: row["to_ours"]
            for engine, row in case["engines"].items()
            if engine not in ("ours", "memcpy")
        }
        best = min(others, key=lambda engine: others[engine], default=None)
        if best is not None and others[best] < TO_BEST_PEER.get(name, 0.0):
            missed.append(f"({name}): {others[best]:.2f} x {best}, {TO_BEST_PEER[name]} is wanted")
    return missed


def dispatch(results: dict[str, Any]) -> list[str]:
    """Of bench_dispatch, by the clock."""
    rows = {row["op"]: row for row in results["ops"] if row["is_bounded"]}
    missed = []
    for op, row in rows.items():
        us, core_us = row["over_empty_us"], row["over_empty_core_us"]
        if op.endswith(MANY_BLOCKS):
            few = rows[op.removesuffix(MANY_BLOCKS)]
            us, core_us = us - few["over_empty_us"], core_us - few["over_empty_core_us"]
            most, beyond = PER_100_BLOCKS_US, "one block"
        else:
            most, beyond = OVER_EMPTY_US, "an empty op"
        if us > most:
            missed.append(
                f"{op}: {us:.1f} us over {beyond} ({core_us:.1f} on its core), at most {most} is wanted"
            )
    return missed


def require(missed: list[str]) -> None:
    if missed:
        raise SystemExit("missed: " + "; ".join(missed))
