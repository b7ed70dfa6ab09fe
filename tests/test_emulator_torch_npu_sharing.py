"""NPU tensors in the queues of torch.multiprocessing, in both modes of the allocator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARING = """
import sys
from torch_llm_datadist import emulator
emulator.enable()
import torch, torch_npu
import torch.multiprocessing as multiprocessing

def child(given, back, device):
    tensor = given.get(timeout=50)
    back.put((str(tensor.device), tuple(tensor.stride()), tensor.flatten().tolist()))
    tensor.add_(10)
    torch.npu.synchronize(tensor.device.index)
    own = torch.full((4,), 6.0, device=f"npu:{device}")
    torch.npu.synchronize(device)
    back.put(own)
    given.get(timeout=50)  # the memory lives as long as its process

if __name__ == "__main__":
    device = int(sys.argv[1])
    context = multiprocessing.get_context("spawn")
    given, back = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(given, back, device))
    process.start()
    tensor = torch.arange(6.0, device="npu:0").view(2, 3).t()
    torch.npu.synchronize()
    given.put(tensor)
    print(back.get(timeout=50))
    received = back.get(timeout=50)
    print(received.device, (received.to("npu:0") * 2).tolist())
    print(tensor.flatten().tolist())
    del received
    torch.npu.ipc_collect()
    given.put(None)
    process.join(50)
    print(process.exitcode)
"""


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("device", [0, 1])
def test_tensors_go_through_queues_both_ways(expandable: bool, device: int, tmp_path: Path) -> None:
    script = tmp_path / "sharing.py"
    script.write_text(SHARING)
    settings = {"PYTORCH_NPU_ALLOC_CONF": f"expandable_segments:{expandable}", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, str(script), str(device)], env={**os.environ, **settings, "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "('npu:0', (1, 3), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0])",
        f"npu:{device} [12.0, 12.0, 12.0, 12.0]",
        "[10.0, 13.0, 11.0, 14.0, 12.0, 15.0]",
        "0",
    ]
