"""Several devices in one process, and what they say about themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch_npu


def test_tensors_are_made_on_the_current_device() -> None:
    torch.npu.set_device(1)
    on_one = torch.ones(2, device="npu")
    with torch.npu.device(2):
        on_two = torch.ones(2, device="npu")
        inside = torch.npu.current_device()
    with torch.npu.device_of(on_two):
        of_tensor = torch.npu.current_device()
    with torch.device("npu:3"):
        on_three = torch.ones(2)

    assert [tensor.device.index for tensor in (on_one, on_two, on_three)] == [1, 2, 3]
    assert (inside, of_tensor, torch.npu.current_device()) == (2, 2, 1)


def test_op_runs_where_its_tensors_are() -> None:
    tensor = torch.arange(4, device="npu:2")

    result = (tensor * 2 + 1).sum()

    assert result.device.index == 2
    assert torch.npu.current_device() == 0
    assert result.item() == 16


def test_copies_between_devices_keep_the_values() -> None:
    source = torch.arange(12.0, device="npu:0").view(3, 4)

    there = source.to("npu:1", non_blocking=True)
    back = there.t().to("npu:0")
    there.copy_(source + 1)

    assert torch.equal(back.cpu(), source.cpu().t())
    assert torch.equal(there.cpu(), source.cpu() + 1)


def test_devices_of_one_host_reach_each_other() -> None:
    assert torch.npu.can_device_access_peer(0, 1)
    assert torch.npu.device_count() >= 2
    assert torch.accelerator.device_count() == torch.npu.device_count()


def test_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        torch.npu.set_device(torch.npu.device_count())


def test_properties_are_those_of_the_product() -> None:
    properties = torch.npu.get_device_properties(0)
    free, total = torch.npu.mem_get_info()

    assert properties.name == torch.npu.get_device_name(0)
    assert properties.name.startswith("Ascend910")
    assert properties.total_memory == total >= free
    assert (properties.cube_core_num, properties.vector_core_num) == (24, 48)
    assert properties.L2_cache_size > 0
    assert torch_npu.npu.get_soc_version() >= 220


def test_queries_about_the_device_answer() -> None:
    assert torch.npu.is_available()
    assert torch.npu.is_initialized()
    assert torch.npu.is_bf16_supported()
    assert 0 <= torch.npu.utilization() <= 100
    assert torch.npu.get_amp_supported_dtype() == [torch.float16, torch.bfloat16, torch.float32]
    assert torch.npu.check_uce_in_memory(0) == 0  # no memory errors
    assert torch_npu.get_npu_format(torch.ones(2, 2, device="npu")) == torch_npu.Format.ND


def test_core_limits_are_set_and_reset() -> None:
    torch.zeros(1, device="npu:3")
    torch.npu.set_device_limit(3, 12, 20)  # torch_npu allows it once per process
    limited = torch.npu.get_device_limit(3)
    stream = torch.npu.Stream()
    torch.npu.set_stream_limit(stream, 3, 4)
    of_stream = torch.npu.get_stream_limit(stream)
    torch.npu.reset_stream_limit(stream)

    assert limited == {"cube_core_num": 12, "vector_core_num": 20}
    assert of_stream == {"cube_core_num": 3, "vector_core_num": 4}
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 24, "vector_core_num": 48}


def test_modes_are_set_and_read() -> None:
    torch.npu.set_sync_debug_mode(1)
    mode = torch.npu.get_sync_debug_mode()
    torch.npu.set_sync_debug_mode(0)
    torch.npu.set_compile_mode(jit_compile=False)

    assert mode == 1
    assert torch.npu.is_jit_compile_false()


def test_deterministic_algorithms_compute() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        index = torch.tensor([1, 1], device="npu")
        added = torch.zeros(3, device="npu").index_add_(0, index, torch.ones(2, device="npu"))
    finally:
        torch.use_deterministic_algorithms(False)

    assert added.tolist() == [0, 2, 0]


def test_tensor_types_have_the_names_of_torch_npu() -> None:
    tensor = torch.ones(3).npu()

    assert tensor.is_npu
    assert tensor.type() == "torch.npu.FloatTensor"
    assert torch.npu.HalfTensor([1, 2]).dtype == torch.float16
    assert nn_parameter_device() == "npu"


def nn_parameter_device() -> str:
    return torch.nn.Linear(2, 2).npu().weight.device.type


RESTART = """
from torch_llm_datadist import emulator
emulator.enable()
import torch, torch_npu
tensor = torch.ones(3, device="npu")
torch.npu.synchronize()
torch.npu.stop_device(0)
torch.npu.restart_device(0)
print((tensor + 1).tolist())
"""


def test_device_can_be_stopped_and_restarted() -> None:
    """In a process of its own: what torch_npu's task queue holds at that moment is lost."""
    done = subprocess.run(
        [sys.executable, "-c", RESTART], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.splitlines() == ["[2.0, 2.0, 2.0]"], done.stderr
