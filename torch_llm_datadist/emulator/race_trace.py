"""What a trace of the emulated runtime says: events, and what they are about."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Line = tuple[int, int]  # process, stream
Memory = tuple[int, int]  # process or 0, memfd: host memory is a process's own


def line_of(event: Event) -> Line:
    return event["pid"], event["args"]["stream"]


def memory_of(event: Event, file: int) -> Memory:
    return (0, file) if file else (event["pid"], 0)


def sync_of(event: Event) -> object:
    facts = event["args"]
    return tuple(facts["shared"]) if "shared" in facts else (event["pid"], facts["sync"], "")


def origin_text(event: Event) -> str:
    facts = event["args"]
    if event["cat"] == "host_work":
        where = f"by the host, on thread {event['tid']} of process {event['pid']}"
    else:
        where = (
            f"task {facts['number']} of stream {facts['stream']} of device {facts['device']} "
            f"of process {event['pid']}"
        )
    notes = "\n" + facts["notes"] if "notes" in facts else ""
    return f"{event['name']}, {where}, at {facts['begin'] / 1e9:.6f} s{notes}"


def read_trace(path: Path) -> Iterator[Event]:
    """The events of one process. A line that it did not finish is the last, and a warning says so."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip().rstrip(",")
            if text in ("[", "]", ""):
                continue
            try:
                event = json.loads(text)
            except ValueError:
                warnings.warn(
                    f"{path} is cut off in line {number}: what its process did after that is not looked at",
                    stacklevel=2,
                )
                return
            yield event
