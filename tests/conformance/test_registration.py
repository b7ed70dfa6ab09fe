"""2.6, register_cache and register_blocks_cache: the table of what they refuse."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import link, start
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    Placement,
    emulator,
)
from torch_llm_datadist.emulator import libraries

DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)


@pytest.fixture(scope="module")
def one() -> Iterator[Any]:
    state = start(1, 0)
    yield state
    state.datadist.finalize()


@pytest.fixture
def manager(one: Any) -> Any:
    return one.manager


ROWS = [
    row("2.6 addrs is a tuple", TypeError, DESC, (16, 32)),
    row("2.6 addrs = None", TypeError, DESC, None),
    row("2.6 addrs = ['a', 'b']", TypeError, DESC, ["a", "b"]),
    row("2.6 addrs = [True, 32] (mended)", TypeError, DESC, [True, 32]),
    row("2.6 addrs = []", INVALID, DESC, []),
    row("2.6 one address for two tensors", INVALID, DESC, [16]),
    row("2.6 an address 0", INVALID, DESC, [16, 0]),
    row("2.6 cache_desc = None (mended)", TypeError, None, [16, 32]),
    row("2.6 no dimension above 0", INVALID, CacheDesc(2, [0, 8], DataType.DT_FLOAT16), [16, 32]),
    row("2.6 more than 31 dimensions", INVALID, CacheDesc(2, [1] * 32, DataType.DT_FLOAT16), [16, 32]),
]


@pytest.mark.parametrize("name", ["register_cache", "register_blocks_cache"])
@pytest.mark.parametrize(("expected", "desc", "addrs"), ROWS)
def test_registering_refuses(manager: Any, name: str, expected: Any, desc: Any, addrs: Any) -> None:
    assert f"{name}: " in check_raises(expected, lambda: getattr(manager, name)(desc, addrs))


@pytest.mark.parametrize("name", ["register_cache", "register_blocks_cache"])
def test_a_negative_address_is_refused(manager: Any, name: str) -> None:
    """2.6: ``TypeError`` from the original's binding; here as every integer outside its C type (mended)."""
    check_raises(ValueError, lambda: getattr(manager, name)(DESC, [16, -32]))


@pytest.mark.parametrize("name", ["pull_blocks", "push_blocks"])
@pytest.mark.parametrize("blocks", [([-1], [0]), ([0], [-1])])
def test_a_negative_block_index_is_refused(one: Any, name: str, blocks: tuple[list[int], list[int]]) -> None:
    """2.6 (mended): the same."""
    check_raises(ValueError, lambda: getattr(one.manager, name)(BlocksCacheKey(2), one.cache, *blocks))


KEYS = [
    row("2.6 remote_accessible = 1: contiguous", TypeError, "register_cache", ((), 1)),
    row("2.6 remote_accessible = 1: blocks", TypeError, "register_blocks_cache", (None, 1)),
    row("2.6 one key in place of a list", TypeError, "register_cache", (CacheKey(1, 1),)),
    row("2.6 a key of the other kind: contiguous", TypeError, "register_cache", ([BlocksCacheKey(1)],)),
    row("2.6 a key of the other kind: blocks", TypeError, "register_blocks_cache", (CacheKey(1, 1),)),
    row("2.6 more keys than entries", INVALID, "register_cache", ([CacheKey(1, i) for i in range(5)],)),
]


@pytest.mark.parametrize(("expected", "name", "arguments"), KEYS)
def test_keys_and_flags_are_checked(manager: Any, expected: Any, name: str, arguments: Any) -> None:
    tensors = [torch.zeros(4, 8, dtype=torch.float16, device="npu:0") for _ in range(2)]

    check_raises(expected, lambda: getattr(manager, name)(DESC, tensors, *arguments))


def tensors_of(desc: CacheDesc) -> list[torch.Tensor]:
    return [torch.zeros(desc.shape, dtype=torch.float16, device="npu:0") for _ in range(desc.num_tensors)]


@pytest.fixture(scope="module")
def mapping() -> Iterator[Any]:
    """The manager of an instance whose links map memory. Engines refuse other memory: tests/test_hixl.py."""
    state = start(4, 0, transport="mapped")
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
    assert torch.npu.memory_allocated(0) <= before  # nobody keeps the tensors


def test_the_name_of_memory_that_was_refused_is_free_and_links_are_made(foreign: list[int]) -> None:
    """The key names what is registered next, not what was refused; no peer hears of that."""
    here, there = (start(11 + i, i, transport="mapped") for i in range(2))
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


def test_host_memory_is_not_refused(manager: Any) -> None:
    """It has no key: peers reach it by its file, or through the kernel."""
    desc = CacheDesc(2, [4, 8], DataType.DT_FLOAT16, Placement.HOST)
    tensors = [torch.zeros(4, 8, dtype=torch.float16) for _ in range(2)]

    cache = manager.register_cache(desc, tensors, (), True)

    manager.unregister_cache(cache.cache_id)
