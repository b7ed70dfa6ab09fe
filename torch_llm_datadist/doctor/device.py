"""The device at work, in processes of their own: what hangs or crashes there is told here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from torch_llm_datadist.doctor.finding import Finding, broken, ok

_COMMAND = (sys.executable, "-m", "torch_llm_datadist.doctor.trial")
_LAST_LINES = 3


def examine(timeout_s: float) -> Iterator[Finding]:
    name = "a transfer"
    try:
        status, said, complaint = _run(timeout_s)
    except subprocess.TimeoutExpired:
        yield broken(
            name,
            f"nothing after {timeout_s:g} s",
            "see with `npu-smi info` who uses the device",
        )
        return
    if status != 0:
        last = " | ".join((complaint or said).strip().splitlines()[-_LAST_LINES:])
        yield broken(
            name,
            f"status {status}: {last}",
            "`python -m torch_llm_datadist.doctor.trial` says all of it",
        )
        return
    yield ok(name, said.strip())


def _run(timeout_s: float) -> tuple[int, str, str]:
    """Status, stdout and stderr. Nothing that it started is left when it takes too long."""
    with subprocess.Popen(
        _COMMAND,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as trial:
        try:
            said, complaint = trial.communicate(timeout=timeout_s)
        except BaseException:  # Ctrl-C, too, which reaches this session only
            if trial.returncode is None:
                os.killpg(trial.pid, signal.SIGKILL)
            raise
        return trial.returncode, said, complaint
