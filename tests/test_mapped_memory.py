"""2.6, memory that the transport refuses: links that map memory hand out none of another allocator's.

Engines refuse other memory, and are asked link by link: tests/test_hixl.py.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import link, start, until
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    emulator,
)
from torch_llm_datadist.emulator import libraries

DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)


def tensors_of(desc: CacheDesc) -> list[torch.Tensor]:
    return [torch.zeros(desc.shape, dtype=torch.float16, device="npu:0") for _ in range(desc.num_tensors)]


@pytest.fixture(scope="module")
def mapping() -> Iterator[Any]:
    state = start(4, 0)
    yield state.manager
    state.datadist.finalize()


@pytest.fixture
def foreign() -> Iterator[list[int]]:
    """Device memory that is not torch's: what maps memory between processes cannot hand it out."""
    runtime = ctypes.CDLL(str(libraries.runtime_path()))
    torch.npu.set_device(0)
    pieces = [ctypes.c_void_p() for _ in range(DESC.num_tensors)]
    for piece in pieces:
        assert runtime.aclrtMalloc(ctypes.byref(piece), ctypes.c_size_t(DESC.size), 0) == 0
    yield [piece.value or 0 for piece in pieces]
    for piece in pieces:
        assert runtime.aclrtFree(piece) == 0


def give_foreign(addresses: list[int]) -> list[Any]:
    return list(addresses)


def give_what_is_not_exported(_: list[int]) -> list[Any]:
    """Of two tensors the second one; each in an allocation of its own, which has no key yet."""
    torch.npu.empty_cache()
    tensors = [torch.zeros(11 << 20, dtype=torch.uint8, device="npu:0") for _ in range(DESC.num_tensors)]
    emulator.fail_next("aclrtIpcMemGetExportKey", 2, 507899)
    return [tensor[: DESC.size].view(torch.float16).view(DESC.shape) for tensor in tensors]


REFUSED = [
    row("2.6 transport refuses memory: another allocator's", INVALID, give_foreign, "allocator on npu:0"),
    row(
        "2.6 transport refuses memory: no key for it",
        LLMStatusCode.LLM_FAILED,
        give_what_is_not_exported,
        "exporting device memory",
    ),
]


@pytest.mark.parametrize("name", ["register_cache", "register_blocks_cache"])
@pytest.mark.parametrize(("expected", "give", "words"), REFUSED)
def test_memory_that_the_transport_refuses_is_refused_at_once_and_nothing_is_registered(
    mapping: Any, foreign: list[int], name: str, expected: Any, give: Callable[..., list[Any]], words: str
) -> None:
    key: Any = BlocksCacheKey(4, 3) if name == "register_blocks_cache" else [CacheKey(4, 3)]
    gc.collect()
    before = torch.npu.memory_allocated(0)

    addrs = give(foreign)
    try:
        said = check_raises(expected, lambda: getattr(mapping, name)(DESC, addrs, key))
    finally:
        emulator.fail_next("aclrtIpcMemGetExportKey", 0, 0)

    assert said.startswith(f"{name}: ")
    assert words in said
    assert "Nothing was registered" in said
    assert mapping.held_caches() == []
    addrs.clear()
    gc.collect()
    until(lambda: torch.npu.memory_allocated(0) <= before)  # nobody keeps the tensors


def test_an_address_of_less_memory_than_the_cache_has_is_refused(mapping: Any) -> None:
    """Its first push would read what is not there, which stops the device's context and with it the link."""
    short = torch.zeros(4096, dtype=torch.uint8, device="npu:0")
    desc = CacheDesc(1, [8, 1 << 20], DataType.DT_UINT8)

    said = check_raises(INVALID, lambda: mapping.register_blocks_cache(desc, [short.data_ptr() + 1024]))

    assert re.search(r"holds [34]\d{3} bytes from there on, not 8388608", said)  # the allocator rounds up
    assert "Nothing was registered" in said


def test_the_name_of_memory_that_was_refused_is_free_and_links_are_made(foreign: list[int]) -> None:
    """The key names what is registered next, not what was refused; no peer hears of that."""
    here, there = (start(11 + i, i) for i in range(2))
    try:
        key = BlocksCacheKey(11, 3)
        check_raises(INVALID, lambda: here.manager.register_blocks_cache(DESC, foreign, key))
        kept = here.manager.register_blocks_cache(DESC, foreign, None, False)  # for this instance alone
        link(there, here)
        check_raises(INVALID, lambda: here.manager.register_cache(DESC, foreign))  # while it is linked
        into = there.manager.register_blocks_cache(DESC, [t.to("npu:1") for t in tensors_of(DESC)])

        pull = there.manager.pull_blocks
        check_raises(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: pull(key, into, [0], [0]))
        beyond = CacheKeyByIdAndIndex(11, kept.cache_id)
        check_raises(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, lambda: pull(beyond, into, [], [0]))
        sent = [tensor.fill_(5) for tensor in tensors_of(DESC)]
        here.manager.register_blocks_cache(DESC, sent, key)
        pull(key, into, [0], [0])
        assert all(bool((tensor[0] == 5).all()) for tensor in into.tensors)
    finally:
        there.datadist.finalize()
        here.datadist.finalize()
