"""The emulator's modes under torch: lazy, its own allocation per tensor, leaks, simulated time, ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import torch, torch_npu\n" + textwrap.dedent(program)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TORCH_LLM_DATADIST_EMULATE": "1",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def answer(program: str, **variables: str) -> str:
    done = run(program, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MISSING_WAIT = """
    a = torch.zeros(1 << 16, device="npu")
    torch.npu.synchronize()
    side = torch.npu.Stream()
    a.add_(1)
    {wait}
    with torch.npu.stream(side):
        b = a + 0
    side.synchronize()
    print(b.cpu().sum().item())
"""


@pytest.mark.parametrize(
    ("wait", "seen"),
    [
        pytest.param("", 0, marks=pytest.mark.races_on_purpose("the wait is left out")),
        ("side.wait_stream(torch.npu.current_stream())", 1 << 16),
    ],
)
def test_lazy_mode_shows_a_missing_wait_each_time(wait: str, seen: int) -> None:
    program = MISSING_WAIT.format(wait=wait)

    assert float(answer(program, TORCH_LLM_DATADIST_EMULATE_LAZY="1")) == seen


USED_AFTER_FREE = """
    import ctypes, os
    from torch_llm_datadist.emulator import libraries
    acl = libraries.runtime()
    stream = ctypes.c_void_p(torch.npu.Stream().npu_stream)
    a = torch.ones(1 << 12, device="npu")
    address, size = ctypes.c_void_p(a.data_ptr()), ctypes.c_size_t(1 << 12)
    torch.npu.synchronize()
    del a
    acl.aclrtMemsetAsync(address, size, 0, size, stream)
    print(acl.aclrtSynchronizeStream(stream), flush=True)
    os._exit(0)  # torch_npu does not outlive a failed stream
"""


@pytest.mark.parametrize(("poison", "code"), [("0", "0"), ("1", "507013")])
def test_with_an_allocation_per_tensor_a_use_after_free_is_found(poison: str, code: str) -> None:
    assert answer(USED_AFTER_FREE, TORCH_LLM_DATADIST_EMULATE_POISON=poison) == code


def test_a_clean_torch_program_leaks_nothing() -> None:
    done = run(
        """
        a = torch.ones(1 << 20, device="npu")
        stream, event = torch.npu.Stream(), torch.npu.Event()
        with torch.npu.stream(stream):
            event.record()
        host = torch.ones(8).pin_memory()
        a.add_(1).cpu()
        """,
        TORCH_LLM_DATADIST_EMULATE_LEAKS="1",
    )

    assert done.returncode == 0
    assert done.stderr == ""


def test_a_leak_beside_torch_is_told_apart_from_what_torch_npu_keeps() -> None:
    done = run(
        """
        import ctypes
        from torch_llm_datadist.emulator import libraries
        torch.ones(8, device="npu")
        acl = libraries.runtime()
        def forgets(): acl.aclrtMallocAlign32(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(4096), 0)
        forgets()
        """,
        TORCH_LLM_DATADIST_EMULATE_LEAKS="1",
    )

    assert done.returncode == 0
    assert "\\n  device memory: 1, 4096 bytes" in done.stderr.replace("\n", "\\n")
    assert "(kept by torch_npu for itself, no leak: streams: " in done.stderr


def test_simulated_time_of_torch_work() -> None:
    program = """
    import time
    import torch_llm_datadist.emulator as emulator
    from torch_llm_datadist.emulator import clock
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    torch.npu.synchronize()
    clock.reset()
    began = time.monotonic()
    start.record()
    emulator.delay_stream(100.0)
    end.record()
    torch.npu.synchronize()
    assert time.monotonic() - began < 50
    stream = clock.now(torch.npu.current_stream())
    print(round(start.elapsed_time(end) / 1000), round(clock.now()), round(stream))
    assert clock.profile()["peer_write_GBs"].value == 20.3
    """

    assert answer(program, TORCH_LLM_DATADIST_EMULATE_TIME="simulated") == "100 100 100"


def test_the_clock_says_when_time_is_real() -> None:
    program = """
    from torch_llm_datadist.emulator import clock
    torch.npu.synchronize()
    try:
        clock.now()
    except RuntimeError as error:
        print("TORCH_LLM_DATADIST_EMULATE_TIME=simulated" in str(error))
    """

    assert answer(program) == "True"


ENDS = {
    "plugin after torch_npu": "import torch_llm_datadist.ops; a = torch.ones(8, device='npu')",
    "work still queued": """
        import torch_llm_datadist.emulator as emulator
        emulator.delay_stream(0.2)
        torch.ones(8, device="npu")
    """,
    "tensors in a cycle": """
        import builtins
        builtins.kept = [torch.ones(8, device="npu")]
        builtins.kept.append(builtins.kept)
    """,
    "an exit handler that computes": """
        import atexit
        torch.ones(8, device="npu")
        atexit.register(lambda: torch.ones(8, device="npu").add(1).cpu())
    """,
}


@pytest.mark.parametrize("end", list(ENDS))
def test_a_torch_process_ends_cleanly(end: str) -> None:
    done = run(ENDS[end])

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr
