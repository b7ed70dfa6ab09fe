"""The table of aten ops in docs/emulated_ops.md: it holds for a sample of the ops, and counts a thousand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("expecttest", reason="PyTorch's test inputs need it")

TABLE = Path(__file__).resolve().parent.parent / "docs" / "emulated_ops.md"
EACH = 40  # of PyTorch's op descriptions, every so many

SAMPLE = f"""
from torch_llm_datadist import emulator
emulator.enable()
import torch, torch_npu
from torch_llm_datadist.emulator.op_table import report, samples, sweep
torch.set_num_threads(1)
with samples.on_the_host():
    found = samples.collect(samples.op_infos()[::{EACH}])
for name, verdict in sweep.sweep(found.calls).items():
    print("verdict", name, verdict.outcome in report.RUNS, verdict.why.split(chr(10))[0])
"""


def test_a_thousand_ops_run() -> None:
    found = re.search(r"\| \*\*run\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\* \|", TABLE.read_text())

    assert found is not None
    overloads, ops = map(int, found.groups())
    assert overloads >= ops >= 1000


def test_counts_are_those_of_the_lists() -> None:
    from torch_llm_datadist.emulator.op_table import report

    text = TABLE.read_text()
    found = re.search(r"\| \*\*run\*\* \| \*\*(\d+)\*\*", text)

    assert found is not None
    assert len(report.listed_as_running(text)) == int(found[1])


def test_a_sample_of_the_ops_does_what_the_table_says() -> None:
    from torch_llm_datadist.emulator.op_table import report

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAMPLE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    verdicts = [line.split(" ", 3)[1:] for line in done.stdout.splitlines() if line.startswith("verdict ")]
    assert len(verdicts) >= 30
    listed = report.listed_as_running(TABLE.read_text())
    wrong = [(name, why) for name, runs, why in verdicts if (runs == "True") != (name in listed)]
    assert not wrong, f"run `make op-table`, or mend these: {wrong}"
