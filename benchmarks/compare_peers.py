"""This library beside what one would use instead, on the same pieces, interleaved round by round.

    make peers
    python -m torch_llm_datadist run -m benchmarks.compare_peers [--cases abcdef] [--rounds N] [--check]
        [--json FILE [--add]] [--picture FILE.png]

Each round starts every library anew in two fresh processes, one library after the other, and takes some runs
of it; a time is the median of the rounds' medians, and p99 is that of all runs. Every byte of every run is
verified, memcpy's too. The last column is the time of one thread's memcpy of the same pieces over the
library's, a ratio in each round and the median of those: above 1, it is faster than memcpy. Engines on TCP
run in a network namespace with reno where the machine lets us make one.

``--check`` fails where a median misses what ``bounds.py`` wants, and where a library failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from . import bounds, report
from .cases import CASES
from .plots import draw_peers

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


Round = dict[str, list[float]]  # the seconds of each library's runs


def measure(case: str, rounds: int, runs: int, prefix: list[str]) -> dict[str, Any]:
    found: list[Round] = []
    failures: dict[str, str] = {}
    for _ in range(rounds):
        found.append(run_ours(case, runs))
        seed = random.randrange(1 << 32)
        for name in PACKAGES:
            seconds = run_peer(name, case, runs, seed, prefix if "tcp" in name or name == "gloo" else [])
            if isinstance(seconds, str):
                failures[name] = seconds
            else:
                found[-1][name] = seconds
    return {"case": str(CASES[case]), "engines": sum_up(CASES[case].total_bytes, found), "failures": failures}


def sum_up(total_bytes: int, rounds: list[Round]) -> dict[str, dict[str, Any]]:
    """Of each library. Ratios are of what stood side by side, in one round."""
    engines = {}
    for name in dict.fromkeys(name for round_ in rounds for name in round_):
        its = [round_ for round_ in rounds if name in round_]
        seconds = [statistics.median(round_[name]) for round_ in its]
        engines[name] = {
            "median_us": statistics.median(seconds) * 1e6,
            "least_us": min(seconds) * 1e6,
            "most_us": max(seconds) * 1e6,
            "p99_us": report.percentile([run for round_ in its for run in round_[name]], 0.99) * 1e6,
            "rounds": len(its),
            "runs": len(its[0][name]),  # of a round
            "gb_per_s": total_bytes / statistics.median(seconds) / 1e9,
            "to_memcpy": statistics.median(
                statistics.median(round_["memcpy"]) / mine for round_, mine in zip(its, seconds, strict=True)
            ),
            "to_ours": statistics.median(
                mine / statistics.median(round_["ours"]) for round_, mine in zip(its, seconds, strict=True)
            ),
        }
    return engines


def print_case(name: str, result: dict[str, Any]) -> None:
    print(f"({name}) {result['case']}")
    for engine, row in sorted(result["engines"].items(), key=lambda item: item[1]["median_us"]):
        print(
            f"    {engine:14s} {row['median_us']:9.0f} us ({row['least_us']:.0f} to {row['most_us']:.0f}, "
            f"p99 {row['p99_us']:.0f}, {row['rounds']} x {row['runs']} runs) "
            f"{row['gb_per_s']:7.2f} GB/s {row['to_memcpy']:7.2f} x memcpy"
            + ("" if engine in ("ours", "memcpy") else f", {row['to_ours']:.2f} x our time")
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
    parser.add_argument("--check", action="store_true", help="fail where a bound is missed")
    parser.add_argument("--picture", type=Path, help="of the ratios; needs matplotlib, see `make plots`")
    options = parser.parse_args()
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--picture needs matplotlib; `make plots` installs it, and draws what --json wrote")
    if not PYTHON.exists():
        raise SystemExit("compare_peers: the peers are not installed; run `make peers`")
    prefix = namespace()
    facts = report.machine()
    report.print_head(facts)
    versions = {name: f"{package} {version_of(package)}" for name, package in PACKAGES.items()}
    print("others: " + ", ".join(f"{name}: {version}" for name, version in versions.items()))
    network = "a network namespace with reno" if prefix else "the machine's own loopback"
    print(
        f"TCP in {network}; {options.rounds} rounds of fresh processes; ours is emulated device memory, "
        "theirs is CPU memory"
    )
    results: dict[str, Any] = {"machine": facts, "versions": versions, "network": network, "cases": {}}
    if options.add and options.json is not None and options.json.exists():
        results["cases"] = json.loads(options.json.read_text())["cases"]
    for case in options.cases:
        results["cases"][case] = measure(case, options.rounds, options.runs or RUNS[case], prefix)
        print_case(case, results["cases"][case])
        report.write(options.json, results)
    if options.picture:
        draw_peers(results, options.picture)
    if options.check:
        bounds.require(bounds.peers(results))


if __name__ == "__main__":
    main()
