"""Faults and delays by the Python interface of the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401

from torch_llm_datadist import emulator
from torch_llm_datadist.emulator import faults

DELAY_S = 0.1
THAW_BEHIND_A_FULL_QUEUE = Path(__file__).parent / "thaw_behind_a_full_queue.py"


@pytest.fixture(autouse=True)
def initialised() -> Iterator[None]:
    torch.npu.init()
    torch.npu.synchronize()
    yield
    faults.reset()


def seconds_of_a_copy(megabytes: int = 1) -> float:
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device="npu")
    target = torch.empty_like(source)
    torch.npu.synchronize()
    begun = time.monotonic()
    target.copy_(source)
    torch.npu.synchronize()
    return time.monotonic() - begun


def test_task_delay_slows_each_task() -> None:
    emulator.set_task_delay(DELAY_S)

    assert seconds_of_a_copy() >= DELAY_S


def test_bandwidth_slows_copies_by_their_size() -> None:
    emulator.set_bandwidth("d2d", 10 << 20)

    assert seconds_of_a_copy(megabytes=1) >= 0.1


def test_delay_stream_keeps_only_its_stream_busy() -> None:
    side = torch.npu.Stream()

    for seconds in (DELAY_S, 10 * DELAY_S, 100 * DELAY_S):  # a busy machine may be late with the look
        begun = time.monotonic()
        emulator.delay_stream(seconds, side)
        is_other_idle = torch.npu.current_stream().query()
        if is_busy := not side.query():
            break

    assert is_busy
    assert is_other_idle
    side.synchronize()
    assert time.monotonic() - begun >= seconds
    assert side.query()


def test_nth_call_fails_with_the_code() -> None:
    emulator.fail_next("aclrtGetMemInfo", 2, 507899)

    torch.npu.mem_get_info()
    with pytest.raises(RuntimeError, match="507899"):
        torch.npu.mem_get_info()
    torch.npu.mem_get_info()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no such entry point"):
        emulator.fail_next("aclrtFly", 1, 507899)
    with pytest.raises(ValueError, match="expected one of h2d, d2h, d2d, peer"):
        emulator.set_bandwidth("up", 1)


def test_operators_and_streams_are_named_as_torch_names_them() -> None:
    side = torch.npu.Stream()
    source = torch.ones(16, device="npu")
    torch.npu.synchronize()
    faults.freeze_stream(side)
    with torch.npu.stream(side):
        total = source + 1

    assert not side.query()
    faults.thaw_stream(side)
    side.synchronize()

    assert total.sum().item() == 32


def test_a_stream_thaws_while_all_that_is_queued_stands_still_behind_it() -> None:
    done = subprocess.run(  # what reads a handle there keeps the GIL: it would hang all of this process
        [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", THAW_BEHIND_A_FULL_QUEUE],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr


def test_limit_of_memory_is_torchs_out_of_memory_error() -> None:
    torch.npu.empty_cache()
    faults.limit(memory=4 << 20)

    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(64 << 20, dtype=torch.uint8, device="npu")

    faults.unlimit()
    torch.empty(64 << 20, dtype=torch.uint8, device="npu")


def test_preloaded_library_takes_the_place_of_a_function(tmp_path: Path) -> None:
    source, shim, program = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "program.py"
    source.write_text(
        "int aclrtSynchronizeStreamWithTimeout(void* stream, int timeout_ms) {\n"
        "  (void)stream, (void)timeout_ms;\n"
        "  return 507899;\n"
        "}\n"
    )
    program.write_text(
        "import os, torch, torch_npu\n"
        "try:\n"
        "    torch.ones(4).npu().cpu()\n"
        "except RuntimeError as error:\n"
        "    print('507899' in str(error), flush=True)\n"
        "os._exit(0)\n"  # what waits for streams at the end fails, too
    )
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", source, "-o", shim], check=True)

    done = subprocess.run(
        [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", program],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=400,
    )

    assert done.stdout.split() == ["True"], done.stderr
