"""Counts the instructions of the planner's paths with valgrind and compares them with what was recorded.

    python benchmarks/count_instructions.py [--record]

Fails when a path takes more than a tenth more than recorded. A change for the better is recorded with
``--record``; the figures belong to a compiler, which is recorded with them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "benchmarks"
RECORDED = Path(__file__).with_name("instructions.json")
MOST_GROWTH = 1.10


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def compiler_version() -> str:
    return (
        subprocess.run(
            [*compiler(), "-dumpfullversion", "-dumpmachine"], check=True, capture_output=True, text=True
        )
        .stdout.replace("\n", " ")
        .strip()
    )


def build(out: Path = BUILD / "count_instructions", optimize: str = "-O2") -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [path for part in ("messages", "plan") for path in sorted((ROOT / "csrc" / part).glob("*.cpp"))]
    sources = [Path(__file__).with_suffix(".cpp"), *parts]
    subprocess.run(
        [*compiler(), optimize, "-g", "-std=c++20", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(out)],
        check=True,
    )
    return out


def names(program: Path) -> list[str]:
    return subprocess.run([str(program)], capture_output=True, text=True).stdout.splitlines()


def count(program: Path, name: str) -> int:
    """Instructions of one round that finds the scratch memory there."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--toggle-collect=counted", "--callgrind-out-file=/dev/null",
         str(program), name],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise SystemExit(f"callgrind did not say what it collected:\n{done.stderr}")
    return int(found.group(1))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the figures instead of comparing them")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("count_instructions: valgrind is not installed (Debian: apt install valgrind)", file=sys.stderr)
        return 1
    program = build()
    found = {name: count(program, name) for name in names(program)}
    if options.record:
        RECORDED.write_text(json.dumps({"compiler": compiler_version(), "paths": found}, indent=1) + "\n")
        return 0
    return 1 if grown(found) else 0


def grown(found: dict[str, int]) -> list[str]:
    """The paths that take too much more than recorded, or that nobody recorded; prints all."""
    recorded = json.loads(RECORDED.read_text())
    if recorded["compiler"] != compiler_version():
        print(f"recorded with {recorded['compiler']}, this is {compiler_version()}")
    worse = []
    print(f"{'instructions':30s} {'recorded':>12s} {'now':>12s}")
    for name, now in found.items():
        before = recorded["paths"].get(name)
        print(f"{name:30s} {before if before is not None else 'never':>12} {now:12d}")
        if before is None or now > before * MOST_GROWTH:
            worse.append(name)
    if worse:
        print(f"more than {MOST_GROWTH:.0%} of what was recorded: {', '.join(worse)}", file=sys.stderr)
    return worse


if __name__ == "__main__":
    sys.exit(main())
