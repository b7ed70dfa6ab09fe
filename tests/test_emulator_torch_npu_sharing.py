"""NPU tensors in the queues of torch.multiprocessing, in both modes of the allocator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.peers import Peer
from torch_llm_datadist import emulator

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
    settings = {
        "PYTORCH_NPU_ALLOC_CONF": f"expandable_segments:{expandable}",
        "OMP_NUM_THREADS": "1",
        # Else torch_npu's release_thread may be the last to let a received tensor go: see csrc/GOTCHAS.md.
        "TASK_QUEUE_ENABLE": "0",
    }

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


def record_behind_slow_kernel(state: SimpleNamespace) -> bytes:
    torch.npu.set_device(0)
    torch.npu.init()
    state.event = torch.npu.Event(interprocess=True)
    handle: bytes = state.event.ipc_handle()
    state.stream = torch.npu.current_stream()
    emulator.faults.freeze_stream(state.stream)
    state.event.record()
    return handle


def let_go(state: SimpleNamespace) -> None:
    emulator.faults.thaw_stream(state.stream)


def open_event(state: SimpleNamespace, handle: bytes) -> bool:
    torch.npu.set_device(0)
    state.event = torch.npu.Event.from_ipc_handle(torch.device("npu:0"), handle)
    state.event.wait()
    state.tensor = torch.ones(4, device="npu") * 3
    return torch.npu.current_stream().query()


def what_was_computed(state: SimpleNamespace) -> list[float]:
    return state.tensor.tolist()


def test_stream_waits_for_an_event_of_another_process(peers: Callable[[int], list[Peer]]) -> None:
    recorder, waiter = peers(2)
    handle = recorder.call(record_behind_slow_kernel)

    done_early = waiter.call(open_event, handle)
    recorder.call(let_go)

    assert not done_early
    assert waiter.call(what_was_computed) == [3, 3, 3, 3]
