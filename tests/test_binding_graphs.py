"""Layer ops in captured graphs: the same graph serves each request that is bound before its replay."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, transfers
from tests.forwards import Forward, Receiver, Sender, captured, eager
from tests.transfers import BLOCKS, LAYERS
from torch_llm_datadist import LLMStatusCode, emulator, ops
from torch_llm_datadist.emulator import faults

UNBOUND = LLMStatusCode.LLM_PARAM_INVALID
TASKS = 64
Trio = tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]
RUNS = {"eager": eager, "captured": captured}


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    """A sender and two receivers."""
    here, there, elsewhere = (transfers.start(i + 1, i) for i in range(3))
    transfers.link(here, there)
    transfers.link(here, elsewhere)
    yield here, there, elsewhere
    for state in (here, there, elsewhere):
        state.datadist.finalize()


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


def until_passed(device: torch.device, else_: str) -> None:
    """As ``torch.npu.synchronize``, which has no limit."""
    with torch.npu.device(device):
        passed = torch.npu.Event()
        passed.record()
    deadline = time.monotonic() + 20
    while not passed.query():
        assert time.monotonic() < deadline, else_
        time.sleep(0.001)


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


def until_ended(task: datadist.Task) -> None:
    deadline = time.monotonic() + 20
    while not task.state().has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
            torch.npu.graph(graph),
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


@pytest.fixture(scope="module")
def wide_pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Caches with a block for each of many transfers."""
    pair = []
    for cluster_id, device in ((11, 0), (12, 1)):
        state = SimpleNamespace()
        state.port = instances.start(state, cluster_id, device)
        instances.register(state, cluster_id, 2 * LAYERS, TASKS, 64)
        pair.append(state)
    transfers.link(*pair)
    yield pair[0], pair[1]
    for state in pair:
        state.datadist.finalize()


def test_64_tasks_on_one_link_and_several_streams_never_satisfy_each_others_waits(
    wide_pair: tuple[SimpleNamespace, SimpleNamespace],
) -> None:
    """Their pushes are interleaved, and first of all only every other task is pushed."""
    here, there = wide_pair
    shuffled = random.Random(1).sample(range(TASKS), TASKS)
    sends = [Sender(here, LAYERS) for _ in range(TASKS)]
    waits = [datadist.Binding(1, range(LAYERS)) for _ in range(TASKS)]
    tasks = [sends[i].prepare(12, [i], [shuffled[i]]) for i in range(TASKS)]
    statuses = [torch.zeros(1, dtype=torch.int32, device="npu:1") for _ in range(TASKS)]
    seen = torch.zeros(TASKS, 64, dtype=torch.uint8, device="npu:1")
    torch.npu.synchronize(1)
    streams = {device: distinct_streams(device, 8) for device in (0, 1)}
    for i in reversed(range(TASKS)):
        waits[i].bind([tasks[i].ticket])
        with torch.npu.device(1), torch.npu.stream(streams[1][i % 8]):
            ops.wait_layer(statuses[i], statuses[i], LAYERS - 1, waits[i].id)
            seen[i].copy_(there.raw[-1][shuffled[i]])

    def push(which: list[int]) -> None:
        for i in which:
            sends[i].binding.bind([tasks[i]])
        with torch.npu.device(0):
            for layer in range(LAYERS):
                for i in random.Random(layer).sample(which, len(which)):
                    with torch.npu.stream(streams[0][i % 8]):
                        ops.push_layer(sends[i].status, here.raw[0], layer, sends[i].binding.id)

    push([i for i in range(TASKS) if i % 2 == 0])
    for stream in streams[1][0::2]:
        stream.synchronize()
    assert not any(stream.query() for stream in streams[1][1::2])
    push([i for i in range(TASKS) if i % 2 == 1])
    torch.npu.synchronize(1)

    assert all(status.item() == 0 for status in statuses)
    assert torch.equal(seen.cpu(), instances.pattern(11, 2 * LAYERS, TASKS, 64)[-1])


def distinct_streams(device: int, count: int) -> list[torch.npu.Stream]:
    """The pool gives each of its streams out again and again."""
    found: dict[int, torch.npu.Stream] = {}
    while len(found) < count:
        stream = torch.npu.Stream(device)
        found.setdefault(stream.npu_stream, stream)
    return list(found.values())


class SlowSender(Sender):
    """The last layer's kernel takes long, longer than a busy machine is late with the first one's bytes."""

    def forward(self) -> None:
        for layer in range(self.layers):
            emulator.delay_stream(3 if layer == self.layers - 1 else 0.03)
            self.state.raw[2 * layer].copy_(self.value + layer)
            ops.push_layer(self.status, self.state.raw[2 * layer], layer, self.binding.id)


@pytest.mark.parametrize("sends", RUNS)
def test_decode_begins_its_first_layer_while_prefill_computes_its_last(trio: Trio, sends: str) -> None:
    here, there, _ = trio
    sender, receiver = SlowSender(here, LAYERS), Receiver(there, range(LAYERS))
    run = RUNS[sends](0, sender.forward)
    task = sender.prepare(2, [0], [1])
    receiver.binding.bind([task.ticket])
    begun, computed = (torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.device(1):
        for layer in range(LAYERS):
            ops.wait_layer(receiver.status, receiver.status, layer, receiver.binding.id)
            if layer == 0:
                begun.record()
                receiver.seen[0].copy_(there.raw[0])

    send(sender, run, 10, [task])
    with torch.npu.device(0):
        computed.record()
    torch.npu.synchronize(0)

    assert receiver.look()[0] == 0
    assert begun.recorded_time() < computed.recorded_time()


# A peer that dies is a process of its own.


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
