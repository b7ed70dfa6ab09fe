"""torch_npu's ``empty_cache`` holds the GIL while it waits for its streams. A peer whose first push on a link
begins meanwhile must not need this process's Python for it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.forwards import Receiver, Sender
from tests.transfers import BLOCK_BYTES, BLOCKS, LAYERS

VALUE = 50


def start(state, cluster_id: int, device: int) -> int:
    port = instances.start(state, cluster_id, device)
    instances.register(state, cluster_id, 2 * LAYERS, BLOCKS, BLOCK_BYTES)
    return port


def prepare(state) -> int:
    torch.npu.set_device(0)
    state.sender = Sender(state, LAYERS)
    state.task = state.sender.prepare(2, [0], [3])
    return state.task.ticket


def push(state) -> int:
    """The first thing that moves on this link: memory is mapped, and streams are made for it."""
    state.sender.binding.bind([state.task])
    state.sender.value.fill_(VALUE)
    state.sender.forward()
    torch.npu.synchronize(0)
    return int(state.sender.status.item())


def hold_the_gil_until_it_arrived(state, ticket: int, entered: str) -> tuple[int, float, int]:
    """Status, seconds within ``empty_cache``, and a byte of the last layer."""
    torch.npu.set_device(1)
    receiver = Receiver(state, range(LAYERS))
    receiver.binding.bind([ticket])
    receiver.forward()
    del state.unused  # something to give back
    Path(entered).touch()
    began = time.monotonic()
    torch.npu.empty_cache()
    held = time.monotonic() - began
    code, seen = receiver.look()
    return code, held, int(seen[-1, 3, 0])


def allocate(state) -> None:
    state.unused = torch.zeros(1 << 22, device="npu:1")
    torch.npu.synchronize(1)


def test_a_first_push_arrives_at_a_process_that_holds_its_gil_until_then(peers, tmp_path: Path) -> None:
    prefill, decode = peers(2)
    prefill.call(start, 1, 0)
    port = decode.call(start, 2, 1)
    assert prefill.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    ticket = prefill.call(prepare)
    decode.call(allocate)
    entered = tmp_path / "entered"

    decode.send(hold_the_gil_until_it_arrived, ticket, str(entered))
    deadline = time.monotonic() + 60
    while not entered.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.5)  # it is in `empty_cache` by then, for as long as nothing arrives

    assert prefill.call(push) == 0
    code, held, byte = decode.answer()
    assert code == datadist.LLMStatusCode.LLM_SUCCESS
    assert held > 0.1, "empty_cache waited for nothing"
    assert byte == VALUE + LAYERS - 1
