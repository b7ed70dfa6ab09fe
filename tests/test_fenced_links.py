"""Fenced links: a peer writes to staging only, so what a lost one still had queued reaches no block."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.peers import Peer
from torch_llm_datadist import BlocksCacheKey, LLMException, ops
from torch_llm_datadist.emulator import faults

WITHIN_S = 20.0


def link_fenced(state: SimpleNamespace, port: int) -> list[str]:
    _, each = state.datadist.link_clusters([instances.cluster(2, port)], timeout=10_000, fenced=True)
    return [code.name for code in each]


@pytest.fixture
def pair(peers: Any) -> tuple[Peer, Peer]:
    """The sender, cluster 1, and the receiver."""
    sender, receiver = peers(2)
    sender.call(links.start, 1, 0, {})
    port = receiver.call(links.start, 2, 1, {})
    assert sender.call(link_fenced, port) == ["LLM_SUCCESS"]
    receiver.call(instances.wait_linked, 1)
    return sender, receiver


def prepare(state: SimpleNamespace, src: list[int]) -> int:
    key = BlocksCacheKey(2)
    state.task = state.datadist.cache_manager.prepare_push(key, state.cache, src, src)
    return state.task.ticket  # type: ignore[no-any-return]


def push(state: SimpleNamespace, device: int) -> None:
    torch.npu.set_device(device)
    state.binding = datadist.Binding(device, range(1))
    state.binding.bind([state.task], timeout_s=WITHIN_S)
    state.sent = torch.zeros(1, dtype=torch.int32, device=f"npu:{device}")
    ops.push_layer(state.sent, state.sent, 0, state.binding.id)


def expect(state: SimpleNamespace, ticket: int, blocks: list[int], timeout_s: float) -> None:
    torch.npu.set_device(state.device)
    manager = state.datadist.cache_manager
    manager.assign_blocks(ticket, state.cache, blocks)
    assert manager.expect(ticket, blocks)
    state.binding = datadist.Binding(state.device, range(1))
    state.binding.bind([ticket], timeout_s=timeout_s)
    state.arrived = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")
    ops.wait_layer(state.arrived, state.arrived, 0, state.binding.id)


def arrived(state: SimpleNamespace) -> int:
    torch.npu.synchronize(state.device)
    return int(state.arrived.item())


def until_ended(state: SimpleNamespace, ticket: int) -> int:
    deadline = time.monotonic() + WITHIN_S
    while not (found := datadist.ticket_state(ticket)).has_ended:
        assert time.monotonic() < deadline, found
        time.sleep(0.002)
    return found.code


def test_expected_tickets_arrive(pair: tuple[Peer, Peer]) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare, [0, 3])

    receiver.call(expect, ticket, [5, 1], WITHIN_S)
    sender.call(push, 0)

    assert receiver.call(arrived) == 0
    expected = links.pattern(2)
    expected[:, [5, 1]] = links.pattern(1)[:, [0, 3]]
    assert torch.equal(receiver.call(instances.content), expected)


def one_sided(state: SimpleNamespace) -> list[str]:
    manager = state.datadist.cache_manager
    key = BlocksCacheKey(2)
    calls = [
        lambda: manager.push_blocks(key, state.cache, [0], [1]),
        lambda: manager.pull_blocks(key, state.cache, [0], [1]),
        lambda: manager.publish(state.raw[0], state.cache, None, 2),
        lambda: manager.prepare_push(key, state.cache, [0], [1], packed=False),
    ]
    said = []
    for call in calls:
        try:
            call()
            said.append("no error")
        except LLMException as error:
            said.append(f"{error.status_code.name}: {error}")
    return said


def test_one_sided_transfers_are_refused_and_expect_is_named(pair: tuple[Peer, Peer]) -> None:
    sender, receiver = pair
    said = sender.call(one_sided)

    for text in said[:3]:
        assert text.startswith("LLM_PARAM_INVALID"), text
        assert "is fenced" in text, text
        assert "expect" in text, text
    assert "is fenced" in said[3]
    assert torch.equal(receiver.call(instances.content), links.pattern(2))


def hold_next_copy(state: SimpleNamespace) -> None:
    state.held = faults.hold_copy(0, direction="peer", bytes=2 * links.BLOCK_BYTES * links.TENSORS)


def let_go(state: SimpleNamespace) -> None:
    state.held.disarm()


def until_held(state: SimpleNamespace) -> None:
    state.held.wait(WITHIN_S)


def reuse(state: SimpleNamespace, blocks: list[int], value: int) -> None:
    for raw in state.raw:
        raw[blocks] = value
    torch.npu.synchronize(state.device)


def doubts(state: SimpleNamespace) -> int:
    return len(state.datadist.cache_manager.blocks_in_doubt())


def until_drained(state: SimpleNamespace) -> None:
    deadline = time.monotonic() + WITHIN_S
    while state.datadist._running.instance.is_cache_in_use(state.cache.cache_id):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_copy_that_lands_after_the_deadline_reaches_no_block(pair: tuple[Peer, Peer]) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare, [0, 3])
    sender.call(hold_next_copy)
    sender.call(push, 0)  # it waits to be expected
    receiver.call(expect, ticket, [5, 1], 1.0)
    sender.call(until_held)

    assert receiver.call(arrived) != 0
    receiver.call(until_ended, ticket)
    assert receiver.call(doubts) == 0
    receiver.call(reuse, [5, 1], 77)
    sender.call(let_go)
    sender.call(until_drained)

    expected = links.pattern(2)
    expected[:, [5, 1]] = 77
    assert torch.equal(receiver.call(instances.content), expected)


def test_late_bytes_of_a_frozen_sender_reach_no_block_of_the_next_generation(pair: tuple[Peer, Peer]) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare, [0, 3])
    sender.call(hold_next_copy)
    receiver.call(expect, ticket, [5, 1], WITHIN_S)
    sender.call(push, 0)
    sender.call(until_held)
    sender.freeze()

    assert receiver.call(arrived) != 0  # the link ended: no sign of life
    receiver.call(until_ended, ticket)
    assert receiver.call(doubts) == 0
    receiver.call(reuse, [5, 1], 78)
    sender.thaw()
    sender.call(let_go)
    sender.call(until_drained)

    expected = links.pattern(2)
    expected[:, [5, 1]] = 78
    assert torch.equal(receiver.call(instances.content), expected)
