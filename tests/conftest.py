"""The whole suite runs on emulated NPUs where no Ascend device is, and unchanged on real ones.

pytest imports this file before any test module, so before torch; with pytest-xdist, in each worker.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.nodes import node as node
from tests.peers import peers as peers
from torch_llm_datadist import emulator
from torch_llm_datadist.emulator.quiet import HARMLESS

# A kernel's last bits depend on how many threads share it, and torch's pinning thread sets 1 for all that
# start after it: streams that ran before and after it would differ.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if emulator.is_wanted() or (emulator.is_wanted() is None and not emulator.has_npu()):
    emulator.enable()

# They test the emulator itself, which does not run in a process that uses a real device.
collect_ignore_glob = [] if emulator.is_enabled() else ["test_emulator*.py", "emulated_runtime"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_npu: cannot be emulated; FAIL_WITHOUT_NPU=1 fails it instead of skipping"
    )
    config.addinivalue_line(
        "markers", "races_on_purpose(why): touches memory in no order; left out under the race checker"
    )
    # pytest drops the filters that were set before it.
    for message in HARMLESS:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_npu") and emulator.is_enabled():
        if os.environ.get("FAIL_WITHOUT_NPU", "0") != "0":
            pytest.fail("needs a real NPU")
        pytest.skip("needs a real NPU")
    # Which test ran before in this process is chance, and so is the device that it left as the current one.
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "npu") and torch.npu.is_initialized():
        torch.npu.set_device(0)
