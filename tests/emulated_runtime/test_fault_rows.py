"""Every fault reaches a process both ways: by its environment, and while it runs, from another process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torch_llm_datadist.emulator import faults

from .acl_calls import Acl
from .acl_harness import MIB, ROOT, UNWATCHED
from .fault_rows import ROWS, Facts


class Maker:
    """Forks a process per row: to start each of them would take longer than all the rows."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.emulated_runtime.fault_rows"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **UNWATCHED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = Facts(*(int(word) for word in self.asked("facts").split()))

    def asked(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    made = Maker()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.mark.parametrize("way", ["by the environment", "from another process"])
@pytest.mark.parametrize("name", ROWS)
def test_fault_reaches_a_process(acl: Acl, maker: Maker, name: str, way: str) -> None:
    by_environment = way == "by the environment"
    words = ROWS[name].words.format(**vars(maker.facts)) if by_environment else ""
    memory = acl.malloc(2 * MIB)
    key = acl.export(memory, 2 * MIB, flags=0)

    up, pid = maker.asked(f"{name}: {words}").split()
    assert up == "up"
    acl.aclrtIpcMemSetImportPid(key, (ctypes.c_int32 * 1)(int(pid)), 1)
    if not by_environment:
        ROWS[name].arm(faults.of(int(pid)), maker.facts)

    assert maker.asked(key.hex()) == "seen"
