"""The race checker under torch: a missing wait is found, and the plugin for pytest says in which test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120

TESTS = """
    import pytest
    import torch
    import torch_npu

    @pytest.fixture
    def tensor():
        made = torch.zeros(16, device="npu")
        torch.npu.synchronize()
        yield made
        torch.npu.synchronize()

    def add_on_two_streams(tensor, order):
        side = torch.npu.Stream()
        with torch.npu.stream(side):
            tensor.add_(1)
        order(side)
        tensor.add_(1)
        torch.npu.synchronize()

    def test_no_wait(tensor):
        add_on_two_streams(tensor, lambda side: None)

    def test_no_wait_either(tensor):
        add_on_two_streams(tensor, lambda side: None)

    @pytest.mark.races_on_purpose("to see that it is left out")
    def test_no_wait_on_purpose(tensor):
        add_on_two_streams(tensor, lambda side: None)

    def test_wait_stream(tensor):
        add_on_two_streams(tensor, lambda side: torch.npu.current_stream().wait_stream(side))

    def test_wait_event(tensor):
        add_on_two_streams(tensor, lambda side: side.record_event().wait())

    def test_wait_for_an_event_of_another_stream(tensor):
        add_on_two_streams(tensor, lambda side: torch.npu.Stream().record_event().wait())

    def test_host_waits(tensor):
        add_on_two_streams(tensor, lambda side: side.synchronize())
"""


def test_the_plugin_for_pytest_fails_the_tests_that_race_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "test_streams.py"
    path.write_text(textwrap.dedent(TESTS))
    plugin = ["-p", "torch_llm_datadist.emulator.pytest_races", "--races-between-processes"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-c", os.devnull, "-p", "no:cacheprovider", *plugin, path],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TORCH_LLM_DATADIST_EMULATE": "1",
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert set(re.findall(r"^ERROR \S+::(\w+)", done.stdout, re.MULTILINE)) == {
        "test_no_wait",
        "test_no_wait_either",
        "test_wait_for_an_event_of_another_stream",
    }
    assert "6 passed, 1 deselected, 3 errors" in done.stdout
    # From the process itself, and from its trace.
    assert len(re.findall("the write by aten::add_.Tensor, task", done.stdout)) >= 12
    assert list(tmp_path.glob("races-*")) == []
