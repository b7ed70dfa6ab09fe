"""``blocks_in_doubt``: what a transfer that failed may still write, and when it is over."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

import torch_llm_datadist as datadist
from tests import links
from tests.peers import Peer

WITHIN_S = 20.0


def prepare(state: SimpleNamespace) -> int:
    key = datadist.BlocksCacheKey(2)
    state.task = state.datadist.cache_manager.prepare_push(key, state.cache, [0, 1], [2, 3])
    return state.task.ticket  # type: ignore[no-any-return]


def expect(state: SimpleNamespace, ticket: int, blocks: list[int], timeout_s: float) -> int:
    """The application assigns the blocks and binds the ticket; returns the link."""
    state.link = state.datadist.link_id(1)
    state.datadist.cache_manager.assign_blocks(ticket, state.cache, blocks)
    state.binding = datadist.Binding(state.device, range(1))
    state.binding.bind([ticket], timeout_s=timeout_s)
    return state.link  # type: ignore[no-any-return]


def doubts(state: SimpleNamespace) -> list[tuple[list[int], int | None]]:
    found = state.datadist.cache_manager.blocks_in_doubt(getattr(state, "link", None))
    return [(list(doubt.blocks), doubt.ticket) for doubt in found]


def until_there_are(state: SimpleNamespace, count: int) -> list[tuple[list[int], int | None]]:
    deadline = time.monotonic() + WITHIN_S
    while len(found := doubts(state)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.fixture
def pair(peers: Any) -> tuple[Peer, Peer]:
    """The sender, cluster 1, and the receiver."""
    sender, receiver, _ = links.linked_pair(peers)
    return sender, receiver


EVERYTHING = list(range(links.BLOCKS))


@pytest.mark.parametrize("how_it_ends", ["thaw", "kill"])
def test_blocks_stay_in_doubt_until_a_lost_sender_has_confirmed_or_is_gone(
    pair: tuple[Peer, Peer], how_it_ends: str
) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare)
    receiver.call(expect, ticket, [2, 3], 60.0)
    assert receiver.call(doubts) == []

    sender.freeze()
    receiver.call(links.wait_unlinked, 1, 10)

    # That of the ticket, and what the sender may have had under way without one.
    assert receiver.call(until_there_are, 2) == [([2, 3], ticket), (EVERYTHING, None)]
    getattr(sender, how_it_ends)()
    assert receiver.call(until_there_are, 0) == []


def hold_control_thread(state: SimpleNamespace) -> None:
    state.go_on = threading.Event()
    state.datadist._running.links._loop.post(lambda: state.go_on.wait(WITHIN_S))


def doubts_at_the_failure_of(state: SimpleNamespace, ticket: int) -> list[tuple[list[int], int | None]]:
    """What an application sees that looks at once."""
    deadline = time.monotonic() + WITHIN_S
    while not datadist.ticket_state(ticket).code:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    found = doubts(state)
    state.go_on.set()
    return found


def test_blocks_are_in_doubt_from_when_their_ticket_fails_not_from_when_python_learns_of_the_link(
    pair: tuple[Peer, Peer],
) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare)
    receiver.call(expect, ticket, [2, 3], 60.0)
    receiver.call(hold_control_thread)

    sender.freeze()

    assert ([2, 3], ticket) in receiver.call(doubts_at_the_failure_of, ticket)


def test_a_ticket_that_arrived_leaves_nothing_in_doubt(pair: tuple[Peer, Peer]) -> None:
    sender, receiver = pair
    ticket = sender.call(prepare)
    receiver.call(expect, ticket, [2, 3], 60.0)

    sender.call(send)

    receiver.call(until_arrived, ticket)
    assert receiver.call(doubts) == []


def send(state: SimpleNamespace) -> None:
    import torch

    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(1))
    binding.bind([state.task])
    status = torch.zeros(1, dtype=torch.int32).npu()
    datadist.ops.push_layer(status, status, 0, binding.id)
    datadist.ops.finish(status, status, binding.id)
    torch.npu.synchronize()
    assert status.item() == 0


def until_arrived(state: SimpleNamespace, ticket: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while datadist.ticket_state(ticket) != (True, 0, ""):
        assert time.monotonic() < deadline, datadist.ticket_state(ticket)
        time.sleep(0.005)


def refuse(state: SimpleNamespace) -> list[str]:
    manager = state.datadist.cache_manager
    calls = [
        lambda: manager.assign_blocks(0, state.cache, [0]),
        lambda: manager.assign_blocks(True, state.cache, [0]),
        lambda: manager.assign_blocks(5, None, [0]),
        lambda: manager.assign_blocks(5, state.cache, [links.BLOCKS]),
        lambda: manager.blocks_in_doubt("1"),
    ]
    found = []
    for call in calls:
        try:
            call()
            found.append("no error")
        except Exception as error:
            found.append(type(error).__name__)
    return found


def test_bad_arguments_are_refused(pair: tuple[Peer, Peer]) -> None:
    assert pair[1].call(refuse) == ["ValueError", "TypeError", "TypeError", "ParamInvalidError", "TypeError"]
