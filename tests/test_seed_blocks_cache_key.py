"""Seed 002, BlocksCacheKey: each sentence that promises something is a test whose name says which.

The table of products is in test_seed_products.py; the document's section of constraints says "none".
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.conformance.case import check_raises
from torch_llm_datadist import BlocksCacheKey, LLMStatusCode

NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
POOL = '{"memory_size": 65536, "page_shift": 10}'
TENSORS, BLOCKS, BLOCK = 2, 4, 32


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, 1, 0, {"mem_pool_cfg": POOL})
    port = instances.start(there, 2, 1, {"mem_pool_cfg": POOL})
    desc = caches.describe(TENSORS, BLOCKS, BLOCK)
    caches.add(here, "blocks", 1, desc, is_blocks=True)
    for model_id in (0, 7):
        key = BlocksCacheKey(2, model_id)
        caches.add(there, f"model {model_id}", 20 + model_id, desc, is_blocks=True, key=key, allocate=True)
    assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def block(state: SimpleNamespace, name: str, index: int) -> list[torch.Tensor]:
    return [t.view(BLOCKS, BLOCK)[index] for t in caches.look(state, name)]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_function_it_constructs_a_blocks_cache_key() -> None:
    key = BlocksCacheKey(2, 7)

    assert isinstance(key, BlocksCacheKey)
    assert (key.cluster_id, key.model_id) == (2, 7)


def test_function_it_is_an_argument_of_allocate_blocks_cache_pull_blocks_and_push_blocks(pair: Any) -> None:
    """The cache of model 7 was allocated with such a key; each call names it with an equal one."""
    here, there = pair
    manager, key = here.datadist.cache_manager, BlocksCacheKey(2, 7)

    manager.pull_blocks(key, here.caches["blocks"], [0], [1])
    assert same(block(here, "blocks", 1), block(there, "model 7", 0))

    manager.push_blocks(key, here.caches["blocks"], [2], [3])
    assert same(block(there, "model 7", 3), block(here, "blocks", 2))


def test_prototype_takes_args_and_kwargs() -> None:
    kinds = [p.kind for p in list(inspect.signature(BlocksCacheKey.__init__).parameters.values())[1:]]

    assert kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    assert BlocksCacheKey(2, 7) == BlocksCacheKey(cluster_id=2, model_id=7) == BlocksCacheKey(2, model_id=7)


def test_cluster_id_is_the_remote_cluster_that_holds_the_cache(pair: Any) -> None:
    here, _ = pair
    cache = here.caches["blocks"]
    here.datadist.cache_manager.pull_blocks(BlocksCacheKey(2, 0), cache, [0], [0])

    not_linked = LLMStatusCode.LLM_NOT_YET_LINK
    check_raises(
        not_linked, lambda: here.datadist.cache_manager.pull_blocks(BlocksCacheKey(3, 0), cache, [0], [0])
    )


def test_cluster_id_is_required() -> None:
    for arguments in ({}, {"model_id": 1}):
        check_raises(LLMStatusCode.LLM_PARAM_INVALID, lambda arguments=arguments: BlocksCacheKey(**arguments))


def test_model_id_tells_the_caches_of_a_cluster_apart(pair: Any) -> None:
    here, there = pair
    manager = here.datadist.cache_manager
    for model_id in (0, 7):
        manager.pull_blocks(BlocksCacheKey(2, model_id), here.caches["blocks"], [1], [1])
        assert same(block(here, "blocks", 1), block(there, f"model {model_id}", 1))

    check_raises(NO_CACHE, lambda: manager.pull_blocks(BlocksCacheKey(2, 8), here.caches["blocks"], [1], [1]))


def test_model_id_is_0_by_default(pair: Any) -> None:
    here, there = pair
    assert BlocksCacheKey(2).model_id == 0

    here.datadist.cache_manager.pull_blocks(BlocksCacheKey(2), here.caches["blocks"], [2], [1])

    assert same(block(here, "blocks", 1), block(there, "model 0", 2))


def test_example_of_the_seed() -> None:
    blocks_cache_key = BlocksCacheKey(0, 0)

    assert (blocks_cache_key.cluster_id, blocks_cache_key.model_id) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("0", 0), TypeError),
        ((0, "0"), TypeError),
        ((0.0, 0), TypeError),
        ((None, 0), TypeError),
        ((-1, 0), ValueError),
        ((0, 2**64), ValueError),
    ],
)
def test_wrong_types_raise_type_error_or_value_error(arguments: Any, expected: Any) -> None:
    check_raises(expected, lambda: BlocksCacheKey(*arguments))
