"""A transfer is ordered with the kernels around it: after the one that wrote the cache, before the one that
reads it.

A delay on a stream stands for a slow kernel; without it a missing order could pass by luck. The tests that
end in ``_control`` leave the ordering op out and see the stale bytes, so they show that the delay would
expose it.
"""

from __future__ import annotations

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.test_push_blocks import linked_pair
from torch_llm_datadist import emulator, ops
from torch_llm_datadist.emulator import faults

KERNEL_S = 0.15
LAYERS = 4
NEW = 77
SRC, DST = [0, 1, 5, 9], [3, 4, 8, 2]


def expected_at_receiver(layers=range(LAYERS)) -> torch.Tensor:
    after = instances.pattern(20, 2 * LAYERS, 24, 256)
    for layer in layers:
        after[2 * layer : 2 * layer + 2, DST] = NEW
    return after


@pytest.fixture
def pair(peers):
    return linked_pair(peers, 2 * LAYERS, 256)


def write_late(state, layer=None):
    """A kernel that takes long and writes the layer (default: all)."""
    emulator.delay_stream(KERNEL_S)
    tensors = state.raw if layer is None else state.raw[2 * layer : 2 * layer + 2]
    for tensor in tensors:
        tensor.fill_(NEW)


def push_op_behind_late_kernel(state):
    torch.npu.set_device(state.device)
    write_late(state)
    ops.push_blocks(
        state.status,
        state.cache.tensors,
        torch.tensor(SRC),
        torch.tensor(DST),
        link=state.datadist.link_id(2),
    )
    for tensor in state.raw:  # later kernels may overwrite what was sent
        tensor.fill_(0)
    torch.npu.synchronize()
    return state.status.item()


def test_push_blocks_op_waits_for_the_kernel_before_and_holds_the_kernel_behind(pair):
    a, b = pair

    assert a.call(push_op_behind_late_kernel) == 0

    assert torch.equal(b.call(instances.content), expected_at_receiver())


def push_behind_late_kernel(state):
    torch.npu.set_device(state.device)
    write_late(state)
    instances.push_blocks(state, 2, SRC, DST)


def test_blocking_push_blocks_waits_for_the_current_stream(pair):
    a, b = pair

    a.call(push_behind_late_kernel)

    assert torch.equal(b.call(instances.content), expected_at_receiver())


def push_on_another_stream(state):
    torch.npu.set_device(state.device)
    torch.npu.synchronize()
    late = torch.npu.current_stream()
    faults.freeze_stream(late)  # for as long as the push takes: the first one of a link may connect it
    write_late(state)
    try:
        with torch.npu.stream(torch.npu.Stream()):
            instances.push_blocks(state, 2, SRC, DST)
    finally:
        faults.thaw_stream(late)


@pytest.mark.races_on_purpose("the order is left out")
def test_push_behind_late_kernel_control(pair):
    """Not ordered after the kernel, since that runs on another stream: the old bytes go."""
    a, b = pair

    a.call(push_on_another_stream)

    before = instances.pattern(10, 2 * LAYERS, 24, 256)
    old = instances.pattern(20, 2 * LAYERS, 24, 256)
    old[:, DST] = before[:, SRC]
    assert torch.equal(b.call(instances.content), old)


def prepare(state, layers=None):
    keys = datadist.BlocksCacheKey(2, 0)
    state.task = state.datadist.cache_manager.prepare_push(
        keys, state.cache, SRC, DST, src_layer_range=layers, dst_layer_range=layers
    )
    return state.task.ticket


def send_layer_by_layer(state, layers=range(LAYERS)):
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([state.task])
    for layer in layers:
        write_late(state, layer)
        ops.push_layer(state.status, state.raw[2 * layer], layer, binding.id)
    ops.finish(state.status, state.raw[0], binding.id)
    for tensor in reversed(
        state.raw
    ):  # the last layer first: its bytes are the ones that may still be on their way
        tensor.fill_(0)
    torch.npu.synchronize()
    return state.status.item()


def receive_layer_by_layer(state, ticket, waits=True):
    """Queues all waits before the first layer was sent; copies each layer as soon as the device may."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([ticket])
    seen = []
    for layer in range(LAYERS):
        if waits:
            ops.wait_layer(state.status, state.status, layer, binding.id)
        seen += [state.raw[2 * layer].clone(), state.raw[2 * layer + 1].clone()]
    state.seen = seen


def what_was_seen(state):
    torch.npu.synchronize(state.device)
    return state.status.item(), torch.stack([tensor.cpu() for tensor in state.seen])


def check_a_layered_forward(a, b):
    """The receiver's is queued first, and sees each layer only once it is there."""
    ticket = a.call(prepare)
    b.call(receive_layer_by_layer, ticket)

    assert a.call(send_layer_by_layer) == 0

    status, seen = b.call(what_was_seen)
    assert status == 0
    assert torch.equal(seen, expected_at_receiver())


def test_wait_layer_never_lets_a_consumer_read_early(pair):
    check_a_layered_forward(*pair)


def slow_down(state):
    """Every task takes long before it does anything, so an early flag would be seen before the bytes."""
    emulator.set_task_delay(0.02)


def test_a_layer_is_announced_after_its_last_byte(pair):
    a, b = pair
    ticket = a.call(prepare)
    b.call(receive_layer_by_layer, ticket)
    a.call(slow_down)

    assert a.call(send_layer_by_layer) == 0

    status, seen = b.call(what_was_seen)
    assert status == 0
    assert torch.equal(seen, expected_at_receiver())


def test_wait_layer_control(pair):
    """The same without the waits: the consumer, queued first, reads the old bytes."""
    a, b = pair
    ticket = a.call(prepare)
    b.call(receive_layer_by_layer, ticket, False)
    old = b.call(what_was_seen)

    a.call(send_layer_by_layer)

    assert torch.equal(old[1], instances.pattern(20, 2 * LAYERS, 24, 256))


def many_transfers(state, count):
    manager = state.datadist.cache_manager
    state.tasks = [
        manager.prepare_push(datadist.BlocksCacheKey(2, 0), state.cache, [block % 24], [block % 24])
        for block in range(count)
    ]
    return [task.ticket for task in state.tasks]


def send_backwards(state):
    """Every task on a binding of its own, the last one first, layers of all of them interleaved over two
    streams."""
    torch.npu.set_device(state.device)
    bindings = []
    for task in state.tasks:
        bindings.append(datadist.Binding(state.device, range(LAYERS)))
        bindings[-1].bind([task])
    streams = [torch.npu.Stream(), torch.npu.Stream()]
    statuses = [torch.zeros(1, dtype=torch.int32).npu() for _ in bindings]
    torch.npu.synchronize()
    for layer in range(LAYERS):
        for i in reversed(range(len(bindings))):
            with torch.npu.stream(streams[i % 2]):
                ops.push_layer(statuses[i], statuses[i], layer, bindings[i].id)
    for i, binding in enumerate(bindings):
        with torch.npu.stream(streams[i % 2]):
            ops.finish(statuses[i], statuses[i], binding.id)
    torch.npu.synchronize()
    return [status.item() for status in statuses]


def receive_each(state, tickets):
    torch.npu.set_device(state.device)
    state.bindings, state.statuses, state.copies = [], [], []
    for block, ticket in enumerate(tickets):
        binding = datadist.Binding(state.device, range(LAYERS))
        binding.bind([ticket])
        status = torch.zeros(1, dtype=torch.int32).npu()
        with torch.npu.stream(torch.npu.Stream()):
            ops.wait_layer(status, status, LAYERS - 1, binding.id)
            state.copies.append(state.raw[-1][block % 24].clone())
        state.bindings.append(binding)
        state.statuses.append(status)


def each_received(state):
    torch.npu.synchronize(state.device)
    return [status.item() for status in state.statuses], torch.stack([copy.cpu() for copy in state.copies])


def test_transfers_in_flight_on_one_link_never_satisfy_each_others_waits(pair):
    a, b = pair
    tickets = a.call(many_transfers, 24)
    assert len(set(tickets)) == 24
    b.call(receive_each, tickets)

    assert a.call(send_backwards) == [0] * 24

    statuses, copies = b.call(each_received)
    assert statuses == [0] * 24
    assert torch.equal(copies, instances.pattern(10, 2 * LAYERS, 24, 256)[-1])


def test_a_slot_is_used_again_and_again(pair):
    """More transfers one after another than there are slots."""
    a, b = pair
    for _ in range(3):
        tickets = a.call(many_transfers, 20)
        b.call(receive_each, tickets)
        assert a.call(send_backwards) == [0] * 20
        assert b.call(each_received)[0] == [0] * 20


def test_a_part_of_the_layers_waits_for_that_part_only(pair):
    a, b = pair
    ticket = a.call(prepare, range(1, 3))
    b.call(receive_part, ticket)

    a.call(send_layer_by_layer, range(1, 3))

    status, seen = b.call(what_was_seen)
    assert status == 0
    assert torch.equal(seen, expected_at_receiver(range(1, 3))[2:6])


def receive_part(state, ticket):
    torch.npu.set_device(state.device)
    with pytest.raises(datadist.LLMException, match="carries layers 1 to 2 only"):
        datadist.Binding(state.device, range(LAYERS)).bind([ticket])
    binding = datadist.Binding(state.device, range(1, 3))
    binding.bind([ticket])
    state.seen = []
    for layer in (1, 2):
        ops.wait_layer(state.status, state.status, layer, binding.id)
        state.seen += [state.raw[2 * layer].clone(), state.raw[2 * layer + 1].clone()]


def test_registration_waits_for_the_kernels_that_initialise_the_tensors(peers):
    """A peer may write to a cache as soon as it is registered; zeros that came after that would undo it."""
    peer = peers(1)[0]
    peer.call(instances.start, 1, 0)

    assert peer.call(register_behind_late_kernel) == [True, 7]


def register_behind_late_kernel(state):
    torch.npu.set_device(state.device)
    tensor = torch.zeros(4, 256, dtype=torch.uint8, device="npu")
    emulator.delay_stream(KERNEL_S)
    tensor.fill_(7)
    desc = datadist.CacheDesc(1, [4, 256], datadist.DataType.DT_UINT8)
    state.datadist.cache_manager.register_blocks_cache(desc, [tensor], datadist.BlocksCacheKey(1, 3))
    is_idle = torch.npu.current_stream().query()
    return [is_idle, int(tensor[3, 255])]
