"""Races between streams, of one process or of several, found in the traces that they wrote.

    TORCH_LLM_DATADIST_EMULATE_TRACE=traces  python ...        # any number of processes
    python -m torch_llm_datadist.emulator.races traces         # exit status 1 when there are any

Two tasks race when they touch the same bytes, one of them writing, and nothing orders them: no event,
notify, value wait, host wait or submission. When they really ran is of no account. The rules are those of the
checker in a process (``TORCH_LLM_DATADIST_EMULATE_RACES=1``), but here each process is seen: memory and words
are the same to exporters and importers, and what one process told another on a device is known. All hosts
count as one, in real time: a wait that returned orders all that was submitted afterwards, wherever. A value
wait whose write is in no trace (its process was killed, or not traced) counts as ordered by the hosts: it
comes after all that has ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from torch_llm_datadist.emulator.race_checker import Checker, Race
from torch_llm_datadist.emulator.race_trace import read_trace

__all__ = ["Race", "find_races", "main", "read_trace"]


def find_races(paths: Iterable[Path | str]) -> list[Race]:
    """The races in the traces of processes that ran at the same time on one host; directories or files."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("trace.*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no trace.<pid>.json in {', '.join(map(str, paths))}")
    return Checker().run(event for file in files for event in read_trace(file))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_llm_datadist.emulator.races",
        description="Finds tasks of several streams and processes that touch the same bytes in no order.",
    )
    parser.add_argument("traces", nargs="+", help="directories with traces, or trace files")
    races = find_races(parser.parse_args(arguments).traces)
    for number, race in enumerate(races, 1):
        print(f"race {number}: {race}")
    print(f"{len(races)} races")
    return 1 if races else 0


if __name__ == "__main__":
    sys.exit(main())
