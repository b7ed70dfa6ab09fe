"""``cancel``, and blocks that a transfer which failed may still write: until they are through, nobody gets
them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.transfers import LAYERS, error_of, hold_cut_off, link, restore, start, until, until_announced
from torch_llm_datadist import (
    BlocksCacheKey,
    LLMException,
    LLMStatusCode,
    TransferWatch,
    ops,
    ticket_state,
)
from torch_llm_datadist.emulator import faults

Pair = tuple[SimpleNamespace, SimpleNamespace]
WITHIN_S = 20.0
SHORT_MS = 300
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
FAILED = LLMStatusCode.LLM_FAILED
SRC, DST = [0, 1], [2, 3]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The sender, cluster 1, and the receiver, cluster 2."""
    here = start(1, 0, max_in_flight=4)
    there = start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.reset()


def prepare(here: SimpleNamespace, **arguments: Any) -> datadist.Task:
    key = BlocksCacheKey(2)
    return here.manager.prepare_push(key, here.cache, SRC, DST, **arguments)  # type: ignore[no-any-return]


def bound(state: SimpleNamespace, transfer: Any) -> datadist.Binding:
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([transfer], timeout_s=60)
    return binding


def send(here: SimpleNamespace, binding: datadist.Binding) -> None:
    with torch.npu.device(here.device):
        for layer in range(LAYERS):
            ops.push_layer(here.status, here.raw[0], layer, binding.id)


def hold(here: SimpleNamespace) -> faults.Armed:
    """The next copy of the sender's blocks stands still until it is disarmed."""
    return faults.hold_copy(after=0, direction="peer", address=here.raw[0][SRC[0]].data_ptr())


def pull(there: SimpleNamespace, src: list[int] = SRC, dst: list[int] = DST, **arguments: Any) -> None:
    with torch.npu.device(there.device):
        there.manager.pull_blocks(BlocksCacheKey(1), there.cache, src, dst, **arguments)


def push(here: SimpleNamespace, src: list[int] = SRC, dst: list[int] = DST) -> None:
    with torch.npu.device(here.device):
        here.manager.push_blocks(BlocksCacheKey(2), here.cache, src, dst)


def test_the_first_reason_of_a_cancel_is_the_one_that_counts(pair: Pair) -> None:
    here, _ = pair
    native = datadist.binding._native.load()
    task = prepare(here)

    native.task_cancel(task.number, "the first")
    native.task_cancel(task.number, "the second")
    until(lambda: task.state().has_ended)
    native.task_cancel(task.number, "the third")

    assert task.state() == (True, FAILED, "the first")


def test_a_ticket_that_a_forward_waits_for_is_cancelled_and_the_wait_goes_on(pair: Pair) -> None:
    here, there = pair
    task = prepare(here)
    waits = bound(there, task.ticket)
    with torch.npu.device(there.device):
        ops.wait_layer(there.status, there.raw[0], 0, waits.id)

    there.manager.cancel(task.ticket, timeout_s=WITHIN_S)

    torch.npu.synchronize(there.device)
    assert there.status.item() == FAILED - 2**32
    assert ticket_state(task.ticket).has_ended
    assert "cancelled by its receiver" in ticket_state(task.ticket).detail
    until(lambda: task.state().has_ended)
    assert "waits no longer" in task.state().detail
    there.manager.cancel(task.ticket)  # it has ended
    there.status.zero_()


def test_a_task_is_cancelled_and_its_receiver_learns_of_it(pair: Pair) -> None:
    here, there = pair
    task = prepare(here)
    sends, waits = bound(here, task), bound(there, task.ticket)

    here.manager.cancel(task, timeout_s=WITHIN_S)

    assert task.state() == (True, FAILED, "cancelled by its sender")
    until(lambda: ticket_state(task.ticket).has_ended)
    assert ticket_state(task.ticket).code == FAILED
    sends.close()
    waits.close()


def test_a_publication_is_cancelled_at_either_end(pair: Pair) -> None:
    here, there = pair
    with torch.npu.device(here.device):
        first, second = (here.manager.publish(here.raw[0], here.cache, None, 2) for _ in range(2))

    here.manager.cancel(first, timeout_s=WITHIN_S)
    there.manager.cancel(second.ticket, timeout_s=WITHIN_S)

    assert first.state() == (True, FAILED, "cancelled by its holder")
    until(lambda: second.state().has_ended)
    assert second.state().code == FAILED


@pytest.mark.parametrize("who", ["receiver", "sender"])
def test_a_cancel_returns_no_earlier_than_the_stream_is_cut_off(pair: Pair, who: str) -> None:
    """Until then its blocks are in doubt."""
    here, there = pair
    restore(here)
    before = restore(there)
    held = hold(here)
    task = prepare(here)
    sends, waits = bound(here, task), bound(there, task.ticket)
    there.manager.assign_blocks(task.ticket, there.cache, DST)
    send(here, sends)
    held.wait()
    cut_off = hold_cut_off()
    manager, transfer = (there.manager, task.ticket) if who == "receiver" else (here.manager, task)

    error = error_of(lambda: manager.cancel(transfer, timeout_s=0.1))

    assert error.status_code == TIMEOUT
    (doubt,) = error.blocks_in_doubt
    assert (list(doubt.blocks), doubt.is_at_peer) == (DST, who == "sender")
    assert "blocks 2, 3 of cache" in str(error)
    state = (lambda: ticket_state(task.ticket)) if who == "receiver" else task.state
    until(lambda: state().code == FAILED)
    assert not state().has_ended
    assert manager.blocks_in_doubt() == list(error.blocks_in_doubt)
    error_of(lambda: manager.wait_until_settled(timeout_s=0.05))

    cut_off.disarm()
    manager.cancel(transfer, timeout_s=WITHIN_S)

    assert manager.blocks_in_doubt() == []
    manager.wait_until_settled()
    assert torch.equal(instances.content(there), before)
    sends.close()
    waits.close()


@pytest.mark.parametrize("how", ["cancel", "discard"])
def test_the_blocks_of_a_ticket_that_nobody_bound_are_in_doubt_while_its_sender_copies(
    pair: Pair, how: str
) -> None:
    here, there = pair
    restore(here)
    before = restore(there)
    held = hold(here)
    task = prepare(here)
    sends = bound(here, task)
    there.manager.assign_blocks(task.ticket, there.cache, DST)
    send(here, sends)
    held.wait()
    cut_off = hold_cut_off()

    if how == "cancel":
        error = error_of(lambda: there.manager.cancel(task.ticket, timeout_s=0.1))
        assert [list(doubt.blocks) for doubt in error.blocks_in_doubt] == [DST]
        assert ticket_state(task.ticket)[:2] == (False, FAILED)
    else:
        datadist.discard(task.ticket)

    (doubt,) = there.manager.blocks_in_doubt()
    assert (list(doubt.blocks), doubt.ticket) == (DST, task.ticket)
    assert error_of(lambda: there.manager.wait_until_settled(timeout_s=0.05)).status_code == TIMEOUT

    cut_off.disarm()
    there.manager.wait_until_settled(timeout_s=WITHIN_S)

    assert ticket_state(task.ticket).has_ended
    assert there.manager.blocks_in_doubt() == []
    assert torch.equal(instances.content(there), before)
    sends.close()


def test_a_ticket_that_was_cancelled_before_anybody_bound_it_is_bound_no_more(pair: Pair) -> None:
    here, there = pair
    task = prepare(here)

    there.manager.cancel(task.ticket, timeout_s=WITHIN_S)

    assert ticket_state(task.ticket) == (True, FAILED, "cancelled by its receiver")
    assert error_of(lambda: bound(there, task.ticket)).status_code == LLMStatusCode.LLM_PARAM_INVALID
    until(lambda: task.state().has_ended)


def test_a_task_that_is_cancelled_again_is_in_doubt_once(pair: Pair) -> None:
    here, _ = pair
    restore(here)
    held = hold(here)
    task = prepare(here)
    sends = bound(here, task)
    send(here, sends)
    held.wait()
    cut_off = hold_cut_off()

    for _ in range(3):
        assert error_of(lambda: here.manager.cancel(task, timeout_s=0.02)).status_code == TIMEOUT

    assert [list(doubt.blocks) for doubt in here.manager.blocks_in_doubt()] == [DST]
    cut_off.disarm()
    here.manager.wait_until_settled(timeout_s=WITHIN_S)
    sends.close()


def test_cancel_refuses_what_is_no_transfer(pair: Pair) -> None:
    here, _ = pair
    for wrong in (None, "1", True, 1.5):
        with pytest.raises(TypeError):
            here.manager.cancel(wrong)
    assert error_of(lambda: here.manager.cancel(1 << 45)).status_code == LLMStatusCode.LLM_PARAM_INVALID
    with pytest.raises(ValueError, match="timeout_s"):
        here.manager.cancel(1, timeout_s=0)


def test_a_failed_ticket_on_a_live_link_has_not_ended_while_its_sender_still_copies(pair: Pair) -> None:
    here, there = pair
    held = hold(here)
    task = prepare(here)
    sends = bound(here, task)
    cut_off = hold_cut_off()
    watch: TransferWatch[str] = TransferWatch()
    watch.add("it", task.ticket, DST)
    send(here, sends)
    held.wait()
    until_announced(task.ticket)
    waits = datadist.Binding(there.device, range(LAYERS))
    waits.bind([task.ticket], timeout_s=0.1)  # not before the copy stands: it might never be queued

    until(lambda: ticket_state(task.ticket).code == TIMEOUT)

    assert not ticket_state(task.ticket).has_ended
    found = watch.poll()
    assert found.in_doubt["it"].blocks == tuple(DST)
    assert not found.failed
    assert watch.poll().in_doubt == {}
    cut_off.disarm()
    until(lambda: ticket_state(task.ticket).has_ended)
    assert watch.poll().failed["it"].code == TIMEOUT
    assert len(watch) == 0
    sends.close()
    waits.close()


def test_the_blocks_of_a_late_pull_are_in_doubt_until_it_is_through(pair: Pair) -> None:
    here, there = pair
    restore(here)
    restore(there)
    held = hold(here)

    with instances.in_a_hurry(there, SHORT_MS):
        error = error_of(lambda: pull(there))

    assert error.status_code == TIMEOUT
    (doubt,) = error.blocks_in_doubt
    assert (doubt.cache_id, list(doubt.blocks), doubt.cluster_id) == (there.cache.cache_id, DST, 1)
    assert "wait_until_settled" in str(error)
    assert there.manager.blocks_in_doubt() == [doubt]
    pull(there, [0], [0])  # others are not affected
    assert there.manager.blocks_in_doubt() == [doubt]

    held.disarm()
    there.manager.wait_until_settled(timeout_s=WITHIN_S)

    assert there.manager.blocks_in_doubt() == []


def test_the_blocks_of_a_late_push_are_in_doubt_at_the_peer(pair: Pair) -> None:
    here, _ = pair
    held = hold(here)

    with instances.in_a_hurry(here, SHORT_MS):
        error = error_of(lambda: push(here))

    (doubt,) = error.blocks_in_doubt
    assert (list(doubt.blocks), doubt.cluster_id, doubt.is_at_peer) == (DST, 2, True)
    assert here.manager.blocks_in_doubt(here.datadist.link_id(2)) == [doubt]
    held.disarm()
    here.manager.wait_until_settled(timeout_s=WITHIN_S)


@pytest.mark.races_on_purpose("looks at blocks that a held copy has yet to write")
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_the_next_transfer_into_blocks_in_doubt_comes_after_the_late_one(pair: Pair, direction: str) -> None:
    """Mended: the original's late bytes may land on those of the next transfer."""
    here, there = pair
    move, mover = (push, here) if direction == "push" else (pull, there)
    sent = restore(here)
    before = restore(there)
    held = hold(here)

    with instances.in_a_hurry(mover, SHORT_MS):
        error_of(lambda: move(mover))
        error = error_of(lambda: move(mover, [4], [DST[1]]))

    assert error.status_code == TIMEOUT
    assert "are in doubt, since an earlier transfer failed" in str(error)
    assert "Nothing was sent" in str(error)
    error_of(lambda: prepare(here, timeout_s=0.1)) if direction == "push" else None
    assert torch.equal(instances.content(there)[:, DST], before[:, DST])
    held.disarm()
    move(mover, [4], [DST[1]])
    arrived = instances.content(there)
    assert torch.equal(arrived[:, DST[1]], sent[:, 4])  # not what came late
    assert torch.equal(arrived[:, DST[0]], sent[:, SRC[0]])
    assert mover.manager.blocks_in_doubt() == []


# A sender whose host stops while its device goes on, with copies queued.


def queue_all(state: SimpleNamespace) -> None:
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(1))
    binding.bind([state.task])
    ops.push_layer(state.status, state.status, 0, binding.id)
    state.binding = binding


def prepare_in_peer(state: SimpleNamespace) -> int:
    torch.npu.set_device(state.device)
    state.status = torch.zeros(1, dtype=torch.int32).npu()
    state.task = state.datadist.cache_manager.prepare_push(BlocksCacheKey(2), state.cache, SRC, DST)
    return state.task.ticket  # type: ignore[no-any-return]


def first_byte(state: SimpleNamespace) -> int:
    return state.raw[0][SRC[0]].data_ptr()  # type: ignore[no-any-return]


def expect(state: SimpleNamespace, ticket: int) -> None:
    state.link = state.datadist.link_id(1)
    state.datadist.cache_manager.assign_blocks(ticket, state.cache, DST)
    state.binding = datadist.Binding(state.device, range(1))
    state.binding.bind([ticket], timeout_s=60)


def in_doubt(state: SimpleNamespace) -> set[int]:
    """What an allocator of blocks must not hand out now."""
    found = state.datadist.cache_manager.blocks_in_doubt(state.link)
    return {block for doubt in found if doubt.ticket is not None for block in doubt.blocks}


def cancel(state: SimpleNamespace, ticket: int, timeout_s: float) -> tuple[str, list[list[int]]]:
    try:
        state.datadist.cache_manager.cancel(ticket, timeout_s=timeout_s)
    except LLMException as error:
        return error.status_code.name, [list(doubt.blocks) for doubt in error.blocks_in_doubt]
    return "LLM_SUCCESS", []


def state_of(state: SimpleNamespace, ticket: int) -> tuple[bool, int]:
    return tuple(ticket_state(ticket)[:2])  # type: ignore[return-value]


def write(state: SimpleNamespace, value: int) -> None:
    """Hands out all blocks that are not in doubt, to somebody who writes them."""
    free = [block for block in range(links.BLOCKS) if block not in in_doubt(state)]
    for raw in state.raw:
        raw[free] = value
    torch.npu.synchronize(state.device)
    state.written = (free, value)


def wrong_bytes(state: SimpleNamespace) -> int:
    free, value = state.written
    return int((instances.content(state)[:, free] != value).sum())


@pytest.mark.races_on_purpose("looks at blocks until the late copy has written them")
def test_no_byte_of_a_frozen_sender_lands_in_blocks_that_were_handed_out_again(peers: Any) -> None:
    sender, receiver, _ = links.linked_pair(peers)
    ticket = sender.call(prepare_in_peer)
    receiver.call(expect, ticket)
    theirs = faults.of(sender.pid)
    held = theirs.hold_copy(after=0, direction="peer", address=sender.call(first_byte))
    sender.call(queue_all)
    held.wait()
    theirs.freeze_host()  # its device goes on, and so will the copies

    receiver.call(links.wait_unlinked, 1, WITHIN_S)
    has_ended, code = receiver.call(state_of, ticket)
    assert (has_ended, code) == (False, LLMStatusCode.LLM_NOT_YET_LINK)
    assert receiver.call(in_doubt) == set(DST)
    assert receiver.call(cancel, ticket, 0.05) == ("LLM_TIMEOUT", [DST])
    receiver.call(write, 0xA5)
    held.disarm()
    until(lambda: receiver.call(arrived))  # late, as feared
    assert receiver.call(wrong_bytes) == 0
    assert receiver.call(in_doubt) == set(DST)

    theirs.thaw_host()

    assert receiver.call(cancel, ticket, WITHIN_S) == ("LLM_SUCCESS", [])
    assert receiver.call(in_doubt) == set()
    receiver.call(write, 0x5A)  # now all of them
    assert receiver.call(wrong_bytes) == 0


def arrived(state: SimpleNamespace) -> bool:
    return torch.equal(instances.content(state)[:, DST], links.pattern(1)[:, SRC])


# A ticket whose number overtook the sender's own word on it.


def assign_only(state: SimpleNamespace, ticket: int) -> None:
    state.link = state.datadist.link_id(1)
    state.datadist.cache_manager.assign_blocks(ticket, state.cache, DST)


def sent_state(state: SimpleNamespace) -> tuple[bool, int]:
    has_ended, code, _ = state.task.state()
    return has_ended, code


def test_a_ticket_that_its_sender_has_not_confirmed_is_cancelled_as_soon_as_it_has(peers: Any) -> None:
    sender, receiver, _ = links.linked_pair(peers, {"keep_alive_ms": 20_000})
    ticket = sender.call(prepare_in_peer) + (1 << 22)  # of the slot that the next task takes
    receiver.call(assign_only, ticket)
    assert receiver.call(state_of, ticket) == (False, 0)
    assert receiver.call(in_doubt) == set()

    assert receiver.call(cancel, ticket, 0.05) == ("LLM_TIMEOUT", [DST])

    until(lambda: receiver.call(state_of, ticket) == (False, FAILED))  # at the watchdog's next look
    assert receiver.call(in_doubt) == set(DST)

    assert sender.call(prepare_in_peer) == ticket

    until(lambda: receiver.call(state_of, ticket) == (True, FAILED))
    until(lambda: sender.call(sent_state) == (True, FAILED))
    assert receiver.call(in_doubt) == set()
    assert receiver.call(cancel, ticket, WITHIN_S) == ("LLM_SUCCESS", [])
