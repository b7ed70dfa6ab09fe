"""What a transfer needs ends before it: Python's last references to a cache or an instance, the instance,
torch_npu, the interpreter. Nothing crashes or hangs, and no byte lands in memory of somebody else."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import instances, transfers
from tests.transfers import BLOCK_BYTES, BLOCKS, until
from torch_llm_datadist import LLMDataDist, ops
from torch_llm_datadist.emulator import faults

SRC, DST = [0, 1, 5], [3, 4, 2]
MINE = 1  # what fills the memory of somebody else
Pair = tuple[SimpleNamespace, SimpleNamespace]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(here, there)
    found = [weakref.ref(state.datadist) for state in (here, there)]
    yield here, there
    faults.reset()
    for device in range(2):
        torch.npu.synchronize(device)
    for reference in found:
        instance = reference()
        assert instance is not None, "an instance lives until it is finalized"
        instance.finalize()


def forget(state: SimpleNamespace, what: str) -> LLMDataDist | None:
    """Drops the last references outside of the library; the instance, where it was not among them."""
    if what == "an unregistered cache":
        state.manager.unregister_cache(state.cache.cache_id)
    state.raw = state.cache = None
    left = state.datadist
    if what == "the instance":
        left = state.manager = state.datadist = None
    gc.collect()
    return left  # type: ignore[no-any-return]


def taken_by_others(device: int) -> list[torch.Tensor]:
    """As many tensors of the same size as would take each place that was freed."""
    others = [
        torch.full((BLOCKS, BLOCK_BYTES), MINE, dtype=torch.uint8, device=f"npu:{device}") for _ in range(64)
    ]
    torch.npu.current_stream(device).synchronize()
    return others


@pytest.mark.parametrize("what", ["the tensors", "an unregistered cache", "the instance"])
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_queued_push_needs_nobody_to_hold_what_it_touches(pair: Pair, end: str, what: str) -> None:
    here, there = pair
    expected, sent = transfers.restore(there), transfers.restore(here)
    stream = torch.npu.Stream(0)
    faults.freeze_stream(stream)
    with torch.npu.device(0), torch.npu.stream(stream):
        link = here.datadist.link_id(2)
        ids = torch.tensor(SRC), torch.tensor(DST)
        ops.push_blocks(here.status, here.cache.tensors, *ids, link=link, timeout_ms=60_000)
    state = here if end == "sender" else there
    places = {tensor.data_ptr() for tensor in state.raw}

    left = forget(state, what)
    others = taken_by_others(state.device)

    assert places.isdisjoint(tensor.data_ptr() for tensor in others)
    assert not stream.query()
    faults.thaw_stream(stream)
    stream.synchronize()
    assert here.status.item() == 0
    if end == "sender":
        expected[:, DST] = sent[:, SRC]
        assert torch.equal(instances.content(there), expected)
    torch.npu.synchronize(state.device)
    assert all(bool((tensor == MINE).all()) for tensor in others)
    if left is not None:
        manager = left.cache_manager
        until(lambda: not manager.held_caches())  # and then all of it is given back


PROGRAM = r"""
import atexit, os
def last():
    end("after torch_npu")
{first_of_all}
from torch_llm_datadist import emulator
emulator.enable()
import torch, torch_npu
from tests import transfers
from torch_llm_datadist import ops
from torch_llm_datadist.emulator import faults
here, there = transfers.start(1, 0), transfers.start(2, 1)
transfers.link(here, there)

# Once modules are torn down there is no stdout, but this.
def end(when, instances=(here.datadist, there.datadist), write=os.write):
    for instance in (*instances, *instances):
        instance.finalize()
    write(1, f"finalized {{when}}\n".encode())

def queue():
    held = faults.hold_copy(after=0, address=here.raw[0].data_ptr(), direction="peer")
    with torch.npu.device(0):
        ids = torch.tensor([0]), torch.tensor([1])
        ops.push_blocks(here.status, here.cache.tensors, *ids, link=here.datadist.link_id(2))
    held.wait()
    print("queued", flush=True)

class Owner:
    end = staticmethod(end)
    def __del__(self):
        self.end("by __del__")

{then}
"""

BEFORE_TORCH_NPU = "atexit.register(last)"


@pytest.mark.parametrize(
    ("first_of_all", "then", "said"),
    [
        (
            BEFORE_TORCH_NPU,
            "atexit.register(end, 'before torch_npu'); queue()",
            ["queued", "finalized before torch_npu", "finalized after torch_npu"],
        ),
        (BEFORE_TORCH_NPU, "queue()", ["queued", "finalized after torch_npu"]),
        ("", "owner = Owner(); queue()", ["queued", "finalized by __del__"]),
    ],
    ids=["before and after torch_npu's hook", "only after torch_npu's hook", "as the interpreter ends"],
)
def test_finalize_at_exit_in_any_order_with_torch_npus_own_shutdown(
    first_of_all: str, then: str, said: list[str]
) -> None:
    """Twice each time. What is queued stands still: it ends with the process, which does not wait for it."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first_of_all=first_of_all, then=then)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout.splitlines() == said, done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
