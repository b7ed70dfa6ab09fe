"""One edit that breaks one guarantee."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    breaks: str  # the guarantee, in words
    file: str  # under csrc, or in the package
    old: str  # occurs exactly once there
    new: str
    tests: str  # one of these must fail: "test_file.py", or "test_file.py -k expression"
    # Why no test can fail, for an edit that changes nothing that could be seen. It is not run.
    equivalent: str = ""

    @property
    def path(self) -> Path:
        return Path(self.file) if self.file.endswith(".py") else Path("csrc") / self.file

    @property
    def target(self) -> str:
        """What setup.py has to build."""
        return "emulator" if self.file.startswith(("emulator/", "emulator_hixl/")) else "aten"

    @property
    def selection(self) -> list[str]:
        """Arguments for pytest."""
        test, *options = shlex.split(self.tests)
        where = "tests/emulated_runtime" if self.target == "emulator" else "tests"
        return [f"{where}/{test}", *options]

    def edited(self, text: str) -> str:
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.path}: {self.old!r} occurs {count} times, not once")
        return text.replace(self.old, self.new)
