"""Hosts that stand still while their device goes on, and go on themselves after a while: what SIGSTOP does to
a process whose device is real.

``TORCH_LLM_DATADIST_TEST_STOP_S=10``, as ``make stops`` has it, makes the stops as long as that.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances, links
from tests.peers import Peer
from tests.test_blocks_in_doubt import doubts, expect, prepare, send, until_there_are
from torch_llm_datadist import LLMException
from torch_llm_datadist.emulator import faults

STOP_S = float(os.environ.get("TORCH_LLM_DATADIST_TEST_STOP_S", "0.3"))
WITHIN_S = 60.0
SRC, DST = [0, 1], [2, 3]
NEXT = 77  # what the receiver writes into the blocks once they are its own again


@pytest.fixture
def pair(peers: Any) -> tuple[Peer, Peer]:
    """The sender, cluster 1, and the receiver."""
    sender, receiver, _ = links.linked_pair(peers)
    return sender, receiver


def want_back(state: SimpleNamespace, ticket: int) -> list[int]:
    """Cancels; which blocks it says may still be written."""
    try:
        state.datadist.cache_manager.cancel(ticket, timeout_s=0.2)
    except LLMException as error:
        return sorted(block for doubt in error.blocks_in_doubt for block in doubt.blocks)
    return []


def reuse(state: SimpleNamespace) -> None:
    assert doubts(state) == []
    for raw in state.raw:
        raw[DST] = NEXT
    torch.npu.synchronize(state.device)


def push_and_tell(state: SimpleNamespace) -> str:
    return links.push(state, 2, SRC, DST).partition(":")[0]


def test_copies_that_a_stopped_sender_had_queued_reach_no_block_that_is_used_again(
    pair: tuple[Peer, Peer],
) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare)
    receiver.call(expect, ticket, DST, WITHIN_S)
    control = faults.of(sender.pid)
    held = control.hold_copy(0, direction="peer")
    sender.send(send_whatever_comes)
    held.wait()
    control.freeze_host()

    assert receiver.call(want_back, ticket) == DST
    held.disarm()  # the device goes on: what was queued lands now
    time.sleep(STOP_S)
    assert DST in [blocks for blocks, _ in receiver.call(doubts)]
    control.thaw_host()

    sender.answer(WITHIN_S)
    receiver.call(until_there_are, 0)
    receiver.call(reuse)
    time.sleep(0.05)
    expected = links.pattern(2)
    expected[:, DST] = NEXT
    assert torch.equal(receiver.call(instances.content), expected)


def send_whatever_comes(state: SimpleNamespace) -> None:
    """A cancel by the receiver ends it with a code."""
    try:
        send(state)
    except AssertionError:
        return


@pytest.mark.parametrize("what_goes_on", ["its device", "nothing"])
def test_a_push_to_a_stopped_receiver_arrives_or_is_reported(
    pair: tuple[Peer, Peer], what_goes_on: str
) -> None:
    sender, receiver = pair
    control = faults.of(receiver.pid)
    if what_goes_on == "nothing":
        receiver.freeze()
    else:
        control.freeze_host()

    began = time.monotonic()
    said = [sender.call(push_and_tell)]
    while time.monotonic() - began < STOP_S:
        said.append(sender.call(push_and_tell))
        time.sleep(0.01)
    if what_goes_on == "nothing":
        receiver.thaw()
    else:
        control.thaw_host()

    assert set(said) <= {"LLM_SUCCESS", "LLM_NOT_YET_LINK", "LLM_TIMEOUT"}
    if STOP_S > 2 * links.KEEP_ALIVE_S:
        assert said[-1] == "LLM_NOT_YET_LINK"
    arrived: Any = receiver.call(instances.content)
    expected, before = links.pattern(1)[:, SRC], links.pattern(2)
    if "LLM_SUCCESS" in said:
        assert torch.equal(arrived[:, DST], expected)
    others = [block for block in range(links.BLOCKS) if block not in DST]
    assert torch.equal(arrived[:, others], before[:, others])
