"""The pages of a pool, and the JSON that asks for one (4.6 of the API's description)."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.conformance.case import check_raises
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.memory_pool import MemoryPool, PoolConfig, read_pool_config

INVALID = LLMStatusCode.LLM_PARAM_INVALID
OUT_OF_MEMORY = LLMStatusCode.LLM_OUT_OF_MEMORY


def make_pool(pages: int, page_shift: int = 10) -> MemoryPool:
    size = pages << page_shift
    return MemoryPool("mem_pool_cfg", PoolConfig(size, page_shift), torch.zeros(size, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ('{"memory_size": 134217728, "page_shift": 16}', PoolConfig(134217728, 16)),  # the manual's example
        ('{"memory_size": 65536}', PoolConfig(65536, 16)),
        ('{"memory_size": 1024, "page_shift": 10}', PoolConfig(1024, 10)),
        ('{"memory_size": 1073741824, "page_shift": 30}', PoolConfig(1 << 30, 30)),
    ],
)
def test_a_pool_config_has_a_size_and_a_page_shift(text: str | None, expected: PoolConfig | None) -> None:
    assert read_pool_config("init: mem_pool_cfg", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"page_shift": 16}',
        '{"memory_size": "65536"}',
        '{"memory_size": -1}',
        '{"memory_size": true}',
        '{"memory_size": 65535}',  # less than a page
        '{"memory_size": 65536, "page_shift": 9}',
        '{"memory_size": 65536, "page_shift": 31}',
        '{"memory_size": 65536, "page_shift": 16.0}',
        '{"memory_size": 4398046511104, "page_shift": 10}',  # 2**32 pages
        '{"memory_size": 65536, "pageshift": 16}',
    ],
)
def test_a_bad_pool_config_is_refused(text: str) -> None:
    """Mended: the original does not say what happens to unknown fields."""
    message = check_raises(INVALID, lambda: read_pool_config("init: mem_pool_cfg", text))
    assert message.startswith("init: mem_pool_cfg")


def test_each_tensor_takes_whole_pages_of_its_own() -> None:
    pool = make_pool(8)

    first, second, third = pool.allocate([1, 1025, 1024])

    assert [t.nbytes for t in (first, second, third)] == [1, 1025, 1024]
    assert second.data_ptr() - first.data_ptr() == 1024
    assert third.data_ptr() - second.data_ptr() == 2048
    assert pool.free_bytes() == 4 * 1024


def test_what_does_not_fit_leaves_the_pool_as_it_was() -> None:
    pool = make_pool(8)
    held = pool.allocate([3 * 1024])

    message = check_raises(OUT_OF_MEMORY, lambda: pool.allocate([1024, 4 * 1024, 1]))

    assert pool.free_bytes() == 5 * 1024
    assert "5 of 8 pages of 1024 bytes are free" in message
    pool.free(held)
    assert len(pool.allocate([8 * 1024])) == 1


def test_pages_that_are_freed_in_any_order_become_one_piece_again() -> None:
    pool = make_pool(64)
    chooser = random.Random(1)
    held: list[list[torch.Tensor]] = []
    taken: Any = set()
    for _ in range(500):
        if held and chooser.random() < 0.5:
            pieces = held.pop(chooser.randrange(len(held)))
            taken -= {(p.data_ptr() + i) for p in pieces for i in range(0, p.nbytes, 1024)}
            pool.free(pieces)
        else:
            try:
                pieces = pool.allocate([chooser.randint(1, 5000) for _ in range(chooser.randint(1, 3))])
            except Exception:
                continue
            pages = {(p.data_ptr() + i) for p in pieces for i in range(0, p.nbytes, 1024)}
            assert not pages & taken
            taken |= pages
            held.append(pieces)
    for pieces in held:
        pool.free(pieces)

    assert pool.free_bytes() == 64 * 1024
    assert len(pool.allocate([64 * 1024])) == 1
