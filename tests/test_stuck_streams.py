"""Blocking calls behind a stream that never gets there: each ends in time, and says what may be written."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from tests import instances
from tests.transfers import BLOCK_BYTES, BLOCKS, LAYERS, link, pattern, restore, start, until
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from torch_llm_datadist.emulator import faults

PATIENCE_MS = 300
WITHIN_S = 10.0
SRC, DST = [0, 1], [4, 5]
Pair = tuple[SimpleNamespace, SimpleNamespace]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    here, there = start(1, 0, stream_timeout=instances.PATIENT_MS), start(2, 1)
    link(here, there)
    here.host = [torch.zeros(BLOCKS, BLOCK_BYTES, dtype=torch.uint8) for _ in range(2 * LAYERS)]
    desc = CacheDesc(2 * LAYERS, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8, Placement.HOST)
    here.on_host = Cache.create_cpu_cache(desc, [tensor.data_ptr() for tensor in here.host])
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@contextlib.contextmanager
def stuck() -> Iterator[torch.npu.Stream]:
    """The current stream takes work and does none. Not a fixture: what describes a failure reads tensors."""
    with torch.npu.device(0):
        stream = torch.npu.Stream(0)
        torch.npu.synchronize()
        faults.freeze_stream(stream)
        try:
            with torch.npu.stream(stream):
                yield stream
        finally:
            faults.thaw_stream(stream)
            torch.npu.synchronize()


def push(here: SimpleNamespace) -> None:
    here.manager.push_blocks(BlocksCacheKey(2), here.cache, SRC, DST)


def pull(here: SimpleNamespace) -> None:
    here.manager.pull_blocks(BlocksCacheKey(2), here.cache, SRC, DST)


def copy(here: SimpleNamespace) -> None:
    here.manager.copy_blocks(here.cache, dict(zip(SRC, [[block] for block in DST], strict=True)))


def swap(here: SimpleNamespace) -> None:
    here.manager.swap_blocks(here.on_host, here.cache, dict(zip(SRC, DST, strict=True)))


def why_it_failed(call: Callable[[SimpleNamespace], None], here: SimpleNamespace) -> LLMException:
    began = time.monotonic()
    with pytest.raises(LLMException) as raised, instances.in_a_hurry(here, stream_timeout_ms=PATIENCE_MS):
        call(here)
    assert PATIENCE_MS / 1000 <= time.monotonic() - began < WITHIN_S
    assert raised.value.status_code == LLMStatusCode.LLM_TIMEOUT
    return raised.value


@pytest.mark.parametrize(("call", "cluster_id"), [(push, 2), (pull, 1)])
def test_a_transfer_behind_a_stuck_stream_ends_in_time_and_none_of_it_lands_later(
    pair: Pair, call: Callable[[SimpleNamespace], None], cluster_id: int
) -> None:
    here, _ = pair
    target, source = pair[cluster_id - 1], pair[2 - cluster_id]
    with stuck():
        error = why_it_failed(call, here)
        in_doubt = [list(doubt.blocks) for doubt in error.blocks_in_doubt]
        with torch.npu.stream(torch.npu.default_stream(0)):
            here.manager.push_blocks(BlocksCacheKey(2), here.cache, [2], [3])
            here.manager.wait_until_settled(timeout_s=WITHIN_S)

    assert "cluster 2" in str(error)
    assert f"into cache {target.cache.cache_id}" in str(error)
    assert f"within {PATIENCE_MS} ms" in str(error)
    assert "What it had queued may still write; the link is still usable" in str(error)
    assert in_doubt in ([DST], [])  # none: it has been cut off already
    expected = pattern(cluster_id)
    if cluster_id == 2:
        expected[:, 3] = pattern(1)[:, 2]
    assert torch.equal(instances.content(target), expected)
    call(here)  # it goes again
    assert torch.equal(instances.content(target)[:, DST], pattern(source.cluster_id)[:, SRC])
    for state in pair:
        restore(state)


@pytest.mark.parametrize("call", [copy, swap])
def test_a_copy_behind_a_stuck_stream_ends_in_time_and_says_that_it_may_still_write(
    pair: Pair, call: Callable[[SimpleNamespace], None]
) -> None:
    here, _ = pair
    with stuck():
        error = why_it_failed(call, here)

    assert f"cache {here.cache.cache_id}" in str(error)
    assert f"the copy of {len(SRC)} blocks" in str(error)
    assert "What it had queued may still write" in str(error)
    expected = pattern(1)[:, SRC] if call is copy else torch.zeros_like(pattern(1)[:, SRC])
    assert torch.equal(instances.content(here)[:, DST], expected)
    restore(here)
    call(here)
    assert torch.equal(instances.content(here)[:, DST], expected)
    restore(here)


def test_what_a_late_copy_writes_is_held_until_its_stream_has_passed(pair: Pair) -> None:
    here, _ = pair
    raw = torch.zeros(BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device="npu:0")
    desc = CacheDesc(1, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    cache = here.manager.register_blocks_cache(desc, [raw])
    here_is = weakref.ref(raw)

    with stuck():
        with (
            pytest.raises(LLMException, match="may still write"),
            instances.in_a_hurry(here, stream_timeout_ms=PATIENCE_MS),
        ):
            here.manager.copy_blocks(cache, {0: [1]})
        here.manager.unregister_cache(cache.cache_id)
        name = cache.cache_id
        del cache, raw
        time.sleep(0.5)
        assert name in [held.cache_id for held in here.manager.held_caches()]
        assert here_is() is not None
        with torch.npu.stream(torch.npu.default_stream(0)):
            copy(here)  # others go on
        assert here_is() is not None

    until(lambda: not here.manager.held_caches())
    gc.collect()
    assert here_is() is None
    restore(here)


def test_the_pool_does_not_hand_out_what_a_late_copy_still_writes() -> None:
    one = start(
        3, 0, stream_timeout=1000, sync_kv_timeout=1000,
        mem_pool_cfg=json.dumps({"memory_size": 2048, "page_shift": 10}),
    )  # fmt: skip
    desc = CacheDesc(1, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    cache = one.manager.allocate_blocks_cache(desc)
    cache.tensors[0].fill_(1)
    torch.npu.synchronize(0)
    with stuck():
        with pytest.raises(LLMException, match="may still write"):
            one.manager.copy_blocks(cache, {0: [1]})
        one.manager.deallocate_blocks_cache(cache)
        with pytest.raises(LLMException) as raised:
            one.manager.allocate_blocks_cache(desc)
        assert raised.value.status_code == LLMStatusCode.LLM_OUT_OF_MEMORY
    until(lambda: not one.manager.held_caches())
    one.manager.deallocate_blocks_cache(one.manager.allocate_blocks_cache(desc))
    one.datadist.finalize()
