"""Layer ops in captured graphs: the same graph serves each request that is bound before its replay."""

from __future__ import annotations

import random

import pytest
import torch

import torch_llm_datadist as datadist
from tests import transfers
from tests.forwards import Receiver, Sender, captured, eager
from tests.transfers import BLOCKS, LAYERS
from tests.trio import RUNS, Trio, send, written
from tests.trio import nothing_is_left_running as nothing_is_left_running
from tests.trio import trio as trio
from torch_llm_datadist import ops


@pytest.mark.parametrize("sends", RUNS)
@pytest.mark.parametrize("receives", RUNS)
def test_each_forward_serves_what_was_bound_to_it(trio: Trio, sends: str, receives: str) -> None:
    """Prefill eager with decode as a graph, the reverse, and either alone: new blocks for each."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    send_forward = RUNS[sends](0, sender.forward)
    receive_forward = RUNS[receives](1, receiver.forward)
    expected = transfers.restore(there)

    for value, (src, dst) in enumerate([([0], [5]), ([1, 2], [4, 0]), ([3], [3])], start=10):
        task = sender.prepare(2, src, dst)
        receiver.binding.bind([task.ticket])
        receive_forward()  # before anything was sent: it waits on the device
        send(sender, send_forward, value, [task])
        expected[:, dst] = written(value)[:, None, None]

        status, seen = receiver.look()
        assert status == 0
        assert torch.equal(seen, expected)
    torch.npu.synchronize(0)
    assert sender.status.item() == 0


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_ops_are_captured_in_every_mode_while_the_librarys_threads_work(trio: Trio, mode: str) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    expected = transfers.restore(there)
    busy = sender.prepare(2, [0], [1])  # a transfer is under way while both capture
    other = Sender(here, LAYERS)
    other.binding.bind([busy])

    replays = captured(0, sender.forward, capture_error_mode=mode)
    receives = captured(1, receiver.forward, capture_error_mode=mode)

    task = sender.prepare(2, [0], [2])
    receiver.binding.bind([task.ticket])
    receives()
    send(sender, replays, 50, [task])
    expected[:, [2]] = written(50)[:, None, None]
    status, seen = receiver.look()
    assert status == 0
    assert torch.equal(seen, expected)
    other.binding.unbind()


def test_what_was_bound_before_the_capture_serves_the_first_replay(trio: Trio) -> None:
    """As compilers do it, which capture and replay in one call."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    expected = transfers.restore(there)
    task = sender.prepare(2, [0], [2])
    receiver.binding.bind([task.ticket])
    sender.binding.bind([task])
    sender.value.fill_(60)
    torch.npu.synchronize(0)

    receives, replay = captured(1, receiver.forward), captured(0, sender.forward)
    receives()
    replay()

    expected[:, [2]] = written(60)[:, None, None]
    status, seen = receiver.look()
    assert status == 0
    assert torch.equal(seen, expected)


def test_a_warm_up_without_a_transfer_is_bound_like_a_replay(trio: Trio) -> None:
    here, _, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(here, range(LAYERS))

    for forwards in (sender, receiver):
        forwards.binding.bind(())
        eager(0, forwards.forward)()
        replay = captured(0, forwards.forward)
        for _ in range(3):
            forwards.binding.bind(())
            replay()
        torch.npu.synchronize(0)
        assert forwards.status.item() == 0


def test_a_graph_alternates_between_two_peers_over_a_thousand_replays(trio: Trio) -> None:
    """With fresh random block tables, and each receiver's forward a graph as well."""
    here, *others = trio
    sender, receivers = Sender(here, LAYERS), [Receiver(state, range(LAYERS)) for state in others]
    replay = captured(0, sender.forward)
    receives = [captured(receiver.state.device, receiver.forward) for receiver in receivers]
    expected = [transfers.restore(state) for state in others]
    seed = random.Random(0)

    for i in range(1000):
        which = i % 2
        count = seed.randint(1, BLOCKS)
        src, dst = (seed.sample(range(BLOCKS), count) for _ in range(2))
        task = sender.prepare(which + 2, src, dst)
        receivers[which].binding.bind([task.ticket])
        receives[which]()
        send(sender, replay, i % 251, [task])
        expected[which][:, dst] = written(i % 251)[:, None, None]
        status, seen = receivers[which].look()
        assert status == 0, i
        assert torch.equal(seen, expected[which]), i
    torch.npu.synchronize(0)
    assert sender.status.item() == 0


def test_one_replay_has_several_destinations_and_partial_layer_ranges(trio: Trio) -> None:
    here, there, elsewhere = trio
    sender = Sender(here, LAYERS)
    replay = captured(0, sender.forward)
    first, second = transfers.restore(there), transfers.restore(elsewhere)
    part = {"src_layer_range": range(1, 3), "dst_layer_range": range(1, 3)}
    receiver = Receiver(elsewhere, range(1, 3))
    receives = captured(2, receiver.forward)
    tasks = [sender.prepare(2, [0], [1]), sender.prepare(2, [0], [4]), sender.prepare(3, [2], [3], **part)]
    receiver.binding.bind([tasks[2].ticket])
    receives()

    send(sender, replay, 100, tasks)

    status, seen = receiver.look()
    torch.npu.synchronize(0)
    assert status == sender.status.item() == 0
    first[:, [1, 4]] = written(100)[:, None, None]
    second[2:6, [3]] = written(100)[2:6, None, None]
    assert torch.equal(torch.stack([raw.cpu() for raw in there.raw]), first)
    assert torch.equal(seen, second[2:6])


def test_a_replay_waits_for_several_tickets_of_one_bind(trio: Trio) -> None:
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    replay, receives = captured(0, sender.forward), captured(1, receiver.forward)
    expected = transfers.restore(there)
    tasks = [sender.prepare(2, [0], [block]) for block in (1, 3, 5)]
    receiver.binding.bind([task.ticket for task in tasks])
    receives()

    send(sender, replay, 30, tasks)

    expected[:, [1, 3, 5]] = written(30)[:, None, None]
    status, seen = receiver.look()
    assert status == 0
    assert torch.equal(seen, expected)


def test_ops_that_read_host_values_refuse_to_be_captured_and_name_bind(trio: Trio) -> None:
    here, _, _ = trio
    ids = torch.tensor([0])
    status, link = here.status, here.datadist.link_id(2)
    calls = {
        "push_blocks": lambda: ops.push_blocks(status, here.cache.tensors, ids, ids, link=link),
        "pull_blocks": lambda: ops.pull_blocks(status, here.cache.tensors, ids, ids, link=link),
        "copy_blocks": lambda: ops.copy_blocks(status, here.cache.tensors, ids, ids + 1),
    }
    for name, call in calls.items():
        graph = torch.npu.NPUGraph()
        with (
            torch.npu.device(0),
            torch.npu.graph(graph, stream=torch.npu.Stream(0)),  # the default one may be of another device
            pytest.raises(datadist.LLMException, match=rf"{name}.*binding\.bind"),
        ):
            call()


def test_eager_ops_on_gates_that_a_graph_holds(trio: Trio) -> None:
    """After a capture an eager forward goes through the same gates, alternating with replays."""
    here, there, _ = trio
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    runs = [
        (captured(0, sender.forward), captured(1, receiver.forward)),
        (eager(0, sender.forward), eager(1, receiver.forward)),
    ]
    for value in range(6):
        replay, receives = runs[value % 2]
        task = sender.prepare(2, [0], [value])
        receiver.binding.bind([task.ticket])
        receives()
        send(sender, replay, value, [task])
        code, seen = receiver.look()
        assert code == 0
        assert torch.equal(seen[:, value, 0], written(value))
