"""See the package."""

from __future__ import annotations

import argparse
import asyncio
import sys
from itertools import islice

from tests.soak.member import HANGS_AFTER_S
from tests.soak.schedule import WEIGHTS, Kind, steps
from tests.soak.soak import Soak

SABOTAGES = ["flip", "early", "reuse", "leak", "hang"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Random transfers and faults.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--procs", type=int, default=6)
    parser.add_argument("--calm-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--hangs-after", type=float, default=HANGS_AFTER_S, metavar="SECONDS")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="must be found")
    parser.add_argument(
        "--only", nargs="+", choices=[kind.name for kind in Kind], help="these kinds of steps, equally often"
    )
    parser.add_argument("--schedule", type=int, metavar="N", help="print the first N steps, and do nothing")
    args = parser.parse_args()
    if args.procs < 2:
        parser.error(f"--procs is {args.procs}, expected 2 at least")
    weights = {Kind[name]: 1.0 for name in args.only} if args.only else WEIGHTS
    if args.schedule is not None:
        for step in islice(steps(args.seed, args.procs, weights), args.schedule):
            print(step)
        return 0
    soak = Soak(
        args.seed, args.procs, args.seconds, args.calm_every, weights, args.sabotage, args.hangs_after
    )
    findings = asyncio.run(soak.run())
    print(f"seed {args.seed}, {args.procs} members, {findings.report()}")
    return 1 if findings.are_bad else 0


if __name__ == "__main__":
    sys.exit(main())
