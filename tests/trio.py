"""A sender and two receivers of one process, for tests of captured graphs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import transfers
from tests.forwards import Forward, Sender, captured, eager
from tests.transfers import LAYERS
from torch_llm_datadist import LLMStatusCode

UNBOUND = LLMStatusCode.LLM_PARAM_INVALID
Trio = tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]
RUNS = {"eager": eager, "captured": captured}


@contextlib.contextmanager
def linked_trio() -> Iterator[Trio]:
    """A sender and two receivers."""
    here, there, elsewhere = (transfers.start(i + 1, i) for i in range(3))
    transfers.link(here, there)
    transfers.link(here, elsewhere)
    yield here, there, elsewhere
    for state in (here, there, elsewhere):
        state.datadist.finalize()


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    with linked_trio() as all_three:
        yield all_three


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    for device in range(3):
        torch.npu.synchronize(device)


def written(value: int) -> torch.Tensor:
    """What a sender's forward writes to its blocks, per tensor."""
    return torch.tensor(
        [(value + layer) % 256 for layer in range(LAYERS) for _ in range(2)], dtype=torch.uint8
    )


def send(sender: Sender, run: Forward, value: int, transfers_: list[datadist.Task]) -> None:
    sender.binding.bind(transfers_)
    sender.value.fill_(value)
    torch.npu.synchronize(sender.state.device)
    run()


def until_passed(device: torch.device, else_: str) -> None:
    """As ``torch.npu.synchronize``, which has no limit."""
    with torch.npu.device(device):
        passed = torch.npu.Event()
        passed.record()
    deadline = time.monotonic() + 20
    while not passed.query():
        assert time.monotonic() < deadline, else_
        time.sleep(0.001)


def until_ended(task: datadist.Task) -> None:
    deadline = time.monotonic() + 20
    while not task.state().has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.001)
