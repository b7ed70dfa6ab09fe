"""Replays that nobody bound, whose transfer is over, or that the runtime refuses: they end with an error."""

from __future__ import annotations

import time

import pytest
import torch

import torch_llm_datadist as datadist
from tests import transfers
from tests.forwards import Receiver, Sender, captured, eager
from tests.transfers import LAYERS
from tests.trio import UNBOUND, Trio, send, until_ended, until_passed, written
from tests.trio import nothing_is_left_running as nothing_is_left_running
from tests.trio import trio as trio
from torch_llm_datadist import LLMStatusCode, ops
from torch_llm_datadist.emulator import faults


@pytest.mark.parametrize("kind", ["push", "wait", "both"])
def test_a_replay_that_nobody_bound_goes_on_with_an_error_and_the_next_one_is_served(
    trio: Trio, kind: str
) -> None:
    here, there, _ = trio
    sender = Sender(here, LAYERS, ends_with_finish=kind == "both")
    receiver = Receiver(there, range(LAYERS))
    replay, receives = captured(0, sender.forward), captured(1, receiver.forward)
    forwards = receives if kind == "wait" else replay
    status = receiver.status if kind == "wait" else sender.status
    for _ in range(2):
        status.zero_()
        torch.npu.synchronize()
        forwards()
        until_passed(status.device, "the replay waits for who binds it")
        assert status.item() == UNBOUND
    expected = transfers.restore(there)

    task = sender.prepare(2, [0], [2])
    receiver.binding.bind([task.ticket])
    receives()
    send(sender, replay, 70, [task])

    expected[:, [2]] = written(70)[:, None, None]
    code, seen = receiver.look()
    torch.npu.synchronize(0)
    assert code == sender.status.item() == 0
    assert torch.equal(seen, expected)


def test_two_replays_after_one_bind_are_told_apart(trio: Trio) -> None:
    here, _, _ = trio
    receiver = Receiver(here, range(LAYERS))
    replay = captured(0, receiver.forward)
    receiver.binding.bind(())

    replay()
    torch.npu.synchronize(0)
    first = receiver.status.item()
    replay()
    torch.npu.synchronize(0)

    assert (first, receiver.status.item()) == (0, UNBOUND)


def test_a_layer_that_one_graph_waits_for_twice_ends_with_an_error_and_hangs_nobody(trio: Trio) -> None:
    """A gate is met once in a forward; the second meeting is that of a replay that nobody bound."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))

    def twice() -> None:
        for _ in range(2):
            ops.wait_layer(receiver.status, receiver.status, 0, receiver.binding.id)

    replay = captured(1, twice)
    task = sender.prepare(2, [0], [2])
    receiver.binding.bind([task.ticket])
    send(sender, eager(0, sender.forward), 40, [task])
    replay()

    until_passed(torch.device("npu:1"), "the second wait waits for ever")
    assert receiver.status.item() == UNBOUND


def test_a_graph_outlives_its_binding_with_an_error(trio: Trio) -> None:
    here, _, _ = trio
    receiver = Receiver(here, range(LAYERS))
    replay = captured(0, receiver.forward)
    receiver.binding.bind(())
    replay()
    torch.npu.synchronize(0)
    number = receiver.binding.id
    receiver.binding.close()

    replay()
    torch.npu.synchronize(0)

    assert receiver.status.item() == UNBOUND
    with pytest.raises(datadist.LLMException, match=f"no binding {number}; it was closed"):
        ops.wait_layer(receiver.status, receiver.status, 0, number)


def test_a_ticket_that_runs_into_its_deadline_lets_the_replay_go_on(trio: Trio) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    receives = captured(1, receiver.forward)
    task = sender.prepare(2, [0], [2])
    transfers.until_announced(task.ticket)
    receiver.binding.bind([task.ticket], timeout_s=0.5)

    receives()

    assert receiver.look()[0] == LLMStatusCode.LLM_TIMEOUT
    receiver.binding.bind(())
    receives()
    assert receiver.look()[0] == 0


def test_a_task_whose_replay_comes_too_late_is_not_sent(trio: Trio) -> None:
    here, there, _ = trio
    sender = Sender(here, LAYERS)
    replay = captured(0, sender.forward)
    before = transfers.restore(there)
    task = sender.prepare(2, [0], [2])
    sender.binding.bind([task], timeout_s=0.5)
    until_ended(task)

    replay()
    torch.npu.synchronize(0)

    assert sender.status.item() == LLMStatusCode.LLM_TIMEOUT
    assert torch.equal(torch.stack([raw.cpu() for raw in there.raw]), before)
    send(sender, replay, 80, [sender.prepare(2, [0], [2])])
    torch.npu.synchronize(0)
    assert sender.status.item() == 0
    assert torch.equal(there.raw[0][2].cpu(), torch.full_like(before[0][2], 80))


@pytest.mark.parametrize("kth", range(1, 9))
def test_the_end_of_a_refused_relay_survives_a_refused_write(trio: Trio, kth: int) -> None:
    """The runtime refuses all waits of the binding's streams, and the k-th write that tells of it."""
    here, _, _ = trio
    sender = Sender(here, LAYERS)
    replay = captured(0, sender.forward)
    task = sender.prepare(2, [0], [2])
    waits = faults.fail_next("aclrtValueWait", 1, 207005, times=0)
    write = faults.fail_next("aclrtValueWrite", kth, 207005)
    try:
        sender.binding.bind([task])
        until_ended(task)
    finally:
        waits.disarm()
    replay()
    until_passed(torch.device("npu:0"), "the replay stands at a gate that nobody opens")
    write.disarm()
    assert sender.status.item() == -1  # LLM_FAILED


def ticks_in(seconds: float) -> int:
    before = faults.calls("aclrtSynchronizeStreamWithTimeout")
    time.sleep(seconds)
    return faults.calls("aclrtSynchronizeStreamWithTimeout") - before


def test_a_task_that_ended_before_its_forward_leaves_the_watchdog_in_peace(trio: Trio) -> None:
    """Its binding is neither bound again nor called, or called late."""
    here, there, _ = trio
    sender = Sender(here, LAYERS)
    before = transfers.restore(there)
    task = sender.prepare(2, [0], [2])
    sender.binding.bind([task], timeout_s=0.05)
    until_ended(task)

    deadline = time.monotonic() + 30
    while ticks_in(0.2) > 3 * 0.2 / 0.05 + 5:  # three devices, a look every 50 ms
        assert time.monotonic() < deadline, "the watchdog looks at once what nobody waits for"

    eager(0, sender.forward)()
    torch.npu.synchronize(0)
    assert sender.status.item() == LLMStatusCode.LLM_TIMEOUT
    assert torch.equal(torch.stack([raw.cpu() for raw in there.raw]), before)
    send(sender, eager(0, sender.forward), 30, [sender.prepare(2, [0], [2])])
    torch.npu.synchronize(0)
    assert sender.status.item() == 0
    assert torch.equal(there.raw[0][2].cpu(), torch.full_like(before[0][2], 30))
