"""Pushes by layers that fail with copies queued, in whatever way: their blocks are in doubt until those are
through, whoever still holds the task."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.transfers import LAYERS, Always, hold_cut_off, link, restore, start, to, until
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMException,
    LLMStatusCode,
    TransferWatch,
    ops,
)
from torch_llm_datadist.emulator import faults

Pair = tuple[SimpleNamespace, SimpleNamespace]
WITHIN_S = 20.0
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
SRC, DST = [0, 1], [2, 3]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The sender, cluster 1, and the receiver, cluster 2."""
    here, there = start(1, 0), start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.reset()


def hold(here: SimpleNamespace) -> faults.Armed:
    """The next copy of the sender's blocks stands still."""
    return faults.hold_copy(after=0, direction="peer", address=here.raw[0][SRC[0]].data_ptr())


# A busy machine may be so late that the deadline comes before the first copy.
DEADLINES_S = (0.1, 1.0, 10.0)


def late_task(here: SimpleNamespace) -> tuple[datadist.Task, datadist.Binding, faults.Armed]:
    """It fails by its deadline, while one of its copies stands still; its stream is cut off when let go."""
    for timeout_s in DEADLINES_S:
        held, cut_off = hold(here), hold_cut_off()
        task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, SRC, DST, timeout_s=timeout_s)
        binding = datadist.Binding(here.device, range(LAYERS))
        with torch.npu.device(here.device):
            binding.bind([task])
            for layer in range(LAYERS):
                ops.push_layer(here.status, here.raw[0], layer, binding.id)
        until(lambda task=task: task.state().code == TIMEOUT)  # type: ignore[misc]
        if held.fired:
            return task, binding, cut_off
        here.status.zero_()
        faults.reset()
    raise AssertionError("no copy was queued in time")


def listed(here: SimpleNamespace) -> list[tuple[list[int], int, bool]]:
    return [(list(d.blocks), d.cluster_id, d.is_at_peer) for d in here.manager.blocks_in_doubt()]


def test_the_blocks_of_a_task_that_failed_by_its_deadline_are_in_doubt(pair: Pair) -> None:
    here, _ = pair

    task, _, cut_off = late_task(here)

    assert not task.state().has_ended
    assert listed(here) == [(DST, 2, True)]
    assert "did not end within" in here.manager.blocks_in_doubt()[0].why
    cut_off.disarm()
    here.manager.wait_until_settled(timeout_s=WITHIN_S)
    assert task.state().has_ended
    assert listed(here) == []


def test_the_blocks_of_a_task_that_nobody_holds_any_more_are_in_doubt_all_the_same(pair: Pair) -> None:
    here, _ = pair
    task, binding, cut_off = late_task(here)

    del task, binding
    gc.collect()

    assert listed(here) == [(DST, 2, True)]
    cut_off.disarm()
    here.manager.wait_until_settled(timeout_s=WITHIN_S)
    assert listed(here) == []


def late_transfer(here: SimpleNamespace) -> tuple[datadist.CacheTask, faults.Armed]:
    """A transfer by layers of whose copies the first stands still beyond the deadline."""
    for timeout_s in DEADLINES_S:
        held, cut_off = hold(here), hold_cut_off()
        with instances.in_a_hurry(here, round(1000 * timeout_s)):
            task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], SRC, DST)
        until(lambda task=task: task.get_results(0) == [TIMEOUT] and task.details() != [""])  # type: ignore[misc]
        if held.fired:
            return task, cut_off
        faults.reset()
    raise AssertionError("no copy was queued in time")


def test_a_transfer_by_layers_has_not_ended_for_the_watch_while_its_copies_are_queued(pair: Pair) -> None:
    here, _ = pair
    task, cut_off = late_transfer(here)
    until(task.done)
    watch: TransferWatch[str] = TransferWatch()
    watch.add("it", task, DST)

    first = watch.poll()

    assert not task.is_settled()
    assert first.in_doubt["it"].blocks == tuple(DST)
    assert not first.failed
    assert listed(here) == [(DST, 2, True)]
    cut_off.disarm()
    until(task.is_settled)
    assert watch.poll().failed["it"].code == TIMEOUT
    assert listed(here) == []


# What a late transfer may write can be a long list.

TENSORS, BLOCKS, BLOCK_BYTES = 512, 4096, 16
EVERY_OTHER = list(range(0, BLOCKS, 2))


def add_many_blocks(state: SimpleNamespace) -> Any:
    with torch.npu.device(state.device):
        whole = torch.zeros(TENSORS, BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device=f"npu:{state.device}")
        desc = CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
        return state.manager.register_blocks_cache(desc, list(whole), BlocksCacheKey(state.cluster_id, 9))


def test_whoever_asks_what_is_in_doubt_does_not_hold_the_transfer_up(pair: Pair) -> None:
    """Its watchdog needs it: a list of a million ranges is made aside, and once."""
    here, there = pair
    source, target = add_many_blocks(here), add_many_blocks(there)
    assert here.datadist._running.links.sync(2, WITHIN_S)  # it knows the target

    # A machine that takes the processor away for as long does so once, not each time.
    assert any(held_up_while_asked(here, source) < 1 / 4 for _ in range(3))  # a list takes about half

    here.manager.unregister_cache(source.cache_id)
    there.manager.unregister_cache(target.cache_id)


def held_up_while_asked(here: SimpleNamespace, source: datadist.Cache) -> float:
    """The longest time that a late transfer was held, of the time that a push into its blocks took."""
    key = BlocksCacheKey(2, 9)
    held = faults.hold_copy(after=0, direction="peer", nth=1)
    with torch.npu.device(here.device):
        task = here.manager.prepare_push(
            key, source, EVERY_OTHER, EVERY_OTHER, tensor_num_per_layer=TENSORS, timeout_s=60
        )
        binding = datadist.Binding(here.device, range(1))
        binding.bind([task])
        ops.push_layer(here.status, here.status, 0, binding.id)
    held.wait()
    cut_off = hold_cut_off()
    with pytest.raises(LLMException):
        here.manager.cancel(task, timeout_s=0.05)
    ended = threading.Event()

    def push_into_the_same() -> None:
        torch.npu.set_device(here.device)
        with pytest.raises(LLMException, match="are in doubt"), instances.in_a_hurry(here, 20):
            here.manager.push_blocks(key, source, EVERY_OTHER, EVERY_OTHER)
        ended.set()

    pushing = threading.Thread(target=push_into_the_same)
    began = time.monotonic()
    pushing.start()
    longest = 0.0
    while not ended.is_set():
        asked = time.monotonic()
        task.state()
        longest = max(longest, time.monotonic() - asked)
        time.sleep(0.0005)
    pushing.join()
    took = time.monotonic() - began
    held.disarm()
    cut_off.disarm()
    here.manager.wait_until_settled(timeout_s=WITHIN_S)
    here.status.zero_()
    return longest / took


def test_what_was_late_leaves_the_link_as_it_was(pair: Pair) -> None:
    here, there = pair
    sent = restore(here)
    restore(there)
    task, _, cut_off = late_task(here)
    cut_off.disarm()
    here.manager.cancel(task, timeout_s=WITHIN_S)

    with torch.npu.device(here.device):
        here.manager.push_blocks(BlocksCacheKey(2), here.cache, SRC, DST)

    assert torch.equal(instances.content(there)[:, DST], sent[:, SRC])
