"""2.5: keys, descriptions of caches, configs of transfers; seeds 000 and 002."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.case import check_raises, row
from torch_llm_datadist.cache import Cache, CacheDesc
from torch_llm_datadist.data_type import DataType, Placement
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from torch_llm_datadist.transfer import (
    LayerSynchronizer,
    MemInfo,
    Memtype,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)

# Keys (seed 002).


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ((0, 0), {}, (0, 0)),  # the seed's example
        ((7,), {}, (7, 0)),
        ((), {"cluster_id": 7, "model_id": 2}, (7, 2)),
        ((), {"prompt_cluster_id": 7}, (7, 0)),
        ((7,), {"cluster_id": 8}, (7, 0)),
        ((), {"cluster_id": 7, "prompt_cluster_id": 8}, (7, 0)),
        ((2**64 - 1, 2**64 - 1), {}, (2**64 - 1, 2**64 - 1)),
    ],
)
def test_blocks_cache_key_takes_arguments_as_the_original(
    args: tuple[int, ...], kwargs: dict[str, int], found: tuple[int, int]
) -> None:
    key = BlocksCacheKey(*args, **kwargs)

    assert (key.cluster_id, key.model_id) == found
    assert key.prompt_cluster_id == key.cluster_id


KEY_ERRORS = [
    row("2.5 BlocksCacheKey()", INVALID, lambda: BlocksCacheKey()),
    row("2.5 BlocksCacheKey(1, 2, 3)", INVALID, lambda: BlocksCacheKey(1, 2, 3)),
    row("2.5 BlocksCacheKey(1, modelid=2)", INVALID, lambda: BlocksCacheKey(1, modelid=2)),
    row("2.5 BlocksCacheKey(model_id=2)", INVALID, lambda: BlocksCacheKey(model_id=2)),
    row("2.5 BlocksCacheKey('1')", TypeError, lambda: BlocksCacheKey("1")),
    row("2.5 BlocksCacheKey(1.0)", TypeError, lambda: BlocksCacheKey(1.0)),
    row("2.5 BlocksCacheKey(1, '0')", TypeError, lambda: BlocksCacheKey(1, "0")),
    row("3.2 row 4 BlocksCacheKey(None) (mended)", TypeError, lambda: BlocksCacheKey(None)),
    row("3.2 row 1 BlocksCacheKey(True) (mended)", TypeError, lambda: BlocksCacheKey(True)),
    row("3.2 row 4 BlocksCacheKey(-1) (mended)", ValueError, lambda: BlocksCacheKey(-1)),
    row("2.5 BlocksCacheKey(2**64)", ValueError, lambda: BlocksCacheKey(2**64)),
    row("2.5 CacheKey(None, 1)", TypeError, lambda: CacheKey(None, 1)),
    row("2.5 CacheKey(-1, 1)", ValueError, lambda: CacheKey(-1, 1)),
    row("2.5 CacheKey(1)", INVALID, lambda: CacheKey(1)),
    row("2.5 CacheKey(1, 2, 3, 4, 5)", INVALID, lambda: CacheKey(1, 2, 3, 4, 5)),
    row("2.5 CacheKeyByIdAndIndex(1, None)", TypeError, lambda: CacheKeyByIdAndIndex(1, None)),  # type: ignore[arg-type]
    row("2.5 CacheKeyByIdAndIndex(1, 2**63)", ValueError, lambda: CacheKeyByIdAndIndex(1, 2**63)),
    row("2.5 CacheKeyByIdAndIndex(1, 1, -1)", ValueError, lambda: CacheKeyByIdAndIndex(1, 1, -1)),
]


@pytest.mark.parametrize(("expected", "make"), KEY_ERRORS)
def test_bad_keys_are_refused(expected: Any, make: Callable[[], object]) -> None:
    check_raises(expected, make)


def test_keys_with_equal_numbers_are_equal() -> None:
    """Mended: in the original they are different objects."""
    assert BlocksCacheKey(1, 2) == BlocksCacheKey(cluster_id=1, model_id=2)
    assert len({BlocksCacheKey(1, 2), BlocksCacheKey(1, 2), BlocksCacheKey(1, 3)}) == 2
    assert CacheKey(1, 2) == CacheKey(1, 2, 0, 2**64 - 1) != CacheKey(1, 2, 3)
    assert repr(CacheKeyByIdAndIndex(1, 2)) == "CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=0)"


# CacheDesc and Cache.

DESC_ERRORS = [
    row("2.5 CacheDesc('2', [1], DT_INT8)", TypeError, lambda: CacheDesc("2", [1], DataType.DT_INT8)),  # type: ignore[arg-type]
    row("2.5 CacheDesc(True, [1], DT_INT8)", TypeError, lambda: CacheDesc(True, [1], DataType.DT_INT8)),
    row("2.5 CacheDesc(-1, [1], DT_INT8)", ValueError, lambda: CacheDesc(-1, [1], DataType.DT_INT8)),
    row("2.5 CacheDesc(2**32, [1], DT_INT8)", ValueError, lambda: CacheDesc(2**32, [1], DataType.DT_INT8)),
    row("2.5 CacheDesc(1, None, DT_INT8)", TypeError, lambda: CacheDesc(1, None, DataType.DT_INT8)),  # type: ignore[arg-type]
    row("2.5 CacheDesc(1, [1.0], DT_INT8)", TypeError, lambda: CacheDesc(1, [1.0], DataType.DT_INT8)),  # type: ignore[list-item]
    row("2.5 CacheDesc(1, [], DT_INT8)", INVALID, lambda: CacheDesc(1, [], DataType.DT_INT8)),
    row("2.5 CacheDesc(1, [2**63], DT_INT8)", ValueError, lambda: CacheDesc(1, [2**63], DataType.DT_INT8)),
    row("2.5 CacheDesc(1, [1], 2)", TypeError, lambda: CacheDesc(1, [1], 2)),  # type: ignore[arg-type]
    row("2.5 CacheDesc(1, [1], None)", TypeError, lambda: CacheDesc(1, [1], None)),  # type: ignore[arg-type]
    row("2.5 CacheDesc(1, [1], DT_INT8, 1)", TypeError, lambda: CacheDesc(1, [1], DataType.DT_INT8, 1)),  # type: ignore[arg-type]
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, batch_dim_index=1)",
        INVALID,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=1),
    ),
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, batch_dim_index=-1)",
        INVALID,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=-1),
    ),
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, batch_dim_index=None)",
        TypeError,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=None),
    ),  # type: ignore[arg-type]
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, seq_len_dim_index=-2)",
        INVALID,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, seq_len_dim_index=-2),
    ),
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, seq_len_dim_index=None)",
        TypeError,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, seq_len_dim_index=None),
    ),  # type: ignore[arg-type]
    row(
        "2.5 CacheDesc(1, [1], DT_INT8, kv_tensor_format=3)",
        TypeError,
        lambda: CacheDesc(1, [1], DataType.DT_INT8, kv_tensor_format=3),
    ),  # type: ignore[arg-type]
    row(
        "2.5 CacheDesc(1, [2, 0], DT_INT8).size", INVALID, lambda: CacheDesc(1, [2, 0], DataType.DT_INT8).size
    ),
    row(
        "2.5 CacheDesc(1, [1] * 32, DT_INT8).size",
        INVALID,
        lambda: CacheDesc(1, [1] * 32, DataType.DT_INT8).size,
    ),
    row(
        "2.5 CacheDesc(1, (2, 3), DT_INT8).update_dim(0, 1)",
        TypeError,
        lambda: CacheDesc(1, (2, 3), DataType.DT_INT8).update_dim(0, 1),
    ),
    row(
        "2.5 CacheDesc(1, [2, 3], DT_INT8).update_dim(2, 1)",
        INVALID,
        lambda: CacheDesc(1, [2, 3], DataType.DT_INT8).update_dim(2, 1),
    ),
    row("2.5 Cache.create_cpu_cache(DESC, [1, 2])", INVALID, lambda: Cache.create_cpu_cache(DESC, [1, 2])),
    row(
        "2.5 Cache.create_cpu_cache(CacheDesc(2, [4], DT_INT8, Placement.HOST), [1])",
        INVALID,
        lambda: Cache.create_cpu_cache(CacheDesc(2, [4], DataType.DT_INT8, Placement.HOST), [1]),
    ),
    row(
        "2.5 Cache.create_cpu_cache(CacheDesc(1, [4], DT_INT8, Placement.HOST), (1,))",
        TypeError,
        lambda: Cache.create_cpu_cache(CacheDesc(1, [4], DataType.DT_INT8, Placement.HOST), (1,)),
    ),  # type: ignore[arg-type]
    row("2.5 Cache.create_cpu_cache(None, [1])", TypeError, lambda: Cache.create_cpu_cache(None, [1])),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("expected", "call"), DESC_ERRORS)
def test_bad_descriptions_are_refused(expected: Any, call: Callable[[], object]) -> None:
    """Mended: the original takes None, and a bool for an integer."""
    check_raises(expected, call)


def test_cache_desc_has_the_originals_properties() -> None:
    desc = CacheDesc(
        4, [6, 2, 5], DataType.DT_BF16, seq_len_dim_index=1, batch_dim_index=2, kv_tensor_format="BNSD"
    )

    assert (desc.num_tensors, desc.shape, desc.data_type) == (4, [6, 2, 5], DataType.DT_BF16)
    assert (desc.placement, desc.batch_dim, desc.batch_size) == (Placement.DEVICE, 2, 5)
    assert (desc.seq_len_dim_index, desc.kv_tensor_format, desc.size) == (1, "BNSD", 120)
    desc.update_dim(0, 7)
    assert (desc.shape[0], desc.size) == (7, 140)


def test_create_cpu_cache_gives_a_handle_without_an_id() -> None:
    cache = Cache.create_cpu_cache(CacheDesc(2, [4], DataType.DT_INT8, Placement.HOST), [16, 32])

    assert (cache.cache_id, cache.tensor_addrs, cache.is_blocks_cache) == (-1, [16, 32], True)


# MemInfo, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig (seed 000).

KEY = BlocksCacheKey(1)
BY_ID = CacheKeyByIdAndIndex(1, 1)
ONE = range(1)


def with_key(**changes: Any) -> TransferWithCacheKeyConfig:
    given: dict[str, Any] = {"cache_key": KEY, "src_layer_range": ONE, "dst_layer_range": ONE, **changes}
    return TransferWithCacheKeyConfig(**given)


def by_address(**changes: Any) -> TransferConfig:
    given: dict[str, Any] = {"dst_cluster_id": 1, "dst_addrs": [1, 2], **changes}
    return TransferConfig(**given)


CONFIG_ERRORS = [
    row("2.5 MemInfo: type is an int", TypeError, lambda: MemInfo(0, 1, 1)),  # type: ignore[arg-type]
    row("2.5 MemInfo: type is None (mended)", TypeError, lambda: MemInfo(None, 1, 1)),  # type: ignore[arg-type]
    row("2.5 MemInfo: addr is a str", TypeError, lambda: MemInfo(Memtype.MEM_TYPE_HOST, "1", 1)),  # type: ignore[arg-type]
    row("2.5 MemInfo: addr is negative", ValueError, lambda: MemInfo(Memtype.MEM_TYPE_HOST, -1, 1)),
    row("2.5 MemInfo: size is a float", TypeError, lambda: MemInfo(Memtype.MEM_TYPE_HOST, 1, 1.0)),  # type: ignore[arg-type]
    row("2.5 LayerSynchronizer is abstract", TypeError, lambda: LayerSynchronizer()),  # type: ignore[abstract]
    row("2.5 dst_cluster_id = None", TypeError, lambda: by_address(dst_cluster_id=None)),
    row("2.5 dst_cluster_id = True (mended)", TypeError, lambda: by_address(dst_cluster_id=True)),
    row("2.5 dst_cluster_id = 2**64", ValueError, lambda: by_address(dst_cluster_id=2**64)),
    row("2.5 dst_addrs = None", TypeError, lambda: by_address(dst_addrs=None)),
    row("2.5 dst_addrs = range(2)", TypeError, lambda: by_address(dst_addrs=range(2))),
    row("2.5 dst_addrs = [1, None]", TypeError, lambda: by_address(dst_addrs=[1, None])),
    row("2.5 dst_addrs = [-1]", ValueError, lambda: by_address(dst_addrs=[-1])),
    row("2.5 TransferConfig: src_layer_range = [0]", TypeError, lambda: by_address(src_layer_range=[0])),
    row("2.5 TransferConfig: step 2", INVALID, lambda: by_address(src_layer_range=range(0, 4, 2))),
    row("2.5 TransferConfig: empty", INVALID, lambda: by_address(src_layer_range=range(2, 2))),
    row("2.5 TransferConfig: negative", INVALID, lambda: by_address(src_layer_range=range(-1, 2))),
    row("2.5 TransferConfig: src_batch_index = -1", ValueError, lambda: by_address(src_batch_index=-1)),
    row("2.5 TransferConfig: src_batch_index = None", TypeError, lambda: by_address(src_batch_index=None)),
    row("2.5 cache_key = None", TypeError, lambda: with_key(cache_key=None)),
    row("2.5 cache_key = CacheKey", TypeError, lambda: with_key(cache_key=CacheKey(1, 2))),
    row("3.2 row 12 its own defaults", TypeError, lambda: TransferWithCacheKeyConfig(KEY)),
    row("2.5 dst_layer_range missing", TypeError, lambda: TransferWithCacheKeyConfig(KEY, ONE)),
    row("2.5 src_layer_range = [0]", TypeError, lambda: with_key(src_layer_range=[0])),
    row("seed 000 step 2", INVALID, lambda: with_key(src_layer_range=range(0, 2, 2))),
    row("2.5 dst step 2", INVALID, lambda: with_key(dst_layer_range=range(0, 2, 2))),
    row("2.5 src empty", INVALID, lambda: with_key(src_layer_range=range(0))),
    row("2.5 dst negative", INVALID, lambda: with_key(dst_layer_range=range(-1, 0))),
    row("seed 000 sizes differ", INVALID, lambda: with_key(dst_layer_range=range(2))),
    row("seed 000 src_batch_index with a BlocksCacheKey", INVALID, lambda: with_key(src_batch_index=1)),
    row("2.5 src_batch_index = -1", ValueError, lambda: with_key(src_batch_index=-1)),
    row("2.5 src_batch_index = None", TypeError, lambda: with_key(src_batch_index=None)),
]


@pytest.mark.parametrize(("expected", "call"), CONFIG_ERRORS)
def test_bad_configs_are_refused(expected: Any, call: Callable[[], object]) -> None:
    check_raises(expected, call)


SETTER_ERRORS = [
    row("cache_key = None (mended)", TypeError, with_key, "cache_key", None),
    row("cache_key = CacheKey", TypeError, with_key, "cache_key", CacheKey(1, 2)),
    row("src_layer_range = None (mended)", TypeError, with_key, "src_layer_range", None),
    row("dst_layer_range = None (mended)", TypeError, with_key, "dst_layer_range", None),
    row("dst_layer_range = range(0)", INVALID, with_key, "dst_layer_range", range(0)),
    row("src_batch_index = -1", ValueError, with_key, "src_batch_index", -1),
    row("TransferConfig.dst_addrs = None", TypeError, by_address, "dst_addrs", None),
    row("TransferConfig.src_layer_range = range(0)", INVALID, by_address, "src_layer_range", range(0)),
]


@pytest.mark.parametrize(("expected", "make", "name", "value"), SETTER_ERRORS)
def test_setters_are_as_strict_as_the_constructor(
    expected: Any, make: Callable[[], object], name: str, value: Any
) -> None:
    check_raises(expected, lambda: setattr(make(), name, value))


def test_transfer_configs_have_the_originals_properties() -> None:
    config = TransferConfig(7, (16, 32), None, 3)
    assert (config.dst_cluster_id, config.dst_addrs, config.src_layer_range) == (7, (16, 32), None)
    assert config.src_batch_index == 3
    assert by_address(dst_addrs=[]).dst_addrs == []
    assert by_address(dst_addrs=[0]).dst_addrs == [0]

    keyed = TransferWithCacheKeyConfig(BY_ID, range(2, 4), range(5, 7), 9)
    assert (keyed.cache_key, keyed.src_batch_index, keyed.dst_cluster_id) == (BY_ID, 9, 1)
    assert (keyed.src_layer_range, keyed.dst_layer_range) == (range(2, 4), range(5, 7))


def test_the_cluster_of_a_config_is_that_of_its_key() -> None:
    """Mended: in the original ``dst_cluster_id`` stays when ``cache_key`` is replaced."""
    config = with_key()
    config.cache_key = CacheKeyByIdAndIndex(5, 1)

    assert config.dst_cluster_id == 5


def test_two_ranges_can_be_set_one_after_the_other() -> None:
    config = with_key()

    config.src_layer_range = range(3)
    check_raises(INVALID, lambda: config.check("transfer_cache_async"))
    config.dst_layer_range = range(3, 6)

    config.check("transfer_cache_async")
