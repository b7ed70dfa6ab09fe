"""The device at work, in a process of its own: what hangs or crashes there is told here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from torch_llm_datadist.doctor.finding import Finding, broken, ok

_COMMAND = (sys.executable, "-m", "torch_llm_datadist.doctor.trial")
_LAST_LINES = 3


def examine(timeout_s: float) -> Iterator[Finding]:
    name = "a transfer"
    try:
        trial = subprocess.run(
            _COMMAND,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        yield broken(
            name,
            f"nothing after {timeout_s:g} s",
            "see with `npu-smi info` who uses the device",
        )
        return
    if trial.returncode != 0:
        said = " | ".join((trial.stderr or trial.stdout).strip().splitlines()[-_LAST_LINES:])
        yield broken(
            name,
            f"status {trial.returncode}: {said}",
            "`python -m torch_llm_datadist.doctor.trial` says all of it",
        )
        return
    yield ok(name, trial.stdout.strip())
