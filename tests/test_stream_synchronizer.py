"""StreamLayerSynchronizer: transfer_cache_async whose layers an op of the forward releases."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.forwards import captured
from tests.transfers import LAYERS, OK, link, pattern, restore, start, to
from torch_llm_datadist import LLMStatusCode, StreamLayerSynchronizer, emulator

NEW = 77
SRC, DST = [1, 2, 5], [4, 0, 3]


@pytest.fixture(scope="module")
def three():
    made = [start(1 + i, i) for i in range(3)]
    link(made[0], made[1])
    link(made[0], made[2])
    yield made
    for each in made:
        each.datadist.finalize()


@pytest.fixture
def sender(three):
    for each in three:
        restore(each)
    torch.npu.set_device(0)
    return three[0]


@pytest.fixture
def synchronizer(sender):
    made = StreamLayerSynchronizer(0, range(LAYERS))
    yield made
    made.binding.close()


def send(sender, synchronizer, *configs):
    return sender.manager.transfer_cache_async(sender.cache, synchronizer, list(configs), SRC, DST)


def forward(sender, synchronizer, layers=range(LAYERS), compiled=False):
    """Writes each layer late and records it. The synchronizer's op is all that orders the two."""

    def one_layer(x, layer):
        keys = x * 2
        synchronizer.record_layer(layer, keys)
        return keys + 1

    run = torch.compile(one_layer, backend="aot_eager", fullgraph=True) if compiled else one_layer
    x = torch.ones(4, device="npu:0")
    for layer in layers:
        emulator.delay_stream(0.02)
        for tensor in sender.raw[2 * layer : 2 * layer + 2]:
            tensor.fill_(NEW)
        x = run(x, layer)


def expected(cluster_id, layers=range(LAYERS)):
    after = pattern(cluster_id)
    for layer in layers:
        after[2 * layer : 2 * layer + 2, DST] = NEW
    return after


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_leave_when_the_stream_has_recorded_them_to_all_destinations(
    three, sender, synchronizer, compiled
):
    task = send(sender, synchronizer, to(2, range(LAYERS), range(LAYERS)), to(3, range(1, 3), range(1, 3)))

    forward(sender, synchronizer, compiled=compiled)

    assert not [thread for thread in threading.enumerate() if "transfer" in thread.name]
    assert task.get_results(30_000) == [OK, OK]
    assert torch.equal(instances.content(three[1]), expected(2))
    assert torch.equal(instances.content(three[2]), expected(3, range(1, 3)))
    assert synchronizer.status.item() == 0


@pytest.mark.races_on_purpose("looks at a cache whose other layers are under way")
def test_nothing_is_sent_before_it_is_recorded(three, sender, synchronizer):
    task = send(sender, synchronizer, to(2, range(LAYERS), range(LAYERS)))
    forward(sender, synchronizer, range(LAYERS - 1))

    assert task.synchronize(50) == LLMStatusCode.LLM_TIMEOUT
    assert not task.done()
    assert torch.equal(instances.content(three[1])[-2:], pattern(2)[-2:])

    forward(sender, synchronizer, [LAYERS - 1])
    assert task.synchronize(30_000) == OK


def test_finish_gives_the_source_back_on_the_stream(three, sender, synchronizer):
    task = send(sender, synchronizer, to(2, range(LAYERS), range(LAYERS)))

    forward(sender, synchronizer)
    synchronizer.finish(synchronizer.status)
    for tensor in reversed(sender.raw):
        tensor.zero_()

    assert task.synchronize(30_000) == OK
    assert torch.equal(instances.content(three[1]), expected(2))


def test_one_synchronizer_serves_one_forward_after_the_other(three, sender, synchronizer):
    for peer in (1, 2, 1):
        cluster_id = three[peer].cluster_id
        task = send(sender, synchronizer, to(cluster_id, range(LAYERS), range(LAYERS)))
        forward(sender, synchronizer)
        assert task.synchronize(30_000) == OK
        assert torch.equal(instances.content(three[peer]), expected(cluster_id))


def test_a_captured_forward_serves_one_transfer_after_the_other(three, sender, synchronizer):
    """The graph knows the synchronizer's binding; who it sends to is said before each replay."""
    replay = captured(0, lambda: forward(sender, synchronizer))
    for peer in (1, 2, 1):
        cluster_id = three[peer].cluster_id
        task = send(sender, synchronizer, to(cluster_id, range(LAYERS), range(LAYERS)))
        replay()
        assert task.synchronize(30_000) == OK
        assert torch.equal(instances.content(three[peer]), expected(cluster_id))
    assert synchronizer.status.item() == 0


def test_a_destination_that_is_not_there_has_its_own_result_and_the_other_is_served(
    three, sender, synchronizer
):
    task = send(sender, synchronizer, to(9, range(LAYERS), range(LAYERS)), to(2, range(2), range(2)))

    forward(sender, synchronizer)

    assert task.get_results(30_000) == [LLMStatusCode.LLM_NOT_YET_LINK, OK]
    assert "transfer_configs[0] (cluster 9)" in task.details()[0]
    assert torch.equal(instances.content(three[1]), expected(2, range(2)))


def test_a_forward_that_does_not_record_a_layer_ends_with_a_timeout(sender):
    synchronizer = StreamLayerSynchronizer(0, range(LAYERS), timeout_s=0.05)
    task = send(sender, synchronizer, to(2, range(LAYERS), range(LAYERS)))

    forward(sender, synchronizer, range(1))

    assert task.synchronize(30_000) == LLMStatusCode.LLM_TIMEOUT
    assert task.done()


def test_layers_that_the_forward_does_not_record_are_refused(sender):
    synchronizer = StreamLayerSynchronizer(0, range(1))

    task = send(sender, synchronizer, to(2, range(2), range(2)))

    assert task.get_results(0) == [LLMStatusCode.LLM_PARAM_INVALID]
    assert "layer 1" in task.details()[0]


def test_it_can_be_awaited(sender, synchronizer):
    task = send(sender, synchronizer, to(2, range(LAYERS), range(LAYERS)))
    forward(sender, synchronizer)

    async def wait_for_it():
        return await asyncio.wait_for(_code(task), 30)

    assert asyncio.run(wait_for_it()) == OK


async def _code(task):
    return await task


def test_nobody_waits_on_a_host_for_it(synchronizer):
    with pytest.raises(datadist.LLMException, match="record_layer in the forward"):
        synchronizer.synchronize_layer(0, None)
