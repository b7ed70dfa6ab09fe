"""A link survives 10 000 transfers of every kind, and nothing is left of them: no memory of the host or of
the device, no descriptor, no slot."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests.transfers import LAYERS, Always, link, start, to
from torch_llm_datadist import BlocksCacheKey, discard, ops

TRANSFERS = 10_000
WARM_UP = 4_000
PER_ROUND = 500
RSS_MAY_GROW = 4 << 20  # bytes; a record of 1 KiB lost per transfer is more
STREAMS_MAY_GROW = 8  # the link makes one when all are busy
BLOCK = torch.tensor([1])


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = start(1, 0, max_in_flight=16, sync_kv_timeout=20_000), start(2, 1, sync_kv_timeout=20_000)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@dataclass(frozen=True)
class Footprint:
    """``on_devices``: bytes that anybody has taken there; ``of_torch``: those of its allocator."""

    rss: int
    on_devices: int
    of_torch: int
    files: int
    threads: int


def footprint() -> Footprint:
    gc.collect()
    for device in (0, 1):
        torch.npu.synchronize(device)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    free = [torch.npu.mem_get_info(device) for device in (0, 1)]
    return Footprint(
        resident,
        sum(all_of_it - left for left, all_of_it in free),
        sum(torch.npu.memory_reserved(device) for device in (0, 1)),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def until(ended: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (state := ended()).has_ended:
        assert time.monotonic() < deadline, state
        time.sleep(0.0002)
    return state


def push(here: Any, there: Any, _: int) -> int:
    here.manager.push_blocks(BlocksCacheKey(2), here.cache, [0], [1])
    return 1


def push_with_a_tag(here: Any, there: Any, number: int) -> int:
    here.manager.push_blocks(BlocksCacheKey(2), here.cache, [0], [1], tag=number)
    there.manager.wait_arrival(1, number, 20_000)
    return 1


def pull(here: Any, there: Any, _: int) -> int:
    there.manager.pull_blocks(BlocksCacheKey(1), there.cache, [0], [1])
    return 1


def push_many_on_the_stream(here: Any, there: Any, _: int) -> int:
    link_id = here.datadist.link_id(2)
    for _ in range(200):
        ops.push_blocks(here.status, here.cache.tensors, BLOCK, BLOCK, link=link_id, hold_stream=False)
    ops.push_blocks(here.status, here.cache.tensors, BLOCK, BLOCK, link=link_id)
    torch.npu.synchronize()
    assert here.status.item() == 0
    return 201


def push_by_layers(here: Any, there: Any, _: int) -> int:
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, [0], [1])
    there.waits.bind([task.ticket], timeout_s=20)
    here.sends.bind([task], timeout_s=20)
    for layer in range(LAYERS):
        ops.push_layer(here.status, here.raw[0], layer, here.sends.id)
    ops.finish(here.status, here.raw[0], here.sends.id)
    with torch.npu.device(1):
        for layer in range(LAYERS):
            ops.wait_layer(there.status, there.raw[0], layer, there.waits.id)
        torch.npu.synchronize()
    until(task.state)
    assert there.status.item() == 0
    return 1


def pull_what_was_published(here: Any, there: Any, _: int) -> int:
    publication = here.manager.publish(here.raw[0], here.cache, None, 2)
    there.manager.pull_blocks(BlocksCacheKey(1), there.cache, [0], [1], ticket=publication.ticket)
    publication.wait_taken(20)
    return 1


def discard_at_either_end(here: Any, there: Any, number: int) -> int:
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, [0], [1])
    discard(task if number % 2 else task.ticket)
    until(task.state)
    return 1


def transfer_async(here: Any, there: Any, _: int) -> int:
    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], [0], [1])
    assert task.synchronize(20_000) == datadist.LLMStatusCode.LLM_SUCCESS
    return 1


# The cheap ones often, so that all of them take a few seconds.
KINDS = [
    (push, 10), (push_with_a_tag, 4), (pull, 8), (push_many_on_the_stream, 2), (push_by_layers, 2),
    (pull_what_was_published, 2), (discard_at_either_end, 2), (transfer_async, 1),
]  # fmt: skip


def run(here: Any, there: Any, count: int, first: int) -> int:
    """So many transfers at least; how many in fact."""
    done = 0
    while done < count:
        for kind, times in KINDS:
            for _ in range(times):
                done += kind(here, there, first + done)
    return done


@pytest.mark.races_on_purpose("pushes into one block many times at once; and a checker's memory would count")
def test_ten_thousand_transfers_leave_nothing_behind(pair: Any) -> None:
    here, there = pair
    torch.npu.set_device(0)
    here.sends = datadist.Binding(0, range(LAYERS))
    there.waits = datadist.Binding(1, range(LAYERS))
    done = run(here, there, WARM_UP, 0)
    before = footprint()

    while done < WARM_UP + TRANSFERS:
        done += run(here, there, PER_ROUND, done)
    after = footprint()

    assert after.on_devices <= before.on_devices, (before, after)
    assert after.of_torch == before.of_torch
    assert after.files <= before.files
    assert after.threads <= before.threads + STREAMS_MAY_GROW
    assert after.rss - before.rss < RSS_MAY_GROW, (before, after)
    here.sends.close()
    there.waits.close()
