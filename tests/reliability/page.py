"""``python -m tests.reliability.page RESULTS... PAGE``: from what pytest wrote (--junitxml) to the page."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.reliability.cases import CASES, ENDS_WITHIN_S, FAULTS, KEEP_ALIVE_S, MOST_PAUSE_S, STAGES


class Row(NamedTuple):
    fault: str
    stage: str
    saw: str
    after_s: str
    usable: str


HEAD = f"""# When a peer fails

Made by `make reliability` from a run of `tests/test_reliability.py` and
`tests/test_reliability_across_hosts.py`; do not edit. One process of three is killed, frozen or cut off at
each stage. The table says what the survivor was told, after how many seconds, and what was used right after
that, and worked. Meanwhile the survivor went on pushing to the third process, and no two of these pushes were
more than {MOST_PAUSE_S:.0f} s apart. `keep_alive_ms` is {KEEP_ALIVE_S * 1000:.0f} (the default is 3000); the
limits of `link_clusters` and `unlink_clusters` are 1500 ms. A case that takes longer than
{ENDS_WITHIN_S:.0f} s fails, and so does one with another code.

A peer on the same host is noticed at once when it dies, by its pidfd, and after `keep_alive_ms` when it
freezes. Its memory can be written all that time: a push that ended before the link was lost has arrived.
Those that are cut off are on emulated hosts with a network of their own each, linked over NIXL by TCP, with
the default `keep_alive_ms`: nobody tells of a death or a freeze there, so that it is what ends a link,
whatever happened.
"""


def results(paths: list[Path]) -> list[Row]:
    """The rows that the runs recorded, in the order of the cases; of a case that is there twice the last."""
    found = {}
    for case in (case for path in paths for case in ElementTree.parse(path).iter("testcase")):
        properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        if "stage" in properties:
            row = Row(*(properties[field] for field in Row._fields))
            found[row.fault, row.stage] = row
    missing = [case for case in CASES if case not in found]
    if missing:
        raise SystemExit(f"{len(missing)} cases have not passed, the first is {missing[0]}")
    return [found[case] for case in CASES]


def record(record_property: Callable[[str, object], None], row: Row) -> None:
    for name, value in row._asdict().items():
        record_property(name, value)


def render(rows: list[Row]) -> str:
    lines = [HEAD]
    lines += [f"* **{fault}**: {what}" for fault, what in FAULTS.items()]
    lines.append("")
    lines += [f"* **{stage}**: {what}" for stage, what in STAGES.items()]
    lines += ["", "| Fault | Stage | The survivor saw | after s | Still usable |", "|---|---|---|--:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of the page's table."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[1:]]


def main() -> None:
    *sources, page = map(Path, sys.argv[1:])
    page.write_text(render(results(sources)))


if __name__ == "__main__":
    main()
