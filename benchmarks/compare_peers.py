"""This library beside what one would use instead, on the same pieces, interleaved round by round.

    make peers && python -m benchmarks.compare_peers [--cases abcdef] [--rounds N] [--json FILE [--add]]

Each round starts every library anew in two fresh processes, one library after the other, and takes some runs
of it; a figure is the median of the rounds' medians. Every byte of every run is verified. The last column is
the time of one thread's memcpy of the same pieces over the library's: above 1, it is faster than memcpy.
Engines on TCP run in a network namespace with reno where the machine lets us make one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from . import report
from .cases import CASES

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
PYTHON = PEERS / "venv" / "bin" / "python"
PACKAGES = {
    "nixl-shm": "nixl-cu12",
    "nixl-tcp": "nixl-cu12",
    "mooncake-tcp": "mooncake-transfer-engine-non-cuda",
    "gloo": "torch",
}
RUNS = {"a": 3, "b": 10, "c": 4, "d": 4, "e": 30, "f": 50}
WITHIN_S = 180
# bbr, which some machines use, paces loopback.
RENO = 'ip link set lo up && echo reno > /proc/sys/net/ipv4/tcp_congestion_control && exec "$@"'
IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", RENO, "sh"]


def namespace() -> list[str]:
    """What to put before a command so that it runs in a network of its own; nothing where that is refused."""
    try:
        works = subprocess.run([*IN_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return IN_NAMESPACE if works else []


def run_peer(name: str, case: str, runs: int, seed: int, prefix: list[str]) -> list[float] | str:
    """The seconds of its runs, or what went wrong."""
    libraries = [
        str(PEERS / "root" / where / f"{os.uname().machine}-linux-gnu") for where in ("usr/lib", "lib")
    ]
    command = [*prefix, str(PYTHON), "-m", "benchmarks.peers.engine", name, case, str(runs), str(seed)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
                "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]),
            },
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done within {WITHIN_S} s"
    try:
        seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
        return seconds
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or ["no output"]
        return lines[-1][:120]


def run_ours(case: str, runs: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "torch_llm_datadist", "run", "-m", "benchmarks.peers.ours"]
    done = subprocess.run(
        [*command, case, str(runs)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=WITHIN_S
    )
    seconds: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def version_of(package: str) -> str:
    if package == "torch":
        return metadata.version("torch")
    done = subprocess.run(
        [str(PYTHON), "-c", f"from importlib.metadata import version; print(version('{package}'))"],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "not installed"


def measure(case: str, rounds: int, runs: int, prefix: list[str]) -> dict[str, Any]:
    medians: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for seed in range(rounds):
        for name, seconds in run_ours(case, runs).items():
            medians.setdefault(name, []).append(statistics.median(seconds))
        for name in PACKAGES:
            found = run_peer(name, case, runs, seed, prefix if "tcp" in name or name == "gloo" else [])
            if isinstance(found, str):
                failures[name] = found
            else:
                medians.setdefault(name, []).append(statistics.median(found))
    memcpy = statistics.median(medians["memcpy"])
    engines = {
        name: {
            "median_us": statistics.median(values) * 1e6,
            "least_us": min(values) * 1e6,
            "most_us": max(values) * 1e6,
            "rounds": len(values),
            "gb_per_s": CASES[case].total_bytes / statistics.median(values) / 1e9,
            "to_memcpy": memcpy / statistics.median(values),
        }
        for name, values in medians.items()
    }
    return {"case": str(CASES[case]), "engines": engines, "failures": failures}


def print_case(name: str, result: dict[str, Any]) -> None:
    print(f"({name}) {result['case']}")
    for engine, row in sorted(result["engines"].items(), key=lambda item: item[1]["median_us"]):
        print(
            f"    {engine:14s} {row['median_us']:9.0f} us ({row['least_us']:.0f} to {row['most_us']:.0f}) "
            f"{row['gb_per_s']:7.2f} GB/s {row['to_memcpy']:7.2f} x memcpy"
        )
    for engine, why in result["failures"].items():
        print(f"    {engine:14s} failed: {why}")
    sys.stdout.flush()


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--cases", default="abcdef")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, help="per round; by default a few")
    parser.add_argument("--add", action="store_true", help="keep the other cases that the JSON file has")
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit("compare_peers: the peers are not installed; run `make peers`")
    prefix = namespace()
    facts = report.machine()
    report.print_head(facts)
    print("others: " + ", ".join(f"{name} {version_of(package)}" for name, package in PACKAGES.items()))
    network = "a network namespace with reno" if prefix else "the machine's own loopback"
    print(
        f"TCP in {network}; {options.rounds} rounds of fresh processes; ours is emulated device memory, "
        "theirs is CPU memory"
    )
    results: dict[str, Any] = {"machine": facts, "network": network, "cases": {}}
    if options.add and options.json is not None and options.json.exists():
        results["cases"] = json.loads(options.json.read_text())["cases"]
    for case in options.cases:
        results["cases"][case] = measure(case, options.rounds, options.runs or RUNS[case], prefix)
        print_case(case, results["cases"][case])
        report.write(options.json, results)


if __name__ == "__main__":
    main()
