"""Packed pushes: gathered into staging, sent as one piece per layer, scattered where the receiver says."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torch_llm_datadist as datadist
from tests import instances, transfers
from tests.forwards import Receiver, Sender, captured, eager
from tests.transfers import BLOCK_BYTES, BLOCKS, LAYERS
from torch_llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode, emulator, ops

WITHIN_S = 30.0
MODELS = itertools.count(100)
RUNS = {"eager": eager, "captured": captured}
Pair = tuple[SimpleNamespace, SimpleNamespace]


@contextlib.contextmanager
def linked_pair(*cluster_ids: int) -> Iterator[Pair]:
    """A sender on npu:0 and a receiver on npu:1 with chunks of 1 KiB, so that layers need several."""
    here = transfers.start(cluster_ids[0], 0)
    there = transfers.start(cluster_ids[1], 1, packed_staging_bytes=32 << 10)
    transfers.link(here, there)
    yield here, there
    for state in (here, there):
        state.datadist.finalize()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with linked_pair(1, 2) as both:
        yield both


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    for device in range(2):
        torch.npu.synchronize(device)


def prepare(
    here: SimpleNamespace, src: list[int], dst: list[int], to: int = 2, **options: Any
) -> datadist.Task:
    options.setdefault("packed", True)
    return here.manager.prepare_push(BlocksCacheKey(to), here.cache, src, dst, **options)  # type: ignore[no-any-return]


def push(here: SimpleNamespace, task: datadist.Task, layers: range = range(LAYERS)) -> torch.Tensor:
    """An eager forward that computes nothing; returns its status."""
    binding = datadist.Binding(here.device, layers)
    binding.bind([task], timeout_s=WITHIN_S)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{here.device}")
    with torch.npu.device(here.device):
        for layer in layers:
            ops.push_layer(status, status, layer, binding.id)
        ops.finish(status, status, binding.id)
    return status


def wait(there: SimpleNamespace, ticket: int, timeout_s: float = WITHIN_S) -> torch.Tensor:
    """Queues the waits for all layers; returns the status."""
    binding = datadist.Binding(there.device, range(LAYERS))
    transfers.until_announced(ticket)
    binding.bind([ticket], timeout_s=timeout_s)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{there.device}")
    with torch.npu.device(there.device):
        for layer in range(LAYERS):
            ops.wait_layer(status, status, layer, binding.id)
    return status


def until_ended(state: Any) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := state()).has_ended:
        assert time.monotonic() < deadline, found
        time.sleep(0.002)
    return found


def ticket_end(ticket: int) -> Any:
    return until_ended(lambda: datadist.ticket_state(ticket))


def until(what: Any) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def moved(here: SimpleNamespace, before: torch.Tensor, src: list[int], dst: list[int]) -> torch.Tensor:
    after = before.clone()
    after[:, dst] = instances.content(here)[:, src]
    return after


@pytest.mark.parametrize("binds_first", [True, False], ids=["bound before expected", "expected before bound"])
def test_blocks_arrive_where_the_receiver_says(pair: Pair, binds_first: bool) -> None:
    here, there = pair
    src, dst = [4, 0, 5, 2], [1, 5, 0, 3]
    expected = moved(here, transfers.restore(there), src, dst)
    task = prepare(here, src, [2, 3, 4, 5])

    if binds_first:
        sent = push(here, task)
        arrived = wait(there, task.ticket)
        assert there.manager.expect(task.ticket, dst)
    else:
        assert there.manager.expect(task.ticket, dst)
        arrived = wait(there, task.ticket)
        sent = push(here, task)

    assert (sent.item(), arrived.item()) == (0, 0)
    assert torch.equal(instances.content(there), expected)
    assert task.is_packed
    assert ticket_end(task.ticket).code == until_ended(task.state).code == 0


def test_a_layer_travels_as_one_copy(pair: Pair) -> None:
    here, there = pair
    src, dst = [4, 0], [1, 5]  # of a layer: 2 tensors x 2 blocks x 256 bytes, a chunk
    task = prepare(here, src, dst)
    there.manager.expect(task.ticket, dst)
    copies = emulator.fail_task(1 << 40, 507013, direction="peer")

    arrived = wait(there, task.ticket)
    push(here, task)

    assert arrived.item() == 0
    words = copies.hits  # where words are copied, too, they would count
    copies.disarm()
    assert words == LAYERS


def test_each_layer_arrives_before_the_next_one_is_pushed(pair: Pair) -> None:
    here, there = pair
    transfers.restore(there)
    task = prepare(here, [1], [2])
    there.manager.expect(task.ticket, [3])
    sends, waits = datadist.Binding(0, range(LAYERS)), datadist.Binding(1, range(LAYERS))
    sends.bind([task], timeout_s=WITHIN_S)
    waits.bind([task.ticket], timeout_s=WITHIN_S)
    sent, arrived = (torch.zeros(1, dtype=torch.int32, device=f"npu:{i}") for i in range(2))
    for layer in range(LAYERS):
        with torch.npu.device(0):
            ops.push_layer(sent, sent, layer, sends.id)
        with torch.npu.device(1):
            ops.wait_layer(arrived, arrived, layer, waits.id)
            torch.npu.synchronize(1)
        got = there.raw[2 * layer][3].cpu(), there.raw[2 * layer + 1][3].cpu()
        assert all(torch.equal(g, here.raw[2 * layer + k][1].cpu()) for k, g in enumerate(got)), layer
    assert arrived.item() == 0


@pytest.mark.parametrize("sends", RUNS)
@pytest.mark.parametrize("receives", RUNS)
def test_forwards_and_graphs_wait_for_the_scatter(pair: Pair, sends: str, receives: str) -> None:
    here, there = pair
    sender, receiver = Sender(here, LAYERS), Receiver(there, range(LAYERS))
    send_forward = RUNS[sends](0, sender.forward)
    receive_forward = RUNS[receives](1, receiver.forward)
    expected = transfers.restore(there)

    for value, (src, dst) in enumerate([([0], [5]), ([1, 2], [4, 0]), ([3], [3])], start=10):
        task = sender.prepare(2, src, [5 - d for d in dst], packed=True)
        receiver.binding.bind([task.ticket])
        receive_forward()  # before anything was sent: it waits on the device
        sender.binding.bind([task])
        sender.value.fill_(value)
        torch.npu.synchronize(0)
        send_forward()
        there.manager.expect(task.ticket, dst)
        for layer in range(LAYERS):
            expected[2 * layer : 2 * layer + 2, dst] = value + layer
        status, seen = receiver.look()
        assert status == 0
        assert torch.equal(seen, expected)
    transfers.restore(here)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_packed_brings_the_same_bytes_as_direct(pair: Pair, data: st.DataObject) -> None:
    """Over random geometries: tensors per layer, layers, block sizes, blocks in any order."""
    here, there = pair
    per_layer = data.draw(st.integers(1, 3))
    layers = data.draw(st.integers(1, 3))
    block_bytes = data.draw(st.sampled_from([1, 3, 10, 64, 100, 256, 1000, 1024]))
    count = data.draw(st.integers(1, 12))
    order = st.permutations(range(16))
    src, dst = data.draw(order)[:count], data.draw(order)[:count]
    states = []
    model_id = next(MODELS)
    for cluster_id, state in ((1, here), (2, there)):
        end = SimpleNamespace(datadist=state.datadist, device=state.device, cluster_id=cluster_id)
        instances.register(end, 50 + cluster_id, per_layer * layers, 16, block_bytes, model_id=model_id)
        states.append(end)
    ends = states
    before = instances.content(ends[1])
    found = []
    for packed in (True, False):
        for raw, bytes_ in zip(ends[1].raw, before, strict=True):
            raw.copy_(bytes_)
        torch.npu.synchronize(1)
        task = here.manager.prepare_push(
            BlocksCacheKey(2, model_id),
            ends[0].cache,
            src,
            dst,
            tensor_num_per_layer=per_layer,
            packed=packed,
        )
        assert there.manager.expect(task.ticket, dst) is packed
        binding = datadist.Binding(1, range(layers))
        binding.bind([task.ticket], timeout_s=WITHIN_S)
        push(here, task, range(layers))
        assert ticket_end_after_waits(binding, task.ticket, layers).code == 0
        found.append(instances.content(ends[1]))
    for end in ends:
        end.datadist.cache_manager.unregister_cache(end.cache.cache_id)

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][:, dst], instances.content(ends[0])[:, src])
    untouched = sorted(set(range(16)) - set(dst))
    assert torch.equal(found[0][:, untouched], before[:, untouched])


def ticket_end_after_waits(binding: datadist.Binding, ticket: int, layers: int) -> Any:
    status = torch.zeros(1, dtype=torch.int32, device="npu:1")
    with torch.npu.device(1):
        for layer in range(layers):
            ops.wait_layer(status, status, layer, binding.id)
    assert status.item() == 0
    return ticket_end(ticket)


def test_the_planner_decides_where_nobody_does(pair: Pair) -> None:
    """16 blocks of 256 bytes in no order go packed if they are expected in time, one block never does."""
    here, there = pair
    here.many, there.many = (SimpleNamespace(datadist=s.datadist, device=s.device, cluster_id=s.cluster_id)
                             for s in (here, there))  # fmt: skip
    for seed, end in ((61, here.many), (62, there.many)):
        instances.register(end, seed, 2 * LAYERS, 64, 16, model_id=5)
    src, dst = [5, 60, 3, 41, 22, 9, 33, 18, 50, 27], [9, 2, 33, 47, 60, 5, 21, 12, 38, 55]
    key = BlocksCacheKey(2, 5)

    def arrives(task: Any) -> None:  # before the next one writes the same blocks
        push(here, task)
        assert wait(there, task.ticket).item() == 0

    in_time = here.manager.prepare_push(key, here.many.cache, src, dst)
    assert there.manager.expect(in_time.ticket, dst)
    until(lambda: in_time.is_expected)
    arrives(in_time)
    too_late = here.manager.prepare_push(key, here.many.cache, src, dst)
    push(here, too_late)
    there.manager.expect(too_late.ticket, list(range(10)))  # its sender has made up its mind
    assert wait(there, too_late.ticket).item() == 0
    single = here.manager.prepare_push(key, here.many.cache, src[:1], dst[:1])
    assert not there.manager.expect(single.ticket, dst[:1])
    arrives(single)
    refused = here.manager.prepare_push(key, here.many.cache, src, dst, packed=False)
    assert not there.manager.expect(refused.ticket, dst)
    arrives(refused)

    assert [t.is_packed for t in (in_time, too_late, single, refused)] == [True, False, False, False]
    assert torch.equal(instances.content(there.many)[:, dst], instances.content(here.many)[:, src])
    for end in (here.many, there.many):
        end.datadist.cache_manager.unregister_cache(end.cache.cache_id)


def test_device_ids_that_name_no_block_are_skipped_and_reported(pair: Pair) -> None:
    here, there = pair
    before = transfers.restore(there)
    ids = torch.tensor([3, BLOCKS, 0, -1, 3, 1, -1, -1], device="npu:1")
    task = prepare(here, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])

    with torch.npu.device(1):
        assert there.manager.expect(task.ticket, ids)
    ids.zero_()  # what was read is what counts
    arrived = wait(there, task.ticket)
    push(here, task)

    status = arrived.item()
    assert status == LLMStatusCode.LLM_PARAM_INVALID
    end = ticket_end(task.ticket)
    assert end.code == LLMStatusCode.LLM_PARAM_INVALID
    assert "3 of 6 blocks were skipped: dst_blocks[1] = 6 is outside" in end.detail
    assert torch.equal(instances.content(there), moved(here, before, [0, 2, 5], [3, 0, 1]))


def test_device_ids_are_read_behind_what_computes_them(pair: Pair) -> None:
    here, there = pair
    expected = moved(here, transfers.restore(there), [0, 1], [4, 2])
    ids = torch.full((2,), 77, device="npu:1")
    task = prepare(here, [0, 1], [0, 1])

    with torch.npu.device(1):
        emulator.delay_stream(0.05)
        ids.copy_(torch.tensor([4, 2], device="npu:1"))
        there.manager.expect(task.ticket, ids)
    sent = push(here, task)

    assert wait(there, task.ticket).item() == sent.item() == 0
    assert torch.equal(instances.content(there), expected)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([0], "dst_blocks has 1 entries, and .* sends 2 blocks"),
        ([0, BLOCKS], rf"dst_blocks\[1\] = {BLOCKS} is outside the cache, which has {BLOCKS} blocks"),
        ([3, 3], "lists block 3 twice"),
    ],
)
def test_bad_blocks_are_refused_and_the_ticket_stays_good(pair: Pair, blocks: list[int], words: str) -> None:
    here, there = pair
    expected = moved(here, transfers.restore(there), [0, 1], [4, 5])
    task = prepare(here, [0, 1], [0, 1])

    with pytest.raises(LLMException, match=words):
        there.manager.expect(task.ticket, blocks)

    there.manager.expect(task.ticket, [4, 5])
    push(here, task)
    assert wait(there, task.ticket).item() == 0
    assert torch.equal(instances.content(there), expected)
    with pytest.raises(LLMException, match=r"used up|expected already|ended already"):
        there.manager.expect(task.ticket, [4, 5])


def test_a_ticket_is_expected_once(pair: Pair) -> None:
    here, there = pair
    task = prepare(here, [0], [0])
    there.manager.expect(task.ticket, [4])
    with pytest.raises(LLMException, match="is expected already"):
        there.manager.expect(task.ticket, [4])
    datadist.discard(task)
    ticket_end(task.ticket)


def test_what_is_never_expected_times_out_alone_and_says_so(pair: Pair) -> None:
    here, there = pair
    before = transfers.restore(there)
    lonely, other = prepare(here, [0], [1], timeout_s=0.1), prepare(here, [2], [3])
    sent = push(here, lonely)

    assert sent.item() == LLMStatusCode.LLM_TIMEOUT
    assert "the receiver never called expect" in until_ended(lonely.state).detail
    there.manager.expect(other.ticket, [4])
    push(here, other)
    assert wait(there, other.ticket).item() == 0
    assert torch.equal(instances.content(there), moved(here, before, [2], [4]))


@pytest.fixture
def unused_pair() -> Iterator[Pair]:
    """No window of its staging was ever a ticket's, so that the next 16 tickets get one each."""
    with linked_pair(13, 14) as both:
        yield both


def test_running_out_of_staging_is_a_wait_with_a_deadline(unused_pair: Pair) -> None:
    """16 tickets hold all windows; one more waits for a credit, and fails alone; then one gets through."""
    here, there = unused_pair
    before = transfers.restore(there)
    holders = [prepare(here, [0], [0], to=14) for _ in range(16)]
    for task in holders:
        there.manager.expect(task.ticket, [0])
    short = prepare(here, [1], [1], to=14, timeout_s=0.1)
    patient = prepare(here, [2], [2], to=14)
    for task, block in ((short, 4), (patient, 5)):
        there.manager.expect(task.ticket, [block])

    senders = []
    for task in (short, patient):
        sender = datadist.Binding(0, range(LAYERS))
        sender.bind([task], timeout_s=WITHIN_S)
        status = torch.zeros(1, dtype=torch.int32, device="npu:0")
        with torch.npu.device(0):
            for layer in range(LAYERS):
                ops.push_layer(status, status, layer, sender.id)
        torch.npu.synchronize(0)  # a torch stream never waits for a credit
        senders.append(sender)

    assert until_ended(short.state).code == LLMStatusCode.LLM_TIMEOUT
    assert not patient.state().has_ended
    for task in holders:
        datadist.discard(task)
    assert wait(there, patient.ticket).item() == 0
    assert torch.equal(instances.content(there), moved(here, before, [2], [5]))
    for task in (*holders, short):
        ticket_end(task.ticket)


def test_hundreds_of_transfers_and_failures_leak_nothing(pair: Pair) -> None:
    here, there = pair
    transfers.restore(there)

    def batch(first: int) -> None:
        for i in range(first, first + 40):
            task = prepare(here, [i % BLOCKS, (i + 1) % BLOCKS], [0, 1])
            blocks = [(i + 2) % BLOCKS, (i + 5) % BLOCKS]
            if i % 4 == 0:  # given up by its sender
                there.manager.expect(task.ticket, blocks)
                datadist.discard(task)
                ticket_end(task.ticket)
            elif i % 4 == 1:  # given up by its receiver
                there.manager.expect(task.ticket, blocks)
                datadist.discard(task.ticket)
                until_ended(task.state)
            elif i % 4 == 2 and i % 8 == 2:  # times out at the receiver
                there.manager.expect(task.ticket, blocks)
                assert wait(there, task.ticket, timeout_s=0.01).item() != 0
                until_ended(task.state)
            else:
                there.manager.expect(task.ticket, blocks)
                sent = push(here, task)
                assert wait(there, task.ticket).item() == 0
                assert sent.item() == 0
                ticket_end(task.ticket)

    # What a link keeps for the next transfer is as much as there ever were at once, and on a busy machine one
    # that has ended may not have given its share back when the next one begins.
    at_once = [prepare(here, [block], [block]) for block in range(BLOCKS)]
    for block, task in enumerate(at_once):
        there.manager.expect(task.ticket, [block])
    for sent in [push(here, task) for task in at_once]:
        assert sent.item() == 0
    for task in at_once:
        assert wait(there, task.ticket).item() == 0
        ticket_end(task.ticket)
    batch(0)
    gc.collect()
    torch.npu.synchronize(0)
    held = [torch.npu.memory_allocated(d) for d in range(2)]
    for round_ in range(1, 6):
        batch(40 * round_)
    gc.collect()
    # torch_npu's own thread lets go of what ops used some time after they have ended.
    transfers.until(lambda: all(torch.npu.memory_allocated(d) <= held[d] for d in range(2)))


@pytest.mark.parametrize("packed", [True, None])
def test_what_cannot_be_packed_is_refused_by_name_or_sent_direct(packed: bool | None) -> None:
    """A block that is larger than a chunk of the receiver's staging."""
    here, there = transfers.start(11, 0), transfers.start(12, 1, packed_staging_bytes=4096)
    transfers.link(here, there)
    try:
        task = here.manager.prepare_push(BlocksCacheKey(12), here.cache, [0], [1], packed=packed)
        if packed is None:
            assert not there.manager.expect(task.ticket, [1])
        else:
            with pytest.raises(LLMException, match="does not fit into a chunk of 128 bytes"):
                there.manager.expect(task.ticket, [1])
        datadist.discard(task)
    finally:
        for state in (here, there):
            state.datadist.finalize()
    assert BLOCK_BYTES == 256
