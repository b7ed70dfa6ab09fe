"""The traces of running processes, read piece by piece."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch_llm_datadist.emulator.race_trace import Event


class TraceTail:
    """What was added to the traces in a directory since the last look. The file of a process that has ended
    is deleted with that look, so a long run keeps little on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: dict[Path, int] = {}

    def read(self) -> list[Event]:
        events: list[Event] = []
        for path in sorted(self.directory.glob("trace.*.json")):
            has_ended = not _runs(path)
            with path.open("rb") as file:
                file.seek(self._seen.get(path, 0))
                lines = file.readlines()
            # The last line may be half written.
            whole = [line for line in lines if line.endswith(b"\n")]
            self._seen[path] = self._seen.get(path, 0) + sum(map(len, whole))
            events += [json.loads(text) for line in whole if (text := line.strip(b",\n")) != b"["]
            if has_ended:
                path.unlink()
                del self._seen[path]
        return events


def _runs(path: Path) -> bool:
    try:
        os.kill(int(path.name.split(".")[1]), 0)
    except ProcessLookupError:
        return False
    return True
