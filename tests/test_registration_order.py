"""``register_*`` returns when what is queued on the current stream is done: no peer reads memory that a
kernel has yet to write."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests.transfers import BLOCK_BYTES, BLOCKS, link, start, until
from torch_llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, LLMStatusCode, emulator
from torch_llm_datadist.emulator import faults

LATE_S = 0.4
VALUE = 7
Pair = tuple[SimpleNamespace, SimpleNamespace]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    here, there = start(1, 0), start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def late_tensors(state: SimpleNamespace) -> list[torch.Tensor]:
    """Of the caller's stream, which writes them long after this returns."""
    with torch.npu.device(state.device):
        shape = (BLOCKS, BLOCK_BYTES)
        tensors = [torch.zeros(shape, dtype=torch.uint8, device=f"npu:{state.device}") for _ in range(2)]
        torch.npu.synchronize()
        emulator.delay_stream(LATE_S)
        for tensor in tensors:
            tensor.fill_(VALUE)
    return tensors


def register(state: SimpleNamespace, tensors: list[torch.Tensor], model_id: int, **arguments: Any) -> Any:
    with torch.npu.device(state.device):
        desc = CacheDesc(2, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
        key = BlocksCacheKey(state.cluster_id, model_id)
        return state.manager.register_blocks_cache(desc, tensors, key, **arguments)


def test_a_pull_right_after_registration_reads_what_a_queued_kernel_writes(pair: Pair) -> None:
    """Mended: the original announces memory that nobody has written yet."""
    here, there = pair
    tensors = late_tensors(here)

    cache = register(here, tensors, 9)

    target = torch.zeros(BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device="npu:1")
    with torch.npu.device(1):
        own = register(there, [target, target.clone()], 9)
        there.manager.pull_blocks(BlocksCacheKey(1, 9), own, [0, 1], [2, 3])
        torch.npu.synchronize()
    assert target[2:4].cpu().eq(VALUE).all()
    here.manager.unregister_cache(cache.cache_id)
    there.manager.unregister_cache(own.cache_id)


@pytest.fixture
def frozen() -> Iterator[torch.npu.Stream]:
    """A stream that is the current one, and takes work and does none."""
    with torch.npu.device(0):
        stream = torch.npu.Stream(0)
        torch.npu.synchronize()
        faults.freeze_stream(stream)
        with torch.npu.stream(stream):
            yield stream
        faults.thaw_stream(stream)
        torch.npu.synchronize()


def queued_tensors() -> list[torch.Tensor]:
    return [torch.full((BLOCKS, BLOCK_BYTES), VALUE, dtype=torch.uint8, device="npu:0") for _ in range(2)]


def test_a_contiguous_cache_waits_too(pair: Pair, frozen: torch.npu.Stream) -> None:
    here, _ = pair
    tensors = queued_tensors()
    thawing = threading.Timer(0.05, lambda: faults.thaw_stream(frozen))
    thawing.start()

    cache = here.manager.register_cache(CacheDesc(2, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8), tensors)

    assert frozen.query()
    thawing.join()
    here.manager.unregister_cache(cache.cache_id)


def test_other_threads_of_python_run_while_registration_waits(pair: Pair, frozen: torch.npu.Stream) -> None:
    here, _ = pair
    tensors = queued_tensors()
    began = threading.Event()

    def thaw() -> None:
        began.wait(20)
        time.sleep(0.05)  # it waits by now, or will: either is served
        faults.thaw_stream(frozen)

    thawing = threading.Thread(target=thaw)
    thawing.start()
    began.set()
    cache = register(here, tensors, 10)

    assert frozen.query()
    thawing.join(20)
    here.manager.unregister_cache(cache.cache_id)


def test_registration_ends_at_its_deadline_and_registers_nothing(frozen: torch.npu.Stream) -> None:
    state = SimpleNamespace(cluster_id=5)
    config = datadist.LLMConfig()
    config.device_id, config.enable_cache_manager, config.register_timeout = 0, True, 30
    state.datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, 5)
    state.datadist.init(config.generate_options())
    state.device, state.manager = 0, state.datadist.cache_manager
    tensors = queued_tensors()

    def is_registered() -> bool:
        try:
            register(state, tensors, 3)
        except LLMException as error:
            if error.status_code != LLMStatusCode.LLM_TIMEOUT:
                raise
            return False
        return True

    with pytest.raises(LLMException, match="has not come to the end of what was queued") as raised:
        register(state, tensors, 3)

    assert raised.value.status_code == LLMStatusCode.LLM_TIMEOUT
    assert state.datadist._running.registry.ids() == []
    faults.thaw_stream(frozen)
    frozen.synchronize()
    until(is_registered)  # what was queued is done, but its limit is short for a machine that is busy
    assert len(state.datadist._running.registry.ids()) == 1
    state.datadist.finalize()
