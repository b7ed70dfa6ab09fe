"""What goes wrong costs one transfer, or one link, never the process: peers that die or freeze, refused
calls, failing tasks, deadlines, and arguments that make no sense."""

from __future__ import annotations

import time

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.links import wait_unlinked
from tests.peers import PeerError
from tests.test_ordering import DST, LAYERS, SRC, prepare
from tests.test_push_blocks import linked_pair
from tests.transfers import MOVE_FAILED, fail_move, until_announced
from torch_llm_datadist import DataType, emulator, ops
from torch_llm_datadist.binding import discard, ticket_state

NOTICED_WITHIN_S = 20.0  # on a busy machine; a transfer has a minute


@pytest.fixture
def pair(peers):
    return linked_pair(peers, 2 * LAYERS, 256, apart=True)


@pytest.fixture
def star(peers):
    """A sender with two receivers."""
    a, b, c = peers(3)
    a.call(instances.start, 1, 0)
    a.call(instances.register, 10, 2 * LAYERS, 24, 256, DataType.DT_UINT8, 0, True)
    for peer, cluster_id in ((b, 2), (c, 3)):
        port = peer.call(instances.start, cluster_id, cluster_id - 1)
        peer.call(instances.register, 20, 2 * LAYERS, 24, 256, DataType.DT_UINT8, 0, True)
        assert a.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
        peer.call(instances.wait_linked, 1)
    return a, b, c


def expected(src, dst):
    after = instances.pattern(20, 2 * LAYERS, 24, 256)
    after[:, dst] = instances.pattern(10, 2 * LAYERS, 24, 256)[:, src]
    return after


def push_until_refused(state, cluster_id, within_s):
    """Pushes on and on; the code and message of the first push that is refused. Where the peer's process has
    a part in moving the bytes, one that is frozen lets a push time out before it is known to be lost.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            instances.push_blocks(state, cluster_id, SRC, DST)
        except datadist.LLMException as error:
            if error.status_code != datadist.LLMStatusCode.LLM_TIMEOUT:
                return error.status_code.name, str(error)
    return "nothing", ""


def compute(state):
    """Ordinary work on the default stream and on another one."""
    torch.npu.set_device(state.device)
    tensor = torch.arange(64, device=f"npu:{state.device}")
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        other = tensor + 1
    torch.npu.synchronize()
    return int((other - tensor).sum())


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_push_to_a_dead_or_frozen_receiver_costs_that_link_alone(star, how):
    a, b, c = star
    a.call(instances.push_blocks, 2, SRC, DST)
    getattr(b, how)()

    code, message = a.call(push_until_refused, 2, NOTICED_WITHIN_S)

    assert code == "LLM_NOT_YET_LINK"
    assert str(b.pid) in message
    assert "cluster 2" in message
    assert a.call(compute) == 64
    a.call(instances.push_blocks, 3, SRC, DST)
    assert torch.equal(c.call(instances.content), expected(SRC, DST))


def queue_pushes_on_a_stream_that_stands_still(state, count):
    torch.npu.set_device(state.device)
    blocks = torch.arange(24)
    state.statuses = [torch.zeros(1, dtype=torch.int32).npu() for _ in range(count)]
    emulator.faults.freeze_stream(torch.npu.current_stream())
    for status in state.statuses:
        ops.push_blocks(status, state.cache.tensors, blocks, blocks, link=state.datadist.link_id(2))


def read_statuses(state):
    wait_unlinked(state, 2, NOTICED_WITHIN_S)
    emulator.faults.thaw_stream(torch.npu.current_stream())
    torch.npu.synchronize()
    return {status.item() for status in state.statuses}


def test_pushes_that_are_queued_when_the_receiver_dies_release_the_callers_stream_with_a_code(star):
    a, b, c = star
    a.call(instances.push_blocks, 2, SRC, DST)
    a.call(queue_pushes_on_a_stream_that_stands_still, 50)
    b.kill()

    assert a.call(read_statuses) == {int(datadist.LLMStatusCode.LLM_NOT_YET_LINK)}

    assert a.call(compute) == 64
    a.call(instances.push_blocks, 3, SRC, DST)
    assert torch.equal(c.call(instances.content), expected(SRC, DST))


def bind_ticket(state, ticket, timeout_s):
    until_announced(ticket)
    state.binding = datadist.Binding(state.device, range(LAYERS))
    state.binding.bind([ticket], timeout_s=timeout_s)


def wait_for_layers(state):
    torch.npu.set_device(state.device)
    for layer in range(LAYERS):
        ops.wait_layer(state.status, state.status, layer, state.binding.id)
    started = time.monotonic()
    torch.npu.synchronize()
    return state.status.item(), time.monotonic() - started, compute(state)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_wait_layer_goes_on_with_a_code_when_the_sender_dies_or_freezes(pair, how):
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 60.0)
    b.send(wait_for_layers)
    getattr(a, how)()

    status, seconds, computed = b.answer()

    assert status == datadist.LLMStatusCode.LLM_NOT_YET_LINK
    assert seconds < NOTICED_WITHIN_S
    assert computed == 64


def test_wait_layer_reports_timeout_and_the_link_goes_on(pair):
    a, b = pair
    b.call(bind_ticket, a.call(prepare), 0.3)

    status, seconds, computed = b.call(wait_for_layers)

    assert status == datadist.LLMStatusCode.LLM_TIMEOUT
    assert seconds < NOTICED_WITHIN_S
    assert computed == 64
    a.call(instances.push_blocks, 2, SRC, DST)
    assert torch.equal(b.call(instances.content), expected(SRC, DST))


def push_some_layers(state, layers, timeout_s):
    torch.npu.set_device(state.device)
    state.binding = datadist.Binding(state.device, range(LAYERS))
    state.binding.bind([state.task], timeout_s=timeout_s)
    for layer in layers:
        ops.push_layer(state.status, state.status, layer, state.binding.id)
    ops.finish(state.status, state.status, state.binding.id)
    torch.npu.synchronize()
    return state.status.item(), compute(state)


def test_a_task_whose_forward_stops_half_way_fails_on_both_sides(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 60.0)
    b.send(wait_for_layers)

    sent, computed = a.call(push_some_layers, range(2), 0.3)

    assert sent == datadist.LLMStatusCode.LLM_TIMEOUT
    assert computed == 64
    received, seconds, computed = b.answer()
    assert received == datadist.LLMStatusCode.LLM_TIMEOUT
    assert seconds < NOTICED_WITHIN_S
    assert computed == 64


def drop_task(state):
    state.task = None


def test_a_task_that_is_dropped_before_it_was_bound_ends_the_receivers_wait(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 60.0)
    b.send(wait_for_layers)
    a.call(drop_task)

    status, seconds, _ = b.answer()

    assert status == -1  # LLM_FAILED
    assert seconds < NOTICED_WITHIN_S


def refuse_then_push(state, function, nth):
    emulator.fail_next(function, nth, 207005)
    try:
        instances.push_blocks(state, 2, [0, 2, 4, 6], [7, 5, 3, 1])
    except datadist.LLMException as error:
        # What was queued before the refusal may still write.
        state.datadist.cache_manager.wait_until_settled(timeout_s=20)
        return error.status_code.name, str(error)
    finally:
        emulator.fail_next(function, 0, 0)
    return "LLM_SUCCESS", ""


@pytest.mark.parametrize("nth", [2, 17])
def test_a_refused_copy_is_never_silent_and_costs_one_link_at_most(star, nth):
    """Whose copy it is, is the transport's matter: an engine's costs the link, one of a stream the push."""
    a, b, c = star

    code, message = a.call(refuse_then_push, "aclrtMemcpyAsync", nth)

    moved = torch.equal(b.call(instances.content), expected([0, 2, 4, 6], [7, 5, 3, 1]))
    assert (code == "LLM_SUCCESS") == moved
    assert code == "LLM_SUCCESS" or "207005" in message
    a.call(instances.push_blocks, 3, SRC, DST)
    assert torch.equal(c.call(instances.content), expected(SRC, DST))


def send_all_with_failing_move(state):
    torch.npu.set_device(state.device)
    fail_move(state.raw[2])  # of layer 1
    return push_some_layers(state, range(LAYERS), 5.0)


def bad_calls(state):
    """(what, message) for each call that must raise, and queue nothing."""
    manager = state.datadist.cache_manager
    key = datadist.BlocksCacheKey(2, 0)
    link = state.datadist.link_id(2)
    ids = torch.tensor([1, 2])
    unregistered = [torch.empty_like(tensor) for tensor in state.cache.tensors]
    binding = datadist.Binding(state.device, range(LAYERS))
    task = manager.prepare_push(key, state.cache, [0], [0])
    calls = {
        "src outside": lambda: manager.push_blocks(key, state.cache, [1, 24], [0, 1]),
        "dst outside": lambda: manager.push_blocks(key, state.cache, [0, 1], [1, 99]),
        "dst twice": lambda: manager.push_blocks(key, state.cache, [0, 1], [5, 5]),
        "unequal lists": lambda: manager.push_blocks(key, state.cache, [0, 1], [5]),
        "no such model": lambda: manager.push_blocks(datadist.BlocksCacheKey(2, 9), state.cache, [0], [0]),
        "no such cluster": lambda: manager.push_blocks(datadist.BlocksCacheKey(77, 0), state.cache, [0], [0]),
        "layer range": lambda: manager.push_blocks(
            key, state.cache, [0], [0], src_layer_range=range(0, 9), dst_layer_range=range(0, 9)
        ),
        "not registered": lambda: ops.push_blocks(state.status, unregistered, ids, ids, link=link),
        "ids on npu": lambda: ops.push_blocks(
            state.status, state.cache.tensors, ids.npu(), ids.npu(), link=link
        ),
        "ids of int32": lambda: ops.push_blocks(
            state.status, state.cache.tensors, ids.int(), ids.int(), link=link
        ),
        "half padding": lambda: ops.push_blocks(
            state.status, state.cache.tensors, torch.tensor([1, -1]), ids, link=link
        ),
        "status dtype": lambda: ops.push_blocks(
            state.status.long(), state.cache.tensors, ids, ids, link=link
        ),
        "stale link": lambda: ops.push_blocks(state.status, state.cache.tensors, ids, ids, link=link + 1024),
        "host tensors": lambda: ops.push_layer(torch.zeros(1, dtype=torch.int32), ids, 0, binding.id),
        "never bound": lambda: ops.push_layer(state.status, state.status, 0, binding.id),
        "no such binding": lambda: ops.wait_layer(state.status, state.status, 0, 999),
        "no such ticket": lambda: binding.bind([12345]),
        "own ticket": lambda: binding.bind([task.ticket + (1 << 52)]),
    }
    found = {}
    for what, call in calls.items():
        try:
            call()
            found[what] = "no error"
        except datadist.LLMException as error:
            found[what] = f"{error.status_code.name}: {error}"
    return found


def test_bad_arguments_name_the_value_and_send_nothing(pair):
    a, b = pair

    found = a.call(bad_calls)

    told = {
        "src outside": ("LLM_PARAM_INVALID", "src_blocks[1] = 24", "24 blocks"),
        "dst outside": ("LLM_PARAM_INVALID", "dst_blocks[1] = 99", "24 blocks"),
        "dst twice": ("LLM_PARAM_INVALID", "block 5 twice"),
        "unequal lists": ("LLM_PARAM_INVALID",),
        "no such model": ("LLM_KV_CACHE_NOT_EXIST", "model_id 9"),
        "no such cluster": ("LLM_NOT_YET_LINK", "77"),
        "layer range": ("LLM_PARAM_INVALID",),
        "not registered": ("LLM_KV_CACHE_NOT_EXIST", "hidden style"),
        "ids on npu": ("LLM_PARAM_INVALID", "int64 CPU tensor"),
        "ids of int32": ("LLM_PARAM_INVALID", "int64 CPU tensor"),
        "half padding": ("LLM_PARAM_INVALID", "src_blocks[1] = -1"),
        "status dtype": ("LLM_PARAM_INVALID", "int32[1]"),
        "stale link": ("LLM_NOT_YET_LINK",),
        "host tensors": ("LLM_PARAM_INVALID", "never bound"),
        "never bound": ("LLM_PARAM_INVALID", "never bound"),
        "no such binding": ("LLM_PARAM_INVALID", "no binding 999"),
        "no such ticket": ("LLM_PARAM_INVALID", "12345"),
        "own ticket": ("LLM_PARAM_INVALID",),
    }
    for what, pieces in told.items():
        for piece in pieces:
            assert piece in found[what], f"{what}: {found[what]}"
    assert found.keys() == told.keys()
    assert torch.equal(b.call(instances.content), instances.pattern(20, 2 * LAYERS, 24, 256))


def prepare_until_busy(state):
    """The tickets that there were, and the code of the call that found none left."""
    key = datadist.BlocksCacheKey(2, 0)
    state.tasks = []
    for _ in range(100):
        try:
            state.tasks.append(state.datadist.cache_manager.prepare_push(key, state.cache, [0], [0]))
        except datadist.LLMException as error:
            return [task.ticket for task in state.tasks], error.status_code.name, str(error)
    return [], "LLM_SUCCESS", ""


def discard_all(state, tickets):
    for ticket in tickets:
        discard(ticket)


def one_more_slot(state, within_s):
    """Slots come back once their tasks are given up here and discarded there."""
    state.tasks = []
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        _, code, _ = prepare_until_busy(state)
        if state.tasks:
            return True
        if code != "LLM_LINK_BUSY":
            return False
    return False


def test_slots_that_are_all_in_flight_say_so_and_come_back_when_discarded(peers):
    """Mended: the original documents LLM_LINK_BUSY, and never gives it."""
    a, b = peers(2)
    a.call(instances.start, 1, 0, {"max_in_flight": 4})
    port = b.call(instances.start, 2, 1)
    a.call(instances.register, 10, 2, 4, 64)
    b.call(instances.register, 20, 2, 4, 64)
    a.call(instances.link, 2, port)
    b.call(instances.wait_linked, 1)

    tickets, code, message = a.call(prepare_until_busy)
    b.call(discard_all, tickets)

    assert len(tickets) == 4
    assert code == "LLM_LINK_BUSY"
    assert "all 4 transfers that may be in flight" in message
    assert a.call(one_more_slot, NOTICED_WITHIN_S)


def use_ticket_twice(state, ticket):
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([ticket])
    with pytest.raises(datadist.LLMException, match="bound already"):
        datadist.Binding(state.device, range(LAYERS)).bind([ticket])
    state.binding = binding
    ops.wait_layer(state.status, state.status, LAYERS - 1, binding.id)


def until_ended(state, ticket, within_s):
    torch.npu.synchronize()
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = ticket_state(ticket)
        if found.has_ended:
            return found.code, found.detail
    return "still there", ""


def bind_again(state, ticket):
    with pytest.raises(datadist.LLMException, match=r"used up|ended already"):
        datadist.Binding(state.device, range(LAYERS)).bind([ticket])


def test_a_ticket_serves_one_forward_and_is_used_up(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(use_ticket_twice, ticket)

    a.call(push_some_layers, range(LAYERS), 10.0)

    assert b.call(until_ended, ticket, NOTICED_WITHIN_S) == (0, "")
    b.call(bind_again, ticket)


def test_ticket_state_tells_how_a_transfer_failed_after_the_link_is_gone(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 60.0)
    b.send(wait_for_layers)
    a.kill()
    b.answer()

    code, detail = b.call(until_ended, ticket, NOTICED_WITHIN_S)

    assert code == datadist.LLMStatusCode.LLM_NOT_YET_LINK
    assert "its process ended" in detail


def test_a_failing_move_never_announces_its_layer(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 20.0)
    b.send(wait_for_layers)

    sent, computed = a.call(send_all_with_failing_move)

    assert sent != 0
    assert computed == 64
    received, _, computed = b.answer()
    assert received != 0
    assert computed == 64


def push_with_failing_move(state, cluster_id):
    fail_move(state.raw[2])
    try:
        instances.push_blocks(state, cluster_id, SRC, DST)
    except datadist.LLMException as error:
        return str(error)
    return ""


def test_a_failing_move_costs_that_link_alone(star):
    """Failure mode 1: the streams of the link's context stop, and nobody else's."""
    a, _, c = star
    a.call(instances.push_blocks, 2, SRC, DST)
    a.call(instances.push_blocks, 3, [0], [0])

    message = a.call(push_with_failing_move, 2)

    assert any(code in message for code in MOVE_FAILED)
    assert "cluster 2" in message
    assert a.call(compute) == 64
    a.call(instances.push_blocks, 3, SRC, DST)
    assert torch.equal(c.call(instances.content)[:, DST], expected(SRC, DST)[:, DST])


def prepare_for(state, cluster_id):
    key = datadist.BlocksCacheKey(cluster_id, 0)
    state.task = state.datadist.cache_manager.prepare_push(key, state.cache, SRC, DST)
    return state.task.ticket


def queue_waits(state):
    torch.npu.set_device(state.device)
    for layer in range(LAYERS):
        ops.wait_layer(state.status, state.status, layer, state.binding.id)


def port_of(state):
    return state.datadist.listen_port


def status_at_last(state):
    torch.npu.synchronize()
    return state.status.item()


def test_what_was_mapped_of_a_dead_peer_is_unmapped_while_a_stream_waits_for_another(star, peers):
    """torch_npu synchronises before it unmaps: a stream that waits for c would hold up who links to a."""
    a, b, c = star
    ticket = c.call(prepare_for, 1)
    a.call(bind_ticket, ticket, 40.0)
    a.call(queue_waits)

    b.kill()
    a.call(wait_unlinked, 2, 10)

    (other,) = peers(1)
    other.call(instances.start, 4, 3)
    assert other.call(instances.link, 1, a.call(port_of)) == ["LLM_SUCCESS"]
    c.kill()
    assert a.call(status_at_last) != 0
    assert a.call(compute) == 64


def test_peer_errors_are_seen_by_the_tests(peers):
    (a,) = peers(1)

    with pytest.raises(PeerError, match="ZeroDivisionError"):
        a.call(divide)


def divide(state):
    return 1 / 0
