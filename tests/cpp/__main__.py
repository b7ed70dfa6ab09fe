"""Builds the C++ tests in one variant and runs all of them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.cpp.build import HERE, VARIANTS, Variant, build

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:strict_init_order=1",
    "LSAN_OPTIONS": f"suppressions={HERE}/leaks.supp",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": f"suppressions={HERE}/threads.supp:halt_on_error=0:second_deadlock_stack=1",
}
PROGRAMS = (["units"], ["emulator_units"], ["smoke", "3", "5"], ["fuzz_plan", "0", "100000"])


def run(variant: Variant, folder: Path, command: list[str]) -> int:
    print("+", *command, flush=True)
    return subprocess.run(
        [*variant.runner, folder / command[0], *command[1:]], env={**OPTIONS, **os.environ}, timeout=1200
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cpp")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("program", nargs="*", help="one of them with its arguments; all when left out")
    args = parser.parse_args()
    variant = VARIANTS[args.variant]
    # The smoke test's members start each other: the kernel would have to know who runs them.
    commands = [program for program in PROGRAMS if not variant.runner or program[0] != "smoke"]
    commands = [args.program] if args.program else commands
    folder = build(variant, [command[0] for command in commands])
    failed = [command[0] for command in commands if run(variant, folder, command) != 0]
    print(f"{args.variant}: {'failed: ' + ', '.join(failed) if failed else 'all is well'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
