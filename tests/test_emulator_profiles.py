"""The plugin on other machines than the default one: older CANN and driver, another product."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two instances in one process, since a machine is chosen when a process starts.
PROGRAM = """
from types import SimpleNamespace
import torch
from tests import instances

here, there = SimpleNamespace(), SimpleNamespace()
instances.start(here, 1, 0)
port = instances.start(there, 2, 1)
instances.register(here, 10, 2, 8, 256)
instances.register(there, 20, 2, 8, 256)
assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
instances.wait_linked(there, 1)
torch.npu.set_device(0)
instances.push_blocks(here, 2, [1, 2], [5, 6])
print(torch.npu.get_device_name(0))
print(torch.equal(instances.content(there)[:, [5, 6]], instances.pattern(10, 2, 8, 256)[:, [1, 2]]))
here.datadist.finalize()
there.datadist.finalize()
"""


@pytest.mark.parametrize(
    ("product", "cann", "driver", "name"),
    [("A2", "8.5", "25.5", "Ascend910B3"), ("A3", "9.0", "26.0", "Ascend910_9391")],
)
def test_blocks_arrive_on_other_machines(
    tmp_path: Path, product: str, cann: str, driver: str, name: str
) -> None:
    machine = {"PROFILE": product, "CANN": cann, "DRIVER": driver}
    environment = {f"TORCH_LLM_DATADIST_EMULATE_{key}": value for key, value in machine.items()}

    script = tmp_path / "push.py"
    script.write_text(PROGRAM)

    done = subprocess.run(
        [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", str(script)],
        env={**os.environ, **environment, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [name, "True"]
