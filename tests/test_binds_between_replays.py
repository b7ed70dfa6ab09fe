"""What ``bind`` does when the last replay is still under way, never comes, or is being captured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import torch_llm_datadist as datadist
from tests import transfers
from tests.forwards import Receiver, Sender, captured, eager
from tests.transfers import LAYERS
from tests.trio import Trio, send, until_ended, until_passed, written
from tests.trio import nothing_is_left_running as nothing_is_left_running
from tests.trio import trio as trio
from torch_llm_datadist import LLMStatusCode, ops


@contextmanager
def binding_elsewhere(
    binding: datadist.Binding, transfers_: list[datadist.Task | int]
) -> Iterator[threading.Event]:
    """Binds in another thread; set when that has returned."""
    is_bound = threading.Event()

    def bind() -> None:
        binding.bind(transfers_)
        is_bound.set()

    thread = threading.Thread(target=bind, daemon=True)
    thread.start()
    yield is_bound
    thread.join(20)


def test_bind_waits_for_the_last_replay_and_never_hands_it_the_next_request(trio: Trio) -> None:
    """The first replay stands behind another transfer when the second request is bound."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    receives = captured(1, receiver.forward)
    ahead, behind = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    first = ahead.prepare(2, [0], [5])
    behind.binding.bind([first.ticket])
    eager(1, behind.forward)()
    receiver.binding.bind(())
    receives()

    task = sender.prepare(2, [0], [2])
    with binding_elsewhere(receiver.binding, [task.ticket]) as is_bound:
        assert not is_bound.wait(0.05)
        send(ahead, eager(0, ahead.forward), 10, [first])
        assert is_bound.wait(20)
    assert receiver.look()[0] == 0
    receives()

    send(sender, eager(0, sender.forward), 90, [task])
    code, seen = receiver.look()
    assert code == 0
    assert torch.equal(seen[:, 2, 0], written(90))


def test_bind_gives_up_on_a_replay_that_never_comes_and_unbind_helps(trio: Trio) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    replay, receives = captured(0, sender.forward), captured(1, receiver.forward)
    lost = sender.prepare(2, [0], [2])
    receiver.binding.bind([lost.ticket])
    sender.binding.bind([lost])

    for binding in (sender.binding, receiver.binding):
        with pytest.raises(datadist.LLMException, match=r"call unbind\(\) first") as raised:
            binding.bind((), timeout_s=0.05)
        assert raised.value.status_code == LLMStatusCode.LLM_TIMEOUT
        binding.unbind()
    until_ended(lost)

    task = sender.prepare(2, [0], [3])
    receiver.binding.bind([task.ticket])
    receives()
    send(sender, replay, 20, [task])
    code, seen = receiver.look()
    torch.npu.synchronize(0)
    assert code == sender.status.item() == 0
    assert torch.equal(seen[:, 3, 0], written(20))


def test_what_a_replay_did_not_push_is_not_sent_and_does_not_hold_up_the_next_bind(trio: Trio) -> None:
    """The graph pushes the first layer only, its task carries all of them."""
    here, there, _ = trio
    sender = Sender(here, LAYERS)
    expected = transfers.restore(there)

    def first_layer() -> None:
        for tensor in here.raw[:2]:
            tensor.copy_(sender.value)
        ops.push_layer(sender.status, here.raw[1], 0, sender.binding.id)

    replay = captured(0, first_layer)
    for value in range(40, 50):
        task = sender.prepare(2, [0], [3])
        send(sender, replay, value, [task])
        torch.npu.synchronize(0)

        sender.binding.bind(())

        until_ended(task)
        assert task.state().code == LLMStatusCode.LLM_FAILED
        assert "its binding was bound again before layer" in task.state().detail
        replay()
        torch.npu.synchronize(0)
        assert sender.status.item() == 0
    torch.npu.synchronize(1)
    assert torch.equal(torch.stack([raw.cpu() for raw in there.raw[2:]]), expected[2:])


def test_nothing_is_captured_while_another_thread_binds(trio: Trio) -> None:
    """What it connects would miss the gate. Here it waits for a replay; its first act ends an older task."""
    here, _, _ = trio
    sender = Sender(here, LAYERS)

    def first_layer() -> None:
        ops.push_layer(sender.status, here.raw[1], 0, sender.binding.id)

    replay = captured(0, first_layer)
    task = sender.prepare(2, [0], [2])
    sender.binding.bind([task])
    with binding_elsewhere(sender.binding, []) as is_bound:
        until_ended(task)
        for call in (
            lambda: ops.push_layer(sender.status, sender.status, 1, sender.binding.id),
            lambda: ops.wait_layer(sender.status, sender.status, 1, sender.binding.id),
            lambda: ops.finish(sender.status, sender.status, sender.binding.id),
        ):
            with pytest.raises(datadist.LLMException, match="another thread binds"):
                captured(0, call)
        replay()
        assert is_bound.wait(20)


def test_stale_tickets_and_tasks_are_refused_by_bind_and_the_graph_goes_on(trio: Trio) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    replay, receives = captured(0, sender.forward), captured(1, receiver.forward)
    task = sender.prepare(2, [0], [2])
    for _ in range(2):
        receiver.binding.bind([task.ticket])
        receives()
        send(sender, replay, 70, [task])
        assert receiver.look()[0] == 0
        with pytest.raises(datadist.LLMException, match=r"used up|ended already"):
            receiver.binding.bind([task.ticket])
        with pytest.raises(datadist.LLMException, match=r"ended already|bound before"):
            sender.binding.bind([task])
        task = sender.prepare(2, [0], [2])


def test_a_refused_bind_leaves_graph_and_tickets_usable(trio: Trio) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    replay, receives = captured(0, sender.forward), captured(1, receiver.forward)
    task = sender.prepare(2, [0], [3])
    with pytest.raises(datadist.LLMException, match="bound already"):
        receiver.binding.bind([task.ticket, task.ticket])

    receiver.binding.bind([task.ticket])
    receives()
    send(sender, replay, 21, [task])

    assert receiver.look()[0] == 0


@pytest.mark.parametrize("captures", ["sender", "receiver"])
def test_a_bind_of_another_thread_between_two_captured_ops_serves_the_first_replay(
    trio: Trio, captures: str
) -> None:
    """The ops captured before it know their gates already, those behind it find what it connected."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    expected = transfers.restore(there)
    expected[:, 4] = transfers.restore(here)[:, 1]
    task = sender.prepare(2, [1], [4])
    bound: dict[str, list[datadist.Task | int]] = {"sender": [task], "receiver": [task.ticket]}
    ends: dict[str, Sender | Receiver] = {"sender": sender, "receiver": receiver}
    op = {"sender": ops.push_layer, "receiver": ops.wait_layer}

    def forward(which: str, is_captured: bool) -> None:
        end = ends[which]
        for layer in range(LAYERS):
            if layer == 1 and is_captured:
                with binding_elsewhere(end.binding, bound[which]) as is_bound:
                    assert is_bound.wait(20)
            op[which](end.status, end.status, layer, end.binding.id)

    captured(ends[captures].state.device, lambda: forward(captures, True))()
    (other,) = set(ends) - {captures}
    ends[other].binding.bind(bound[other])
    eager(ends[other].state.device, lambda: forward(other, False))()

    for which, end in ends.items():
        until_passed(end.status.device, f"the {which} stands at a gate that nobody opens")
        assert end.status.item() == 0
    assert torch.equal(torch.stack([raw.cpu() for raw in there.raw]), expected)
