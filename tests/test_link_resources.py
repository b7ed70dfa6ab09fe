"""What a link holds, and when it gives it back: streams, staging buffers, the time that its end takes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.transfers import BLOCK_BYTES, BLOCKS, LAYERS, link, pattern, restore, start, until
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
    ops,
)
from torch_llm_datadist.announcements import Announcements
from torch_llm_datadist.emulator import faults, libraries

WITHIN_S = 20.0
IDLE_MS = 60
LATE_MS = 2000  # in which the link's thread begins to run, and gets to it


class Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "allocations", "bytes", "contexts", "streams", "events", "tasks", "bytes_copied", "words_woken",
        )
    ]  # fmt: skip


def streams() -> int:
    """Those that somebody made: each context has one of its own, and a link's thread makes its context when
    it gets to run, which may be after the link is there."""
    found = Stats()
    libraries.runtime().emuStats(ctypes.byref(found))
    return int(found.streams - found.contexts)


@pytest.fixture
def made() -> Iterator[Callable[..., SimpleNamespace]]:
    """``start`` of instances that end with the test."""
    all_of_them: list[SimpleNamespace] = []

    def make(*arguments: Any, **options: Any) -> SimpleNamespace:
        all_of_them.append(start(*arguments, **options))
        return all_of_them[-1]

    yield make
    faults.reset()
    for state in all_of_them:
        state.datadist.finalize()


def push(here: SimpleNamespace, src: list[int], dst: list[int]) -> None:
    with torch.npu.device(here.device):
        here.manager.push_blocks(BlocksCacheKey(2), here.cache, src, dst)


def test_an_idle_link_holds_no_stream(made: Callable[..., SimpleNamespace]) -> None:
    here, there = made(1, 0, stream_idle_ms=IDLE_MS), made(2, 1, stream_idle_ms=IDLE_MS)
    link(here, there)
    torch.npu.synchronize(0)
    before = streams()

    held = faults.hold_copy(after=0, direction="peer", address=here.raw[0][0].data_ptr())
    number = begin(here, [0], [1], 60_000)
    held.wait()
    held.disarm()
    assert wait_for(number) == 0

    until(lambda: streams() <= before)
    push(here, [2], [3])
    until(lambda: streams() <= before)
    assert torch.equal(instances.content(there)[:, 3], pattern(1)[:, 2])


def begin(here: SimpleNamespace, src: list[int], dst: list[int], timeout_ms: int) -> int:
    native = datadist.binding._native.load()
    number: int = native.transfer_create()
    with torch.npu.device(here.device):
        ops.push_blocks(
            here.status, here.cache.tensors, torch.tensor(src), torch.tensor(dst),
            link=here.datadist.link_id(2), hold_stream=False, transfer=number, timeout_ms=timeout_ms,
        )  # fmt: skip
    return number


def wait_for(number: int) -> int:
    code: int = datadist.binding._native.load().transfer_wait(number)[0]
    return code


@pytest.mark.races_on_purpose("looks at blocks until the late copies have written them")
def test_whole_transfers_that_share_a_stream_wait_for_a_late_one_and_are_not_cut(
    made: Callable[..., SimpleNamespace],
) -> None:
    """With one stream beside the shared one: the second and the third transfer share."""
    here, there = made(1, 0, streams_per_link=1, sync_kv_timeout=20_000), made(2, 1)
    for state in (here, there):  # where no copy covers blocks of several tensors
        state.manager.unregister_cache(state.cache.cache_id)
        instances.register(state, state.cluster_id, 2 * LAYERS, BLOCKS, BLOCK_BYTES, apart=True)
    link(here, there)
    sent, before = restore(here), restore(there)
    held = [
        faults.hold_copy(after=0, direction="peer", address=here.raw[0][block].data_ptr()) for block in (0, 2)
    ]

    numbers = [begin(here, [0], [0], LATE_MS)]
    held[0].wait()
    numbers += [begin(here, [2], [2], LATE_MS), begin(here, [4], [4], LATE_MS)]
    held[1].wait()

    # Each has its own deadline, and none of them is cut off: what is late is late.
    assert [wait_for(number) for number in numbers] == [LLMStatusCode.LLM_TIMEOUT] * 3
    assert torch.equal(instances.content(there), before)
    held[0].disarm()
    until(lambda: torch.equal(instances.content(there)[:, 0], sent[:, 0]))
    assert torch.equal(instances.content(there)[:, 4], before[:, 4])  # behind the one that still stands
    held[1].disarm()
    until(lambda: torch.equal(instances.content(there)[:, [2, 4]], sent[:, [2, 4]]))
    push(here, [1], [1])  # the link is as good as before
    assert torch.equal(instances.content(there)[:, 1], sent[:, 1])


def add_host_cache(state: SimpleNamespace) -> None:
    state.host = [torch.zeros(4, 256, dtype=torch.uint8) for _ in range(2)]
    desc = CacheDesc(2, [4, 256], DataType.DT_UINT8, Placement.HOST)
    key = BlocksCacheKey(state.cluster_id, 5)
    state.host_cache = state.manager.register_blocks_cache(desc, state.host, key, remote_accessible=True)


def pull_to_host(here: SimpleNamespace, cluster_id: int) -> None:
    with torch.npu.device(here.device):
        here.manager.pull_blocks(
            BlocksCacheKey(cluster_id), here.host_cache, [0], [1],
            src_layer_range=range(1), dst_layer_range=range(1),
        )  # fmt: skip


def test_links_share_a_bound_on_their_staging_and_an_idle_one_makes_room(
    made: Callable[..., SimpleNamespace],
) -> None:
    """The bound is that of one link's two buffers: another link finds no room until the first is idle."""
    here = made(1, 0, staging_limit=4 << 20, stream_idle_ms=3000, sync_kv_timeout=20_000)
    others = [made(2, 1), made(3, 1)]
    for other in others:
        link(here, other)
    add_host_cache(here)
    pull_to_host(here, 2)

    with pytest.raises(LLMException, match="staging_limit") as raised:
        pull_to_host(here, 3)

    assert raised.value.status_code == LLMStatusCode.LLM_LINK_BUSY
    assert raised.value.blocks_in_doubt == ()
    pull_to_host(here, 2)

    def has_room() -> bool:
        try:
            pull_to_host(here, 3)
        except LLMException:
            time.sleep(0.2)
            return False
        return True

    until(has_room)
    assert torch.equal(here.host[0][1], pattern(3)[0, 0])


def test_unlinking_with_force_does_not_wait_for_what_runs(made: Callable[..., SimpleNamespace]) -> None:
    here, there = made(1, 0, sync_kv_timeout=60_000, close_timeout=30_000), made(2, 1)
    link(here, there)
    held = faults.hold_copy(after=0, direction="peer", address=here.raw[0][0].data_ptr())
    number = begin(here, [0], [1], 60_000)
    held.wait()
    began = time.monotonic()

    codes = here.datadist.unlink_clusters([here.peer], timeout=20_000, force=True)[1]

    assert codes == [LLMStatusCode.LLM_SUCCESS]
    assert time.monotonic() - began < 20  # not close_timeout
    assert wait_for(number) == LLMStatusCode.LLM_NOT_YET_LINK


def bind_until_busy(here: SimpleNamespace, tasks: list[Any], at_most: int) -> LLMException | None:
    with torch.npu.device(here.device):
        for block in range(at_most):
            task = here.manager.prepare_push(
                BlocksCacheKey(2), here.cache, [block % BLOCKS], [block % BLOCKS]
            )
            binding = datadist.Binding(here.device, range(LAYERS))
            tasks.append((binding, task))
            try:
                binding.bind([task], timeout_s=60)
            except LLMException as error:
                return error
    return None


def test_links_of_a_device_hold_no_more_streams_than_the_budget_says(
    made: Callable[..., SimpleNamespace],
) -> None:
    """Each task that waits for its layers has a stream, and whole transfers still go when none is left."""
    budget = 5
    here, there = made(1, 0, stream_budget=budget, stream_idle_ms=IDLE_MS), made(2, 1)
    link(here, there)
    restore(here), restore(there)
    torch.npu.synchronize(0)
    before = streams()
    tasks: list[Any] = []

    busy = bind_until_busy(here, tasks, 2 * budget)

    assert busy is not None
    assert busy.status_code == LLMStatusCode.LLM_LINK_BUSY
    assert f"all {budget} of the links of npu:0 (stream_budget)" in str(busy)
    push(here, [2], [3])  # on the stream that no task ever gets
    assert torch.equal(instances.content(there)[:, 3], pattern(1)[:, 2])
    assert streams() - before <= budget + 1
    for _, task in tasks:
        here.manager.cancel(task, timeout_s=WITHIN_S)
    until(lambda: all(task.state().has_ended for _, task in tasks))
    until(lambda: streams() <= before)
    assert bind_until_busy(here, tasks, 1) is None


def test_finalize_does_not_wait_for_caches_that_peers_have_yet_to_be_told_of(
    made: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = made(1, 0), made(2, 1)
    link(here, there)
    count, told = 100, []

    def slowly(self: Announcements, *arguments: Any) -> Any:
        time.sleep(0.02)
        told.append(arguments)
        return export(self, *arguments)

    export = Announcements._export
    monkeypatch.setattr(Announcements, "_export", slowly)
    desc = CacheDesc(1, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8, Placement.HOST)
    for model_id in range(1, count + 1):
        memory = torch.zeros(BLOCKS, BLOCK_BYTES, dtype=torch.uint8)
        here.manager.register_blocks_cache(desc, [memory], BlocksCacheKey(1, model_id), True)
    until(lambda: told)  # they are on their way
    here.datadist.finalize()
    assert len(told) < count
