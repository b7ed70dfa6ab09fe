"""Where both ends were told ``verify_blocks``, the receiver of a ticket adds up what arrived in its own
blocks, compares, and only then lets anybody read it; what differs is in the status at both ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, transfers
from tests.forwards import Receiver, Sender
from tests.transfers import BLOCK_BYTES, LAYERS
from tests.trio import RUNS, send, until_ended, until_passed, written
from torch_llm_datadist import LLMStatusCode, emulator
from torch_llm_datadist.transports import nixl_library

FAILED = int(LLMStatusCode.LLM_FAILED)
needs_nixl = pytest.mark.skipif(bool(nixl_library()[1]), reason=nixl_library()[1])
SRC, DST = [1, 5, 2], [3, 0, 4]
Pair = tuple[SimpleNamespace, SimpleNamespace]


def linked(here: bool, there: bool, **options: str) -> Iterator[Pair]:
    """``here``, ``there``: which end verifies."""
    verifies = {1: here, 2: there}
    one, two = (
        transfers.start(i, i - 1, verify_blocks=verifies[i], sync_kv_timeout=20_000, **options)
        for i in (1, 2)
    )
    transfers.link(one, two)
    yield one, two
    for device in range(2):
        torch.npu.synchronize(device)
    for state in (one, two):
        state.datadist.finalize()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from linked(here=True, there=True)


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    emulator.faults.reset()
    for device in range(2):
        torch.npu.synchronize(device)


def code(status: torch.Tensor) -> int:
    return int(status.item()) & 0xFFFFFFFF


def where(state: SimpleNamespace, tensor: int, block: int) -> int:
    return int(state.raw[tensor][block].data_ptr())


class Ends:
    """Both forwards, on a pair."""

    def __init__(
        self, pair: Pair, sends: str = "eager", receives: str = "eager", waits: Iterable[int] = range(LAYERS)
    ) -> None:
        self.here, self.there = pair
        self.sender, self.receiver = Sender(self.here, LAYERS), Receiver(self.there, waits)
        self.send_forward = RUNS[sends](0, self.sender.forward)
        self.receive_forward = RUNS[receives](1, self.receiver.forward)

    def push(self, value: int, packed: bool | None = None) -> datadist.Task:
        """All but the look."""
        task = self.sender.prepare(2, SRC, DST, packed=packed)
        if packed:
            assert self.there.manager.expect(task.ticket, DST)
        self.receiver.binding.bind([task.ticket])
        self.receive_forward()
        send(self.sender, self.send_forward, value, [task])
        return task

    def statuses(self) -> tuple[int, int]:
        """The sender's and the receiver's."""
        for device in range(2):
            torch.npu.synchronize(device)
        return code(self.sender.status), code(self.receiver.status)


@pytest.mark.parametrize("packed", [False, True], ids=["direct", "packed"])
@pytest.mark.parametrize("sends", RUNS)
@pytest.mark.parametrize("receives", RUNS)
def test_what_changes_on_its_way_is_found_in_the_replay_that_it_hits(
    pair: Pair, sends: str, receives: str, packed: bool
) -> None:
    ends = Ends(pair, sends, receives)
    expected = transfers.restore(ends.there)

    for value, is_hit in [(10, False), (20, True), (30, False)]:
        if is_hit:
            at = {"bytes": 2 * len(SRC) * BLOCK_BYTES} if packed else {"address": where(ends.here, 2, SRC[1])}
            fault = emulator.faults.flip_byte(offset=100, **at)
        task = ends.push(value, packed)
        statuses = ends.statuses()
        until_ended(task)
        state = task.state()
        if is_hit:
            assert fault.fired == 1
            assert statuses == (FAILED, FAILED)
            assert int(state.code) == FAILED
            assert " found other bytes than were sent" in state.detail
        else:
            assert statuses == (0, 0)
            assert state.code == LLMStatusCode.LLM_SUCCESS
            expected[:, DST] = written(value)[:, None, None]
            assert torch.equal(ends.receiver.look()[1], expected)


@pytest.mark.parametrize("packed", [False, True], ids=["direct", "packed"])
@pytest.mark.parametrize("tensor", [0, 2 * LAYERS - 1])
@pytest.mark.parametrize("block", range(len(DST)))
def test_no_block_is_left_out_and_the_receivers_own_memory_is_looked_at(
    pair: Pair, tensor: int, block: int, packed: bool
) -> None:
    """The byte changes when all of it is there: reading back, or a look at staging, would come too early."""
    ends = Ends(pair)
    transfers.restore(ends.there)
    hold = emulator.faults.hold_copy(after=0, address=where(ends.there, tensor, DST[block]), direction="d2h")
    task = ends.push(40, packed)
    hold.wait()
    side = torch.npu.Stream(1)
    with torch.npu.device(1), torch.npu.stream(side):
        ends.there.raw[tensor][DST[block], BLOCK_BYTES - 1] = 7
    side.synchronize()
    hold.disarm()

    assert ends.statuses() == (FAILED, FAILED)

    until_ended(task)
    ticket = datadist.ticket_state(task.ticket)
    assert f"layer {tensor // 2} of the ticket: what arrived adds up to 0x" in ticket.detail
    assert "the link is still usable" in ticket.detail
    ends.push(50, packed)
    assert ends.statuses() == (0, 0)


@pytest.mark.parametrize("packed", [False, True], ids=["direct", "packed"])
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_nobody_is_let_on_before_the_look(pair: Pair, layer: int, packed: bool) -> None:
    """Who waits for this layer alone: those behind it come later in any case."""
    ends = Ends(pair, waits=[layer])
    expected = transfers.restore(ends.there)
    hold = emulator.faults.hold_copy(after=0, address=where(ends.there, 2 * layer, DST[0]), direction="d2h")
    ends.push(60, packed)
    hold.wait()
    with torch.npu.device(1):
        passed = torch.npu.Event()
        passed.record()
    time.sleep(0.02)
    assert not passed.query()

    hold.disarm()

    assert ends.statuses() == (0, 0)
    expected[:, DST] = written(60)[:, None, None]
    assert torch.equal(ends.receiver.look()[1], expected[2 * layer : 2 * layer + 2])


def test_a_list_of_blocks_that_there_are_not_is_refused(pair: Pair) -> None:
    ends = Ends(pair)
    transfers.restore(ends.there)
    # The list travels as one copy: of the cache, the tensors per layer, how many runs, and two runs.
    fault = emulator.faults.flip_byte(offset=8 * 5 - 1, bytes=8 * 5, direction="peer")

    task = ends.push(65)

    assert ends.statuses() == (FAILED, int(LLMStatusCode.LLM_PARAM_INVALID))
    assert fault.fired == 1
    until_ended(task)
    assert "could not look at what was sent" in task.state().detail
    assert "blocks from block" in datadist.ticket_state(task.ticket).detail
    ends.push(66)
    assert ends.statuses() == (0, 0)


def test_a_ticket_that_nobody_asks_for_is_looked_at_all_the_same(pair: Pair) -> None:
    """So its sender's forward ends before the receiver's begins, as without the option."""
    ends = Ends(pair)
    expected = transfers.restore(ends.there)
    task = ends.sender.prepare(2, SRC, DST)
    send(ends.sender, ends.send_forward, 70, [task])
    until_passed(ends.here.device, "the sender waits for a receiver")
    assert code(ends.sender.status) == 0

    ends.receiver.binding.bind([task.ticket])
    ends.receive_forward()

    status, seen = ends.receiver.look()
    assert status == 0
    expected[:, DST] = written(70)[:, None, None]
    assert torch.equal(seen, expected)


def test_some_layers_awaited_and_others_wrong(pair: Pair) -> None:
    """Who has gone on stays right; the sender is told, and the ticket."""
    here, there = pair
    sender, receiver = Sender(here, LAYERS), Receiver(there, [0])
    transfers.restore(there)
    fault = emulator.faults.flip_byte(offset=3, address=where(here, 2 * LAYERS - 1, SRC[0]))
    task = sender.prepare(2, SRC, DST)
    receiver.binding.bind([task.ticket])
    with torch.npu.device(1):
        receiver.forward()
    with torch.npu.device(0):
        send(sender, sender.forward, 80, [task])
    until_ended(task)

    assert fault.fired == 1
    assert receiver.look()[0] == 0
    assert task.state().code == LLMStatusCode.LLM_FAILED


def test_given_up_tickets_leave_the_link_as_it_was(pair: Pair) -> None:
    ends = Ends(pair)
    for give_up in ("discard", "cancel", "cancel by the sender"):
        task = ends.sender.prepare(2, SRC, DST)
        if give_up == "discard":
            datadist.discard(task.ticket)
        elif give_up == "cancel":
            ends.there.manager.cancel(task.ticket)
        else:
            ends.here.manager.cancel(task)
        until_ended(task)
    ends.push(90)
    assert ends.statuses() == (0, 0)


@pytest.mark.parametrize(("here", "there"), [(True, False), (False, True), (False, False)])
def test_with_one_end_alone(here: bool, there: bool) -> None:
    """The sender reads back what it copied where it was told to verify; else nothing is looked at."""
    with contextlib.contextmanager(linked)(here=here, there=there) as pair:
        ends = Ends(pair)
        ends.push(100)
        assert ends.statuses() == (0, 0)
        fault = emulator.faults.flip_byte(offset=100, address=where(ends.here, 2, SRC[1]))
        task = ends.push(110)
        expected = (FAILED, FAILED) if here else (0, 0)
        assert ends.statuses() == expected
        assert fault.fired == 1
        until_ended(task)
        said = task.state().detail
        assert ("is not the same at both ends" in said) == here
        assert "found other bytes" not in said


def test_over_hixl_tickets_are_refused_too() -> None:
    with contextlib.contextmanager(linked)(here=True, there=True, transport="hixl") as (here, _):
        with pytest.raises(datadist.LLMException, match=r"over hixl .* cannot be read back") as refused:
            here.manager.prepare_push(datadist.BlocksCacheKey(2), here.cache, SRC, DST)
        assert refused.value.status_code == LLMStatusCode.LLM_FEATURE_NOT_ENABLED


@pytest.mark.parametrize("transport", ["loopback", pytest.param("nixl", marks=needs_nixl)])
def test_over_an_engine_tickets_are_looked_at_and_the_rest_is_refused(transport: str) -> None:
    with contextlib.contextmanager(linked)(here=True, there=True, transport=transport) as pair:
        ends = Ends(pair)
        expected = transfers.restore(ends.there)
        ends.push(10)
        assert ends.statuses() == (0, 0)
        expected[:, DST] = written(10)[:, None, None]
        assert torch.equal(ends.receiver.look()[1], expected)
        hold = emulator.faults.hold_copy(after=0, address=where(ends.there, 0, DST[0]), direction="d2h")
        ends.push(20)
        hold.wait()
        side = torch.npu.Stream(1)
        with torch.npu.device(1), torch.npu.stream(side):
            ends.there.raw[0][DST[0], 0] = 7
        side.synchronize()
        hold.disarm()
        assert ends.statuses() == (FAILED, FAILED)
        with pytest.raises(datadist.LLMException, match="cannot be read back") as refused:
            ends.here.manager.push_blocks(datadist.BlocksCacheKey(2), ends.here.cache, SRC, DST)
        assert refused.value.status_code == LLMStatusCode.LLM_FEATURE_NOT_ENABLED


def test_a_list_that_does_not_fit_is_read_back_by_its_sender() -> None:
    blocks = 8200
    here, there = (
        transfers.start(cluster_id, cluster_id - 1, verify_blocks=True, sync_kv_timeout=20_000)
        for cluster_id in (1, 2)
    )
    for state in (here, there):
        instances.register(state, 10 + state.cluster_id, 2, blocks, 8)
    transfers.link(here, there)
    src = list(range(0, blocks, 2))
    dst = [block + 1 for block in reversed(src)]  # no neighbours: 4100 runs
    fault = emulator.faults.flip_byte(offset=3, address=int(here.raw[0][src[7]].data_ptr()))
    key = datadist.BlocksCacheKey(2)
    try:
        task = here.manager.prepare_push(key, here.cache, src, dst, packed=False)
        binding = datadist.Binding(0, range(1))
        binding.bind([task], timeout_s=60)
        with torch.npu.device(0):
            status = torch.zeros(1, dtype=torch.int32, device="npu:0")
            datadist.ops.push_layer(status, status, 0, binding.id)
            datadist.ops.finish(status, status, binding.id)
            assert code(status) == FAILED
        assert fault.fired == 1
        assert "is not the same at both ends" in task.state().detail
    finally:
        for state in (here, there):
            state.datadist.finalize()
