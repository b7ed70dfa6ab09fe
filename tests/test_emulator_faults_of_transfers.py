"""Transfers between processes one of which misbehaves on purpose: what tests of KV transfers can ask for."""

from __future__ import annotations

import time

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.test_ordering import LAYERS, prepare, receive_layer_by_layer, send_layer_by_layer, what_was_seen
from tests.test_push_blocks import linked_pair
from torch_llm_datadist.emulator import faults

BLOCKS, BLOCK_BYTES = 24, 256
SRC, DST = [0, 1, 2, 3], [4, 5, 6, 7]  # neighbours: one copy per tensor
COPY_BYTES = len(SRC) * BLOCK_BYTES
TENSORS = 2 * LAYERS
ENDS_WITHIN_S = 10.0


@pytest.fixture
def pair(peers):
    return linked_pair(peers, TENSORS, BLOCK_BYTES, apart=True)


def before():
    return instances.pattern(20, TENSORS, BLOCKS, BLOCK_BYTES)


def expected():
    after = before()
    after[:, DST] = instances.pattern(10, TENSORS, BLOCKS, BLOCK_BYTES)[:, SRC]
    return after


def push(state):
    """The code of a blocking push, as an application sees it."""
    torch.npu.set_device(state.device)
    try:
        instances.push_blocks(state, 2, SRC, DST)
    except datadist.LLMException as error:
        return error.status_code.name
    except RuntimeError as error:  # torch's own calls fail as well on a device that is lost
        return str(error)
    return "LLM_SUCCESS"


def until(holds):
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_flipped_byte_of_a_transfer_arrives_flipped(pair):
    a, b = pair
    fault = faults.of(a.pid).flip_byte(nth=3, offset=5, direction="peer", bytes=COPY_BYTES)

    assert a.call(push) == "LLM_SUCCESS"

    arrived, right = b.call(instances.content), expected()
    wrong = (arrived != right).nonzero()
    assert fault.fired == 1
    assert wrong[:, 1:].tolist() == [[DST[0], 5]]
    assert arrived[tuple(wrong[0])] == right[tuple(wrong[0])] ^ 0xFF


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_transfer_that_stands_still_in_a_copy_shows_half_of_it_and_goes_on(pair):
    a, b = pair
    held = faults.of(a.pid).hold_copy(after=COPY_BYTES // 2, direction="peer", bytes=COPY_BYTES)
    a.send(push)
    held.wait()

    half = before()
    half[0, DST[:2]] = expected()[0, DST[:2]]
    assert torch.equal(b.call(instances.content), half)
    held.disarm()

    assert a.answer() == "LLM_SUCCESS"
    assert torch.equal(b.call(instances.content), expected())


@pytest.mark.races_on_purpose("looks at bytes of a copy that is under way")
def test_senders_device_goes_on_while_its_host_is_frozen(pair):
    a, b = pair
    theirs = faults.of(a.pid)
    held = theirs.hold_copy(after=0, nth=TENSORS, direction="peer", bytes=COPY_BYTES)
    a.send(push)
    held.wait()  # the last copy: all are queued, and the link's thread is not needed any more
    part = expected()
    part[-1] = before()[-1]
    assert torch.equal(b.call(instances.content), part)

    theirs.freeze_host()
    held.disarm()

    until(lambda: torch.equal(b.call(instances.content), expected()))
    theirs.thaw_host()
    assert a.answer() in ("LLM_SUCCESS", "LLM_NOT_YET_LINK", "LLM_TIMEOUT")  # it was away, perhaps too long


def test_frozen_device_of_the_sender_holds_the_transfer_until_it_thaws(pair):
    a, b = pair
    theirs = faults.of(a.pid)
    theirs.freeze_device(0)
    a.send(push)
    assert torch.equal(b.call(instances.content), before())

    theirs.thaw_device(0)

    assert a.answer() == "LLM_SUCCESS"
    assert torch.equal(b.call(instances.content), expected())


def test_lost_device_ends_a_transfer_with_an_error_and_no_hang(pair):
    a, _ = pair
    assert a.call(push) == "LLM_SUCCESS"
    theirs = faults.of(a.pid)
    theirs.lose_device(0, 507899)

    answer = a.call(push, within_s=ENDS_WITHIN_S)

    # What met the loss first is not ours to say: the link's watchdog, the blocking call, or torch's own call.
    assert answer in ("LLM_NOT_YET_LINK", "LLM_FAILED") or "507899" in answer
    theirs.reset()


def test_device_lost_under_a_transfer_ends_it_with_an_error_and_no_hang(pair):
    a, _ = pair
    theirs = faults.of(a.pid)
    held = theirs.hold_copy(after=0, direction="peer", bytes=COPY_BYTES)
    a.send(push)
    held.wait()

    theirs.lose_device(0)

    answer = a.answer(ENDS_WITHIN_S)
    assert answer in ("LLM_NOT_YET_LINK", "LLM_FAILED") or "507010" in answer
    theirs.reset()


@pytest.mark.races_on_purpose("the flag that orders them is early")
def test_flag_that_overtakes_its_bytes_lets_the_receiver_read_old_ones(pair):
    """What an interconnect that reorders would do to the arrival flags: the ordering tests would see it."""
    a, b = pair
    ticket = a.call(prepare)
    b.call(receive_layer_by_layer, ticket)
    fault = faults.of(a.pid).overtake(times=0, seconds=0.1)

    assert a.call(send_layer_by_layer) == 0

    status, seen = b.call(what_was_seen)
    assert fault.fired > 0
    assert status == 0
    assert torch.equal(seen[0], before()[0])
