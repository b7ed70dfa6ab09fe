"""A captured graph whose peer died and was linked anew. A peer that dies is a process of its own."""

from __future__ import annotations

import torch

from tests import instances
from tests.forwards import Sender, captured
from tests.transfers import BLOCKS, LAYERS
from tests.trio import send, written
from torch_llm_datadist import LLMStatusCode, emulator


def start_sender(state) -> int:
    port = instances.start(state, 1, 0)
    instances.register(state, 1, 2 * LAYERS, BLOCKS, 256)
    state.sender = Sender(state, LAYERS)
    state.replay = captured(0, state.sender.forward)
    return port


def start_receiver(state) -> int:
    port = instances.start(state, 2, 1)
    instances.register(state, 2, 2 * LAYERS, BLOCKS, 256)
    return port


def replay_to(state, value: int, dst: list[int]) -> int:
    """Returns the status of a replay that sends block 0."""
    send(state.sender, state.replay, value, [state.sender.prepare(2, [0], dst)])
    torch.npu.synchronize(0)
    return int(state.sender.status.item())


def bind_and_hold(state) -> None:
    """The replay waits behind a slow kernel while the peer dies."""
    state.sender.binding.bind([state.sender.prepare(2, [0], [1])])
    torch.npu.set_device(0)
    emulator.delay_stream(2)  # a busy machine is late with a kill
    state.replay()


def held_status(state) -> int:
    torch.npu.synchronize(0)
    return int(state.sender.status.item())


def test_a_graph_goes_on_when_its_peer_died_and_was_linked_anew(peers) -> None:
    a, b, c = peers(3)
    a.call(start_sender)
    assert a.call(instances.link, 2, b.call(start_receiver)) == ["LLM_SUCCESS"]
    assert a.call(replay_to, 5, [3]) == 0
    assert torch.equal(b.call(instances.content)[:, 3, 0], written(5))
    a.call(bind_and_hold)
    b.kill()

    assert a.call(held_status) == LLMStatusCode.LLM_NOT_YET_LINK

    assert a.call(instances.link, 2, c.call(start_receiver)) == ["LLM_SUCCESS"]
    assert a.call(replay_to, 9, [4]) == 0
    content = c.call(instances.content)
    assert torch.equal(content[:, 4, 0], written(9))
    assert torch.equal(content[:, 1], instances.pattern(2, 2 * LAYERS, BLOCKS, 256)[:, 1])
