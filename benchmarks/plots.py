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


def main() -> None:
    directory = Path(sys.argv[1])
    for name, how in (("peers", bars), ("blocks", blocks), ("projected", projected)):
        source = directory / f"{name}.json"
        if not source.exists():
            print(f"{source} is not there; nothing drawn of it")
            continue
        draw(how, json.loads(source.read_text()), directory / f"{name}.png", 120)
        print(directory / f"{name}.png")


if __name__ == "__main__":
    main()
