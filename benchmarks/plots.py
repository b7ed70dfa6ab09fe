"""Draws what the benchmarks wrote: ``python -m benchmarks.plots DIRECTORY`` makes a PNG beside each JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .projected import WAYS, by_size

NOTE = "emulated device memory on a CPU"


def bars(axes: Any, results: dict[str, Any]) -> None:
    """Each library's speed by case, as a multiple of memcpy."""
    engines = sorted({name for case in results["cases"].values() for name in case["engines"]})
    cases = list(results["cases"])
    width = 0.8 / len(engines)
    for i, engine in enumerate(engines):
        heights = [results["cases"][case]["engines"].get(engine, {}).get("to_memcpy", 0.0) for case in cases]
        axes.bar([x + i * width for x in range(len(cases))], heights, width, label=engine)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(cases))], cases)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_ylabel("times memcpy (higher is faster)")
    axes.set_title(f"The same pieces; ours is {NOTE}")
    axes.legend()


def blocks(axes: Any, results: dict[str, Any]) -> None:
    cases = list(results["cases"])
    axes.bar(cases, [results["cases"][case]["to_memcpy"] for case in cases])
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_ylabel("times memcpy (higher is faster)")
    axes.set_title(f"Pushes of scattered blocks: {NOTE}")


def projected(axes: Any, results: dict[str, Any]) -> None:
    rows = by_size(results["projected"])
    sizes = [size >> 10 for size in rows]
    for way in WAYS:
        axes.plot(sizes, [row[way]["gb_per_s"] for row in rows.values()], "o-", label=f"{way}, projected")
    for name, table in results["published"].items():
        axes.plot(
            [int(kib) for kib in table], list(table.values()), "x--", label=f"{name}, published for HIXL"
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("KiB per block")
    axes.set_ylabel("GB/s")
    axes.set_title(f"Projected for {results['profile']}, not measured")
    axes.legend()


def scale(axes: Any, results: dict[str, Any]) -> None:
    rows = results["links"]
    places = range(len(rows))
    axes.bar(places, [row["median_us"] for row in rows], 0.4, label="an op at so many links")
    beside = [row["one_link"]["median_us"] for row in rows]
    axes.bar([place + 0.4 for place in places], beside, 0.4, label="the same at one link, in turn")
    names = [f"{row['links']} links,\n{row['tensors']} tensors" for row in rows]
    axes.set_xticks([place + 0.2 for place in places], names)
    axes.set_ylabel("host time of an op, median us")
    axes.set_title(NOTE)
    axes.legend(loc="lower right")


def dispatch(axes: Any, results: dict[str, Any]) -> None:
    rows = results["ops"][::-1]  # the first one on top
    names = [row["op"] for row in rows]
    axes.barh(names, [row["median_us"] for row in rows], color="#4477aa")
    axes.plot([row["empty_us"] for row in rows], names, "k|", label="an empty op, called in turn")
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("host time of an op, median us")
    axes.set_title(NOTE)
    axes.legend()


def intervals(ends: list[float], first: float, longest: float) -> list[tuple[float, float]]:
    """(begin, length) of what follows each other, by when each was seen to end."""
    begins = [first, *ends[:-1]]
    return [
        (max(begin, end - longest), min(end - begin, longest))
        for begin, end in zip(begins, ends, strict=True)
    ]


def draw_timeline(modes: dict[str, dict[str, Any]], target: Path) -> None:
    """Kernels and arrivals of bench_layerwise_overlap, by mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(modes), 1, figsize=(10, 1 + 2.6 * len(modes)), sharex=True, squeeze=False
    )
    for axis, (mode, result) in zip(axes[:, 0], modes.items(), strict=True):
        overlapped, afterwards = result["overlapped"], result["afterwards"]
        # A replay has no event behind each kernel: there its kernels are one bar.
        ends = overlapped["kernel_ends"] or [overlapped["computed"]]
        longest = 1.5 * result["transfer_ms"]
        for row, found, color in (
            (2, intervals(ends, 0.0, float("inf")), "#4477aa"),
            (1, intervals(overlapped["arrived"], 0.0, longest), "#ee6677"),
            (0, intervals(afterwards["arrived"], afterwards["computed"], longest), "#bbbbbb"),
        ):
            axis.broken_barh(found, (row + 0.1, 0.8), color=color, edgecolor="white", linewidth=0.5)
        axis.axvline(result["bound_ms"], color="black", linewidth=0.8, linestyle="--")
        axis.set_yticks([0.5, 1.5, 2.5], ["pushed afterwards", "pushed per layer", "kernels"])
        axis.set_title(f"{mode}: last arrival after {result['overlapped_ms']:.0f} ms", fontsize=10)
    axes[-1, 0].set_xlabel("ms since the first kernel, by event times, emulated (dashed: the bound)")
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def draw(how: Callable[[Any, dict[str, Any]], None], results: dict[str, Any], target: Path, dpi: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    how(axes, results)
    figure.savefig(target, dpi=dpi, bbox_inches="tight")
    pyplot.close(figure)


def draw_peers(results: dict[str, Any], target: Path) -> None:
    draw(bars, results, target, 75)


PICTURES = {"peers": bars, "blocks": blocks, "projected": projected, "scale": scale, "dispatch": dispatch}


def main() -> None:
    directory = Path(sys.argv[1])
    for name, how in PICTURES.items():
        source = directory / f"{name}.json"
        if not source.exists():
            print(f"{source} is not there; nothing drawn of it")
            continue
        draw(how, json.loads(source.read_text()), directory / f"{name}.png", 120)
        print(directory / f"{name}.png")
    overlap = directory / "overlap.json"
    if overlap.exists():
        draw_timeline(json.loads(overlap.read_text())["modes"], directory / "overlap.png")
        print(directory / "overlap.png")


if __name__ == "__main__":
    main()
