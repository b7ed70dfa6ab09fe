"""What every benchmark prints first, and how it sums up its runs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--json", type=Path, help="write the results here, too")
    return options


EMULATED = "emulated device memory on a CPU; no figure of a real device"


def machine(where: str | None = None) -> dict[str, Any]:
    """``where``: what the figures are of, unless they are of what this process runs on."""
    from torch_llm_datadist import emulator

    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else ""
    return {
        "where": where or (EMULATED if emulator.is_enabled() else "Ascend NPUs"),
        "cpu": f"{model or platform.processor()} ({platform.machine()}), {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("torch", "torch_npu")}
        | {"python": platform.python_version(), "kernel": platform.release().split("-")[0]},
        "load": round(os.getloadavg()[0], 1),  # of the last minute
        "runnable": runnable(),  # now
    }


def runnable() -> int:
    """Threads of the machine that want a core at this moment, besides this one."""
    with open("/proc/loadavg") as loadavg:
        return int(loadavg.read().split()[3].split("/")[0]) - 1


def load(facts: dict[str, Any]) -> str:
    return (
        f"load of the minute before {facts['load']}, {facts['runnable']} other threads runnable at the start"
    )


def print_head(facts: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(facts["where"])
    print(f"{facts['cpu']}; {load(facts)}; {versions}")


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def sum_up(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median_us": statistics.median(seconds) * 1e6,
        "p99_us": percentile(seconds, 0.99) * 1e6,
        "runs": len(seconds),
    }


def write(path: Path | None, results: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
