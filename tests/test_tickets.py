"""Tickets, tasks and bindings at their edges: bound twice, too late, not at all, or behind a busy stream."""

from __future__ import annotations

import time

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.forwards import captured
from tests.test_failures import (
    bind_ticket,
    expected,
    prepare_until_busy,
    push_some_layers,
    until_ended,
    wait_for_layers,
)
from tests.test_ordering import DST, LAYERS, SRC, prepare
from tests.test_push_blocks import linked_pair
from tests.transfers import WITHIN_S, until_announced
from torch_llm_datadist import emulator, ops


@pytest.fixture
def pair(peers):
    return linked_pair(peers, 2 * LAYERS, 256)


def bind_error(state, *tickets):
    try:
        datadist.Binding(state.device, range(LAYERS)).bind(list(tickets), timeout_s=5.0)
    except datadist.LLMException as error:
        return f"{error.status_code.name}: {error}"
    return "no error"


def test_a_ticket_of_a_link_that_is_gone_is_refused(pair):
    a, b = pair
    ticket = a.call(prepare)
    a.kill()
    b.call(until_unlinked, WITHIN_S)

    assert "LLM_NOT_YET_LINK" in b.call(bind_error, ticket)


def until_unlinked(state, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state.datadist.link_id(1)
        except datadist.LLMException:
            return
    raise AssertionError("the link is still there")


def wait_while_streams_run_out(state, ticket):
    """In a replay: eager ops wait on the caller's stream alone."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))

    def forward():
        for layer in range(LAYERS):
            ops.wait_layer(state.status, state.status, layer, binding.id)

    replay = captured(state.device, forward)
    emulator.fail_next("aclrtCreateStreamWithConfig", 1, 207008)
    binding.bind([ticket], timeout_s=30.0)
    replay()
    torch.npu.synchronize()
    return state.status.item()


def test_waits_that_no_stream_can_carry_go_on_with_an_error(pair):
    a, b = pair
    ticket = a.call(prepare)

    status = b.call(wait_while_streams_run_out, ticket)

    assert status == -1  # LLM_FAILED
    code, detail = b.call(until_ended, ticket, WITHIN_S)
    assert code == datadist.LLMStatusCode.LLM_FAILED
    assert "207008" in detail


def refuse_the_wait_itself(state, ticket):
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([ticket], timeout_s=30.0)
    torch.npu.synchronize()
    emulator.fail_next("aclrtValueWait", 1, 207005)
    ops.wait_layer(state.status, state.status, 0, binding.id)
    torch.npu.synchronize()
    return state.status.item()


def test_a_refused_wait_never_looks_like_an_arrival(pair):
    a, b = pair

    assert b.call(refuse_the_wait_itself, a.call(prepare)) == -1


def fail_then_bind_again(state, ticket):
    """The stream is busy: its copy of the first round's status runs after the second bind."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    until_announced(ticket)
    binding.bind([ticket], timeout_s=0.1)
    emulator.delay_stream(0.5)
    ops.wait_layer(state.status, state.status, 0, binding.id)
    assert until_ended_here(ticket, WITHIN_S)
    second = torch.zeros(1, dtype=torch.int32).npu()
    for _ in range(20):
        binding.bind(())
    ops.wait_layer(second, second, 0, binding.id)
    torch.npu.synchronize()
    return state.status.item(), second.item()


def wait_again_behind_a_kernel(state, ticket):
    """Ops that meet no gate, since their layer was waited for, and run long after the next bind."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    late = torch.zeros(2, dtype=torch.int32).npu()
    until_announced(ticket)
    binding.bind([ticket], timeout_s=0.1)
    ops.wait_layer(state.status, state.status, 0, binding.id)
    assert until_ended_here(ticket, WITHIN_S)
    for layer in range(1, LAYERS):
        ops.wait_layer(state.status, state.status, layer, binding.id)
    torch.npu.synchronize()
    side = torch.npu.Stream()
    emulator.delay_stream(0.5)
    emulator.delay_stream(0.5, side)
    ops.wait_layer(late[:1], late[:1], 0, binding.id)
    with torch.npu.stream(side):
        ops.wait_layer(late[1:], late[1:], 0, binding.id)
    for _ in range(20):
        binding.bind(())
    torch.npu.synchronize()
    return late.tolist()


def test_an_op_that_met_no_gate_reads_the_status_of_its_own_forward_however_late(pair):
    a, b = pair

    codes = b.call(wait_again_behind_a_kernel, a.call(prepare))

    assert codes == [datadist.LLMStatusCode.LLM_TIMEOUT] * 2


def until_ended_here(ticket, within_s):
    from torch_llm_datadist.binding import ticket_state

    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if ticket_state(ticket).has_ended:
            return True
    return False


def test_an_error_reaches_the_status_although_the_host_has_bound_the_next_forward(pair):
    a, b = pair

    first, second = b.call(fail_then_bind_again, a.call(prepare))

    assert first == datadist.LLMStatusCode.LLM_TIMEOUT
    assert second == 0


def test_a_bind_that_is_refused_leaves_its_tickets_usable(pair):
    a, b = pair
    ticket = a.call(prepare)

    assert "bound already" in b.call(bind_error, ticket, ticket)

    b.call(bind_ticket, ticket, 30.0)
    b.send(wait_for_layers)
    assert a.call(push_some_layers, range(LAYERS), 30.0)[0] == 0
    assert b.answer()[0] == 0


def drop_tasks(state, count):
    for _ in range(count):
        prepare(state)
        state.task = None


def prepare_within(state, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        tickets, _, _ = prepare_until_busy(state)
        if len(tickets) > 50:
            return True
    return False


def test_tasks_that_are_dropped_give_their_slots_back_without_the_receivers_application(pair):
    a, _ = pair
    a.call(drop_tasks, 200)

    assert a.call(prepare_within, 10.0)


def bind_two(state, first, second):
    torch.npu.set_device(state.device)
    state.binding = datadist.Binding(state.device, range(LAYERS))
    state.binding.bind([first, second], timeout_s=1.0)
    ops.wait_layer(state.status, state.status, LAYERS - 1, state.binding.id)


def test_a_ticket_that_arrived_is_not_blamed_for_the_one_beside_it(pair):
    a, b = pair
    late = a.call(prepare)
    a.call(keep_task)
    ticket = a.call(prepare)
    b.call(bind_two, ticket, late)

    assert a.call(push_some_layers, range(LAYERS), 30.0)[0] == 0

    assert b.call(until_ended, ticket, 10.0) == (0, "")
    assert b.call(until_ended, late, 10.0)[0] == datadist.LLMStatusCode.LLM_TIMEOUT


def keep_task(state):
    state.kept = state.task


def close_a_binding_that_waits(state, ticket):
    """Its words must not serve others while its stream may still write them."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([ticket], timeout_s=60.0)
    binding.bind(())
    binding.close()
    state.tasks = [
        state.datadist.cache_manager.prepare_push(datadist.BlocksCacheKey(1, 0), state.cache, [0], [0])
        for _ in range(30)
    ]


def tasks_ended(state):
    return [task.state().has_ended for task in state.tasks]


def test_a_binding_that_is_closed_while_it_waits_keeps_its_words_until_the_layers_arrived(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(close_a_binding_that_waits, ticket)

    assert a.call(push_some_layers, range(LAYERS), 30.0)[0] == 0

    assert b.call(until_ended, ticket, 10.0) == (0, "")
    assert not any(b.call(tasks_ended))


def bind_task_twice(state):
    binding = datadist.Binding(state.device, range(LAYERS))
    task = state.task
    try:
        binding.bind([task, task])
    except datadist.LLMException as error:
        return str(error)
    return "no error"


def test_a_task_is_sent_once(pair):
    a, _ = pair
    a.call(prepare)

    assert "bound before" in a.call(bind_task_twice)


def absurd_numbers(state):
    ids = torch.tensor([0])
    arguments = {"link": state.datadist.link_id(2)}
    found = []
    for extra in (
        {"src_layer": 1, "dst_layer": 1, "num_layers": 2**63 - 1},
        {"src_layer": 2**62, "num_layers": 1},
        {"src_layer": -1, "num_layers": 1},
        {"timeout_ms": 2**62},
        {"timeout_ms": -5},
        {"tensors_per_layer": 2**40},
        {"tensors_per_layer": 0},
    ):
        try:
            ops.push_blocks(state.status, state.cache.tensors, ids, ids, **arguments, **extra)
            found.append("no error")
        except datadist.LLMException as error:
            found.append(error.status_code.name)
    return found


def test_absurd_numbers_are_refused(pair):
    a, b = pair

    assert a.call(absurd_numbers) == ["LLM_PARAM_INVALID"] * 7

    a.call(instances.push_blocks, 2, SRC, DST)
    assert torch.equal(b.call(instances.content), expected(SRC, DST))


def test_nothing_lands_after_the_receiver_gave_up(pair):
    """Its blocks may serve another request by then."""
    a, b = pair
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 0.2)
    assert b.call(wait_for_layers)[0] == datadist.LLMStatusCode.LLM_TIMEOUT
    assert b.call(until_ended, ticket, WITHIN_S)[0] == datadist.LLMStatusCode.LLM_TIMEOUT

    assert "has ended already" in a.call(bind_task_twice)

    assert torch.equal(b.call(instances.content), instances.pattern(20, 2 * LAYERS, 24, 256))


def test_nothing_lands_after_a_ticket_was_discarded(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(discard_one, ticket)
    assert b.call(until_ended, ticket, WITHIN_S)[1] == "discarded"

    assert "has ended already" in a.call(bind_task_twice)


def discard_one(state, ticket):
    from torch_llm_datadist.binding import discard

    discard(ticket)


def misuse_layer_ops(state):
    torch.npu.set_device(state.device)
    elsewhere = torch.zeros(1).to(f"npu:{state.device + 2}")
    here = torch.zeros(1).npu()
    binding = datadist.Binding(state.device, range(LAYERS))
    other = datadist.Binding(state.device + 2, range(LAYERS))
    calls = [
        lambda: other.bind([state.task]),
        lambda: binding.bind([state.task]),
        lambda: ops.push_layer(state.status, elsewhere, 0, binding.id),
        lambda: ops.push_layer(state.status, here, 0, binding.id),
        lambda: ops.push_layer(state.status, here, 0, binding.id),
        lambda: ops.push_layer(state.status, here, LAYERS, binding.id),
    ]
    found = []
    for call in calls:
        try:
            call()
            found.append("")
        except datadist.LLMException as error:
            found.append(str(error))
    return found


def test_misuse_of_layer_ops_is_refused_before_it_sends_wrong_bytes(pair):
    a, _ = pair
    a.call(prepare)

    found = a.call(misuse_layer_ops)

    assert "binding 2 is on npu:2" in found[0]
    assert found[1] == ""
    assert "it orders nothing there" in found[2]
    assert found[3] == ""
    assert "pushed before in this forward" in found[4]
    assert "is not a layer of binding" in found[5]
