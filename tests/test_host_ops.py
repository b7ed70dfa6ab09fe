"""Ops with a status and an ordering tensor on the CPU, as a graph of a model on the CPU has them.

There is no stream: what the calling thread computed is done, and an op blocks it where a stream would wait.
Two instances of this process, with caches in host memory; the sender and the receiver are threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.conformance.case import check_raises
from tests.transfers import until_announced
from torch_llm_datadist import BlocksCacheKey, LLMStatusCode, Placement, ops
from torch_llm_datadist.emulator import faults

HERE, THERE = 1, 2
LAYERS, BLOCKS, BLOCK = 3, 6, 96
TENSORS = 2 * LAYERS
Pair = tuple[SimpleNamespace, SimpleNamespace]
POOL = '{"memory_size": 4194304, "page_shift": 12}'
INVALID = LLMStatusCode.LLM_PARAM_INVALID
MODEL = {"plain": 0, "pool": 1, "device": 2}


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, HERE, 0, {"host_mem_pool_cfg": POOL})
    port = instances.start(there, THERE, 1, {"host_mem_pool_cfg": POOL})
    for state in (here, there):
        state.manager = state.datadist.cache_manager
        for kind, model in MODEL.items():
            placement = Placement.DEVICE if kind == "device" else Placement.HOST
            desc = caches.describe(TENSORS, BLOCKS, BLOCK, placement)
            caches.add(
                state, kind, 10 * state.cluster_id + model, desc, is_blocks=True,
                key=BlocksCacheKey(state.cluster_id, model), allocate=kind == "pool",
                remote_accessible=None if kind == "pool" else True,
            )  # fmt: skip
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    instances.wait_linked(there, HERE)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def cpu_status() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32)


def code(status: torch.Tensor) -> str:
    return LLMStatusCode(int(status.item())).name


def content(state: SimpleNamespace, kind: str, layer: int) -> list[torch.Tensor]:
    return [t.view(BLOCKS, BLOCK) for t in state.raw[kind][2 * layer : 2 * layer + 2]]


def prepare(here: SimpleNamespace, to: str = "plain", source: str = "plain") -> Any:
    key = BlocksCacheKey(THERE, MODEL[to])
    return here.manager.prepare_push(key, here.caches[source], [1, 2], [5, 0])


def bound(device: int, transfer: Any, timeout_s: float = 20) -> datadist.Binding:
    binding = datadist.Binding(device, range(LAYERS))
    if isinstance(transfer, int):
        until_announced(transfer)
    binding.bind([transfer], timeout_s=timeout_s)
    return binding


def in_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("source", ["plain", "pool"])
@pytest.mark.parametrize("to", ["plain", "pool", "device"])
def test_layers_written_by_cpu_kernels_arrive_before_the_waiting_thread_goes_on(
    pair: Pair, source: str, to: str
) -> None:
    here, there = pair
    task = prepare(here, to, source)
    sender, receiver = bound(0, task), bound(1, task.ticket)
    sent, got = cpu_status(), cpu_status()
    seen: list[list[torch.Tensor]] = []

    def receive() -> None:
        query = torch.zeros(4)
        for layer in range(LAYERS):
            ops.wait_layer(got, query, layer, receiver.id)
            seen.append([tensor[[5, 0]].cpu() for tensor in content(there, to, layer)])

    thread = in_a_thread(receive)
    for layer in range(LAYERS):
        for tensor in content(here, source, layer):
            tensor[[1, 2]] = torch.randint(0, 256, (2, BLOCK), dtype=torch.uint8)
        ops.push_layer(sent, content(here, source, layer)[1], layer, sender.id)
    ops.finish(sent, sent, sender.id)
    expected = [[t[[1, 2]].clone() for t in content(here, source, layer)] for layer in range(LAYERS)]
    for layer in range(LAYERS):
        for tensor in content(here, source, layer):
            tensor.fill_(0)  # behind `finish` the source is ours again
    thread.join(20)

    assert [code(sent), code(got)] == ["LLM_SUCCESS"] * 2
    for layer in range(LAYERS):
        assert all(torch.equal(a, b) for a, b in zip(seen[layer], expected[layer], strict=True)), layer


def test_wait_layer_blocks_until_that_layer_and_no_longer(pair: Pair) -> None:
    """And lets go of the GIL: the layers are pushed by another thread of this interpreter."""
    here, _ = pair
    task = prepare(here)
    sender, receiver = bound(0, task), bound(1, task.ticket)
    status, passed = cpu_status(), [threading.Event() for _ in range(LAYERS)]

    def receive() -> None:
        for layer in range(LAYERS):
            ops.wait_layer(status, status, layer, receiver.id)
            passed[layer].set()

    in_a_thread(receive)
    for layer in range(LAYERS):
        assert not passed[layer].wait(0.02)
        ops.push_layer(status, status, layer, sender.id)
        assert passed[layer].wait(20)


def test_a_wait_ends_at_the_deadline_with_a_code(pair: Pair) -> None:
    task = prepare(pair[0])
    until_announced(task.ticket)
    status = cpu_status()

    began = time.monotonic()
    receiver = bound(1, task.ticket, timeout_s=0.5)
    ops.wait_layer(status, status, 0, receiver.id)

    assert code(status) == "LLM_TIMEOUT"
    assert time.monotonic() - began >= 0.49


def test_finish_ends_at_the_deadline_with_a_code(pair: Pair) -> None:
    sender = bound(0, prepare(pair[0]), timeout_s=0.5)
    status = cpu_status()
    ops.push_layer(status, status, 0, sender.id)

    ops.finish(status, status, sender.id)

    assert code(status) == "LLM_TIMEOUT"


def test_a_wait_ends_when_the_sender_gives_up(pair: Pair) -> None:
    here, _ = pair
    task = prepare(here)
    sender, receiver = bound(0, task), bound(1, task.ticket)
    status = cpu_status()
    ended = threading.Event()

    def receive() -> None:
        ops.wait_layer(status, status, 0, receiver.id)
        ended.set()

    in_a_thread(receive)
    assert not ended.wait(0.02)
    here.datadist.unlink_clusters([here.peer], force=True)

    assert ended.wait(20)
    assert code(status) == "LLM_NOT_YET_LINK"
    sender.close()


def test_a_wait_that_comes_long_after_its_ticket_failed_ends(pair: Pair) -> None:
    late = prepare(pair[0])
    receiver = bound(1, late.ticket, timeout_s=0.1)
    end = time.monotonic() + 20
    while not datadist.ticket_state(late.ticket).has_ended:
        assert time.monotonic() < end
        time.sleep(0.005)
    status = cpu_status()

    waiting = in_a_thread(lambda: ops.wait_layer(status, status, 0, receiver.id))

    waiting.join(20)
    assert not waiting.is_alive()
    assert code(status) == "LLM_TIMEOUT"


def test_a_host_waits_also_when_a_stream_was_told_to_before(pair: Pair) -> None:
    here, there = pair
    task = prepare(here, to="device")
    sender, receiver = bound(0, task), bound(1, task.ticket)
    ops.wait_layer(there.status, there.status, 0, receiver.id)
    status = cpu_status()

    waiting = in_a_thread(lambda: ops.wait_layer(status, status, 0, receiver.id))

    waiting.join(0.1)
    assert waiting.is_alive()
    for layer in range(LAYERS):
        ops.push_layer(cpu_status(), status, layer, sender.id)
    waiting.join(20)
    assert not waiting.is_alive()
    assert code(status) == "LLM_SUCCESS"
    assert torch.equal(content(there, "device", 0)[0][5].cpu(), content(here, "plain", 0)[0][1].cpu())


def test_the_next_forward_begins_without_the_last_ones_error(pair: Pair) -> None:
    here, _ = pair
    late = prepare(here)
    receiver = bound(1, late.ticket, timeout_s=0.5)
    status = cpu_status()
    ops.wait_layer(status, status, 0, receiver.id)
    assert code(status) == "LLM_TIMEOUT"
    task = prepare(here)
    sender = bound(0, task)
    for layer in range(LAYERS):
        ops.push_layer(status, status, layer, sender.id)

    receiver.bind([task.ticket], timeout_s=20)
    for layer in reversed(range(LAYERS)):
        ops.wait_layer(status, status, layer, receiver.id)

    assert code(status) == "LLM_SUCCESS"


def test_a_forward_without_a_transfer_and_open_layers_wait_for_nothing(pair: Pair) -> None:
    here, _ = pair
    status = torch.full((1,), 7, dtype=torch.int32)
    binding = datadist.Binding(1, range(LAYERS))
    binding.bind(())
    for layer in range(LAYERS):
        ops.wait_layer(status, status, layer, binding.id)
        ops.push_layer(status, status, layer, binding.id)
    ops.finish(status, status, binding.id)
    assert code(status) == "LLM_SUCCESS"

    late = prepare(here)
    binding.bind([late.ticket], open_layers=[1], timeout_s=20)
    ops.wait_layer(status, status, 1, binding.id)
    assert code(status) == "LLM_SUCCESS"
    datadist.discard(late)
    ops.wait_layer(status, status, 2, binding.id)
    assert int(status.item()) == -1  # LLM_FAILED


def test_layer_ops_refuse_by_name(pair: Pair) -> None:
    here, _ = pair
    status = cpu_status()
    device_task = bound(0, prepare(here, "plain", "device"))
    host_task = bound(0, prepare(here))
    npu, unbound = here.status, datadist.Binding(0, [0])
    calls = {
        "from npu:0": lambda: ops.push_layer(status, status, 0, device_task.id),
        "pushed before": lambda: [ops.push_layer(status, status, 0, host_task.id) for _ in range(2)],
        "layer 9 is not": lambda: ops.wait_layer(status, status, 9, host_task.id),
        "int32[1]": lambda: ops.finish(status.long(), status, host_task.id),
        "status is on cpu": lambda: ops.wait_layer(status, npu, 0, host_task.id),
        "the ordering tensor is on cpu": lambda: ops.wait_layer(npu, status, 0, host_task.id),
        "never bound": lambda: ops.finish(status, status, unbound.id),
    }
    for said, call in calls.items():
        assert said in check_raises(INVALID, call)


# Ops that move whole requests, and those that copy within the process.


def move(name: str, here: SimpleNamespace, status: torch.Tensor, **arguments: Any) -> None:
    link = here.datadist.link_id(THERE)
    ids, to = torch.tensor([1, 2]), torch.tensor([5, 0])
    tensors = here.caches["plain"].tensors
    getattr(ops, name)(status, tensors, ids, to, link=link, model_id=0, **arguments)


def test_blocks_move_while_the_calling_thread_is_blocked(pair: Pair) -> None:
    here, there = pair
    status = torch.full((1,), 7, dtype=torch.int32)
    ours = [t.clone() for t in here.raw["plain"]]
    theirs = [t.clone() for t in there.raw["plain"]]

    move("push_blocks", here, status)
    for tensor, of in zip(caches.rows(theirs, BLOCKS), caches.rows(ours, BLOCKS), strict=True):
        tensor[[5, 0]] = of[[1, 2]]
    assert caches.equal(there.raw["plain"], theirs)
    assert code(status) == "LLM_SUCCESS"

    move("pull_blocks", here, status)
    for tensor, of in zip(caches.rows(ours, BLOCKS), caches.rows(theirs, BLOCKS), strict=True):
        tensor[[5, 0]] = of[[1, 2]]
    assert caches.equal(here.raw["plain"], ours)


def test_a_move_that_fails_is_in_the_status(pair: Pair) -> None:
    status = cpu_status()
    faults.fail_next("aclrtLaunchHostFunc", 1, 507000)

    move("push_blocks", pair[0], status)

    assert int(status.item()) == -1  # LLM_FAILED
    move("push_blocks", pair[0], status)  # nothing but that transfer was lost
    assert code(status) == "LLM_SUCCESS"


def test_local_copies_are_made_at_once() -> None:
    status = cpu_status()
    a, b = torch.arange(12).view(4, 3), torch.zeros(4, 3, dtype=torch.int64)

    ops.copy_cache(status, [b], [a], dst_batch=0, src_batch=2)
    ops.swap_blocks(status, [a], [b], torch.tensor([1, 0]), torch.tensor([2, 3]))
    ops.copy_blocks(status, [b], torch.tensor([0]), torch.tensor([1]))

    assert b.tolist() == [[6, 7, 8], [6, 7, 8], [3, 4, 5], [0, 1, 2]]
    message = check_raises(
        INVALID, lambda: ops.copy_blocks(status, [b], torch.tensor([0]), torch.tensor([9]))
    )
    assert "9" in message
