"""2.6, register_cache and register_blocks_cache: the table of what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import start
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    DataType,
    Placement,
)

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


def test_host_memory_is_not_refused(manager: Any) -> None:
    """It has no key: peers reach it by its file, or through the kernel."""
    desc = CacheDesc(2, [4, 8], DataType.DT_FLOAT16, Placement.HOST)
    tensors = [torch.zeros(4, 8, dtype=torch.float16) for _ in range(2)]

    cache = manager.register_cache(desc, tensors, (), True)

    manager.unregister_cache(cache.cache_id)
