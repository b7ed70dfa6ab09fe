"""2.4: LLMDataDist: init, finalize, properties, and what each call says before and after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import Always, start, to
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    emulator,
)

FAILED = LLMStatusCode.LLM_FAILED
ROOT = Path(__file__).parent.parent.parent
DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)


@pytest.fixture(scope="module")
def one() -> Iterator[SimpleNamespace]:
    state = start(1, 0)
    yield state
    state.datadist.finalize()


def options(device: int = 0) -> dict[str, str]:
    config = LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    return config.generate_options()


@pytest.mark.parametrize("again", [None, {}, {"llm.EnableCacheManager": 1}, options()])
def test_init_of_an_initialised_instance_does_nothing_whatever_it_is_given(
    one: SimpleNamespace, again: Any
) -> None:
    """2.4 init 1, and 3.2 row 15."""
    manager = one.datadist.cache_manager

    one.datadist.init(again)

    assert one.datadist.cache_manager is manager


def test_a_second_instance_of_the_process_may_be_initialised(one: SimpleNamespace) -> None:
    """Mended: 2.4 init 2, LLM_FAILED in the original."""
    other = LLMDataDist(LLMRole.DECODER, 77)
    other.init(options())

    assert other.cache_manager is not one.datadist.cache_manager
    other.finalize()


def test_an_instance_may_be_initialised_again_and_its_ids_begin_anew() -> None:
    """1.3 and 1.10."""
    instance = LLMDataDist(LLMRole.MIX, 5)
    import torch

    for _ in range(2):
        instance.init(options())
        tensors = [torch.zeros(4, 8, dtype=torch.float16, device="npu:0") for _ in range(2)]
        assert instance.cache_manager.register_blocks_cache(DESC, tensors).cache_id == 1
        instance.finalize()


def test_an_init_that_failed_leaves_the_instance_uninitialised_and_may_be_repeated() -> None:
    """2.4 init 9."""
    instance = LLMDataDist(LLMRole.MIX, 5)
    check_raises(INVALID, lambda: instance.init({**options(), "llm.SyncKvCacheWaitTime": "0"}))
    check_raises(RuntimeError, lambda: instance.cache_manager)

    instance.init(options())

    assert instance.cache_manager is not None
    instance.finalize()


def test_finalize_may_be_repeated() -> None:
    instance = LLMDataDist(LLMRole.MIX, 5)
    instance.finalize()
    instance.init(options())
    instance.finalize()
    instance.finalize()

    assert instance.cluster_id == 5
    check_raises(RuntimeError, lambda: instance.cache_manager)


# What calls of a manager say after its instance was finalized.
AFTER: list[Any] = [
    row("pull_cache", INVALID, lambda m, c: m.pull_cache(CacheKeyByIdAndIndex(2, 1), c)),
    row("pull_blocks", INVALID, lambda m, c: m.pull_blocks(BlocksCacheKey(2), c, [0], [0])),
    row("push_blocks", INVALID, lambda m, c: m.push_blocks(BlocksCacheKey(2), c, [0], [0])),
    row("transfer_cache_async", INVALID, lambda m, c: m.transfer_cache_async(c, Always(), [to(2)], [0], [0])),
    row("copy_blocks", INVALID, lambda m, c: m.copy_blocks(c, {0: [1]})),
    row("deallocate_blocks_cache", INVALID, lambda m, c: m.deallocate_blocks_cache(c)),
    row("remove_cache_key", INVALID, lambda m, c: m.remove_cache_key(CacheKey(1, 1))),
    row("remap_registered_memory", INVALID,
        lambda m, c: m.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, 1, 1))),
    row("register_cache", FAILED, lambda m, c: m.register_cache(DESC, [16, 32])),
    row("register_blocks_cache", FAILED, lambda m, c: m.register_blocks_cache(DESC, [16, 32])),
    row("unregister_cache", FAILED, lambda m, c: m.unregister_cache(1)),
    row("allocate_cache", FAILED, lambda m, c: m.allocate_cache(DESC)),
    row("allocate_blocks_cache", FAILED, lambda m, c: m.allocate_blocks_cache(DESC)),
]  # fmt: skip


@pytest.fixture(scope="module")
def ended() -> tuple[Any, Any]:
    state = start(9, 1)
    state.datadist.finalize()
    return state.manager, state.cache


@pytest.mark.parametrize(("expected", "call"), AFTER)
def test_a_manager_of_a_finalized_instance_refuses(
    ended: tuple[Any, Any], expected: Any, call: Callable[[Any, Any], object]
) -> None:
    check_raises(expected, lambda: call(*ended))


def test_properties_of_the_other_api_are_refused(one: SimpleNamespace) -> None:
    """2.4 Properties: v1 mode only."""
    check_raises(INVALID, lambda: one.datadist.kv_cache_manager)
    check_raises(INVALID, lambda: one.datadist.check_link_status(2))


@pytest.mark.parametrize("method", ["unlink", "query_register_mem_status"])
@pytest.mark.parametrize(
    ("expected", "comm_id"),
    [
        row("2.4 unknown", LLMStatusCode.LLM_NOT_YET_LINK, 1),
        row("2.4 None", TypeError, None),
        row("2.4 a str", TypeError, "1"),
        row("2.4 negative", ValueError, -1),
        row("2.4 beyond uint64", ValueError, 2**64),
    ],
)
def test_comm_ids_are_checked(one: SimpleNamespace, method: str, expected: Any, comm_id: Any) -> None:
    check_raises(expected, lambda: getattr(one.datadist, method)(comm_id))


def test_a_device_that_the_process_does_not_see_is_refused() -> None:
    import torch

    count = torch.npu.device_count()
    said = check_raises(INVALID, lambda: LLMDataDist(LLMRole.MIX, 1).init(options(count)))

    assert f"device_id is {count}, this process sees {count} devices" in said


VISIBLE = """
import torch_llm_datadist as datadist
from torch_llm_datadist import emulator
if {is_emulated}: emulator.enable()
config = datadist.LLMConfig()
config.device_id = 1
config.enable_cache_manager = True
try:
    datadist.LLMDataDist(datadist.LLMRole.MIX, 1).init(config.generate_options())
except datadist.LLMException as error:
    print(error.status_code.name, error)
"""


def test_a_device_that_is_not_visible_names_the_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", VISIBLE.format(is_emulated=emulator.is_enabled())],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ASCEND_RT_VISIBLE_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert "LLM_PARAM_INVALID init: device_id is 1, this process sees 1 devices, 0 to 0" in done.stdout
    assert "since ASCEND_RT_VISIBLE_DEVICES is '2'" in done.stdout
