"""3.2, its 24 points one by one: what callers of the original are surprised by, and what happens here.

"(mended)": a row of docs/deviations.md, the original does something else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import caches, instances
from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import Always
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
    TransferWithCacheKeyConfig,
)

HERE, THERE = 1, 2
TENSORS, BATCH, BLOCKS, SIZE = 4, 3, 6, 64
POOL = '{"memory_size": 1048576, "page_shift": 12}'
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
KEY, ENTRY = BlocksCacheKey(THERE), CacheKeyByIdAndIndex(THERE, 2, 0)


@pytest.fixture(scope="module")
def linked() -> Iterator[SimpleNamespace]:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, HERE, 0, {"mem_pool_cfg": POOL})
    port = instances.start(there, THERE, 1, {"mem_pool_cfg": POOL})
    for state in (here, there):
        blocks = caches.describe(TENSORS, BLOCKS, SIZE)
        caches.add(state, "blocks", 1, blocks, is_blocks=True, key=BlocksCacheKey(state.cluster_id))
        caches.add(state, "batch", 2, caches.describe(TENSORS, BATCH, SIZE), allocate=True)
        state.manager = state.datadist.cache_manager
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    instances.wait_linked(there, HERE)
    here.blocks, here.batch = here.caches["blocks"], here.caches["batch"]
    on_host = caches.describe(TENSORS, BLOCKS, SIZE, Placement.HOST)
    here.on_host = Cache.create_cpu_cache(on_host, [4096 * (i + 1) for i in range(TENSORS)])
    yield here
    here.datadist.finalize()
    there.datadist.finalize()


Call = Callable[[SimpleNamespace], object]


def config(**values: Any) -> Call:
    def set_all(_: SimpleNamespace) -> None:
        for name, value in values.items():
            setattr(LLMConfig(), name, value)

    return set_all


def push(**given: Any) -> Call:
    return lambda s: s.manager.push_blocks(KEY, s.blocks, [0], [0], **given)


def pull(**given: Any) -> Call:
    return lambda s: s.manager.pull_blocks(KEY, s.blocks, [0], [0], **given)


def pull_entry(**given: Any) -> Call:
    return lambda s: s.manager.pull_cache(ENTRY, s.batch, **given)


def push_entry(**given: Any) -> Call:
    return lambda s: s.manager.push_cache(ENTRY, s.batch, **given)


def transfer(src: Any, dst: Any) -> Call:
    return lambda s: s.manager.transfer_cache_async(
        s.blocks, Always(), [TransferWithCacheKeyConfig(KEY, src, dst)], [0], [0]
    )


def both(what: str, expected: Any, **given: Any) -> list[Any]:
    return [
        row(f"{what}: pull_blocks", expected, pull(**given)),
        row(f"{what}: pull_cache", expected, pull_entry(**given)),
    ]


def pushes(what: str, expected: Any, **given: Any) -> list[Any]:
    return [
        row(f"{what}: push_blocks", expected, push(**given)),
        row(f"{what}: push_cache", expected, push_entry(**given)),
    ]


def desc(num_tensors: Any) -> CacheDesc:
    return CacheDesc(num_tensors, [1], DataType.DT_INT8)


HALF = range(0, 1)  # layers of 2 tensors: there are 2
REFUSED = [
    row("3.2 row 1 cluster_id = True (mended)", TypeError, lambda s: LLMDataDist(LLMRole.MIX, True)),
    row("3.2 row 1 req_id = True (mended)", TypeError, lambda s: CacheKey(1, True)),
    row("3.2 row 1 num_tensors = True (mended)", TypeError, lambda s: desc(True)),
    row("3.2 row 1 a block index (mended)", TypeError,
        lambda s: s.manager.push_blocks(KEY, s.blocks, [True], [0])),
    *[row(f"3.2 row 1 {name} = True (mended)", TypeError, config(**{name: True}))
      for name in ("device_id", "sync_kv_timeout", "link_total_time", "link_retry_count")],
    row("3.2 row 2 numpy cluster_id", TypeError, lambda s: BlocksCacheKey(np.int64(1))),
    row("3.2 row 2 numpy num_tensors", TypeError, lambda s: desc(np.uint32(1))),
    row("3.2 row 2 numpy block index", TypeError,
        lambda s: s.manager.push_blocks(KEY, s.blocks, [np.int64(0)], [0])),
    row("3.2 row 2 numpy batch_index", TypeError, pull_entry(batch_index=np.int32(0))),
    row("3.2 row 3 role = None (mended)", TypeError, lambda s: LLMDataDist(None, 1)),  # type: ignore[arg-type]
    row("3.2 row 3 cache_desc = None (mended)", TypeError, lambda s: s.manager.register_cache(None, [1])),
    row("3.2 row 3 cache = None (mended)", TypeError, lambda s: s.manager.pull_cache(ENTRY, None)),
    row("3.2 row 3 key = None (mended)", TypeError,
        lambda s: s.manager.pull_blocks(None, s.blocks, [0], [0])),
    row("3.2 row 4 BlocksCacheKey(None) (mended)", TypeError, lambda s: BlocksCacheKey(None)),
    row("3.2 row 4 BlocksCacheKey(-1) (mended)", ValueError, lambda s: BlocksCacheKey(-1)),
    row("3.2 row 4 CacheKey(None, 1)", TypeError, lambda s: CacheKey(None, 1)),
    row("3.2 row 4 CacheKey(-1, 1)", ValueError, lambda s: CacheKey(-1, 1)),
    *both("3.2 row 5 an empty range (mended)", INVALID, src_layer_range=range(0), dst_layer_range=range(0)),
    *both("3.2 row 5 an empty range backwards (mended)", INVALID, src_layer_range=range(5, 2)),
    *both("3.2 row 5 step 2", INVALID, src_layer_range=range(0, 2, 2), dst_layer_range=range(0, 2, 2)),
    *both("3.2 row 5 from -1", INVALID, src_layer_range=range(-1, 1), dst_layer_range=range(0, 2)),
    *both("3.2 row 5 a list", TypeError, src_layer_range=[0], dst_layer_range=[0]),
    *both("3.2 row 5 other lengths", INVALID, src_layer_range=range(2), dst_layer_range=HALF),
    *both("3.2 row 5 only src_layer_range", INVALID, src_layer_range=HALF),
    *both("3.2 row 5 only dst_layer_range", INVALID, dst_layer_range=HALF),
    *pushes("3.2 row 6 an empty range", INVALID, src_layer_range=range(0), dst_layer_range=range(0)),
    *pushes("3.2 row 6 step 2", INVALID, src_layer_range=range(0, 2, 2), dst_layer_range=range(0, 2, 2)),
    *pushes("3.2 row 6 from -1", INVALID, src_layer_range=range(-1, 1), dst_layer_range=range(0, 2)),
    row("3.2 row 6 an empty range: transfer", INVALID, transfer(range(0), range(0))),
    row("3.2 row 6 step 2: transfer", INVALID, transfer(range(0, 2, 2), range(1))),
    row("3.2 row 6 from -1: transfer", INVALID, transfer(range(-1, 1), range(0, 2))),
    *[case for make in (both, pushes) for case in (
        *make("3.2 row 7 tn = 0", INVALID, tensor_num_per_layer=0),
        *make("3.2 row 7 tn = -1", ValueError, tensor_num_per_layer=-1),
        *make("3.2 row 7 tn = None", TypeError, tensor_num_per_layer=None),
        *make("3.2 row 7 tn = 1.0", TypeError, tensor_num_per_layer=1.0),
        *make("3.2 row 7 tn = '1'", TypeError, tensor_num_per_layer="1"),
        *make("3.2 row 7 tn = 5 of 4 tensors, with ranges", INVALID, tensor_num_per_layer=5,
              src_layer_range=HALF, dst_layer_range=HALF),
    )],
    *pushes("3.2 row 7 tn = 5 of 4 tensors (mended)", INVALID, tensor_num_per_layer=5),
    *[row(f"3.2 row 8 pull size = {size}", INVALID, pull_entry(size=size)) for size in (0, -2, SIZE + 1)],
    *[row(f"3.2 row 8 push size = {size}", INVALID, push_entry(size=size)) for size in (0, -2, 8, SIZE)],
    *both("3.2 row 9 a misspelt keyword (mended)", TypeError, src_layers=HALF),
    row("3.2 row 10 addrs is a tuple", TypeError,
        lambda s: s.manager.register_cache(s.batch.cache_desc, tuple(s.batch.tensor_addrs))),
    row("3.2 row 12 its own defaults", TypeError, lambda s: TransferWithCacheKeyConfig(KEY)),  # type: ignore[call-arg]
    row("3.2 row 14 enable_cache_manager = 1", TypeError, config(enable_cache_manager=1)),
    row("3.2 row 14 in the dictionary (mended)", TypeError,
        lambda s: LLMDataDist(LLMRole.MIX, 9).init({"llm.EnableCacheManager": 1})),  # type: ignore[dict-item]
    row("3.2 row 16 falling ranks", INVALID, lambda s: s.datadist.link("a", {HERE: 1, THERE: 0}, "{}")),
    row("3.2 row 16 equal ranks (mended)", INVALID,
        lambda s: s.datadist.link("a", {HERE: 0, THERE: 0}, "{}")),
    row("3.2 row 17 mem_utilization = 1", TypeError, config(mem_utilization=1)),
    row("3.2 row 18 link timeout = 0", INVALID, lambda s: s.datadist.link_clusters([s.peer], timeout=0)),
    row("3.2 row 18 unlink timeout = 0", INVALID, lambda s: s.datadist.unlink_clusters([s.peer], timeout=0)),
    *[row(f"3.2 row 20 {name} = {value!r}", INVALID, config(**{name: value})) for name, value in (
        ("device_id", -1), ("sync_kv_timeout", 0), ("sync_kv_timeout", -1), ("sync_kv_timeout", ""),
        ("sync_kv_timeout", "-1"), ("sync_kv_timeout", "1.5"), ("link_total_time", -1),
        ("link_total_time", 2**32), ("link_retry_count", 0), ("link_retry_count", 101),
        ("mem_utilization", 1.5), ("mem_utilization", -0.5),
    )],
    *[row(f"3.2 row 20 {name} = {value}", ValueError, config(**{name: value})) for name, value in (
        ("device_id", 2**31), ("sync_kv_timeout", 2**31), ("rdma_traffic_class", -1),
        ("rdma_traffic_class", 2**32), ("rdma_service_level", -1), ("rdma_service_level", 2**32),
    )],
    row("3.2 row 22 no link", NOT_LINKED,
        lambda s: s.manager.pull_blocks(BlocksCacheKey(99, 99), s.blocks, [0], [0])),
    row("3.2 row 22 no link, a nonsensical id", NOT_LINKED,
        lambda s: s.manager.pull_cache(CacheKeyByIdAndIndex(99, -5), s.batch)),
    row("3.2 row 22 local parameters come first", INVALID,
        lambda s: s.manager.pull_blocks(BlocksCacheKey(99), s.batch, [0], [0])),
    *[row(f"3.2 row 23 listen at {address} (mended)", INVALID, lambda s, a=address: LLMDataDist(
        LLMRole.MIX, 9).init({"llm.EnableCacheManager": "1", "llm.listenIpInfo": a}))
      for address in ('{"a":1}:{', "{a")],
    row("3.2 row 24 copy_blocks(None) (mended)", TypeError, lambda s: s.manager.copy_blocks(s.blocks, None)),
    row("3.2 row 24 copy_blocks of a tuple", TypeError, lambda s: s.manager.copy_blocks(s.blocks, {1: (2,)})),
    row("3.2 row 24 swap_blocks of text", TypeError,
        lambda s: s.manager.swap_blocks(s.blocks, s.on_host, {0: "1"})),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "call"), REFUSED)
def test_refused(linked: SimpleNamespace, expected: Any, call: Call) -> None:
    check_raises(expected, lambda: call(linked))


def two_statuses(code: LLMStatusCode) -> Call:
    return lambda s: (
        s.datadist.link_clusters([]) == (code, []) and s.datadist.unlink_clusters([]) == (code, [])
    )


def empty_transfer(state: SimpleNamespace) -> bool:
    task = state.manager.transfer_cache_async(state.blocks, Always(), [], [0], [0])
    return bool(task.synchronize() == LLMStatusCode.LLM_SUCCESS and task.get_results() == [])


def poll(state: SimpleNamespace) -> bool:
    class Held(Always):
        def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
            held.wait(20)
            return True

    held = threading.Event()
    chosen = TransferWithCacheKeyConfig(KEY, range(2), range(2))
    task: CacheTask = state.manager.transfer_cache_async(state.blocks, Held(), [chosen], [0], [0])
    before = task.synchronize(0)
    held.set()
    return before == LLMStatusCode.LLM_TIMEOUT and task.synchronize(20_000) == LLMStatusCode.LLM_SUCCESS


def unset(state: SimpleNamespace) -> bool:
    made = LLMConfig()
    made.listen_ip_info, made.enable_cache_manager = "127.0.0.1:1", True
    made.listen_ip_info = made.enable_cache_manager = None  # type: ignore[assignment]
    return made.listen_ip_info == "" and not made.enable_cache_manager


def deallocated_twice(state: SimpleNamespace) -> bool:
    cache = state.manager.allocate_cache(state.batch.cache_desc)
    state.manager.deallocate_cache(cache)
    state.manager.deallocate_cache(cache)
    check_raises(NO_CACHE, lambda: state.manager.pull_cache(ENTRY, cache))
    return cache.tensor_addrs == []  # type: ignore[no-any-return]


ACCEPTED = [
    row("3.2 row 3 None unsets an option", True, unset),
    row("3.2 row 7 tn = 5 of 4 tensors: pull_blocks without ranges", None, pull(tensor_num_per_layer=5)),
    row("3.2 row 7 tn = 5 of 4 tensors: pull_cache without ranges", None, pull_entry(tensor_num_per_layer=5)),
    row("3.2 row 8 pull size = -1", None, pull_entry(size=-1)),
    row("3.2 row 8 pull size = 1", None, pull_entry(size=1)),
    row("3.2 row 8 push size = -1", None, push_entry(size=-1)),
    row("3.2 row 11 no configs", True, empty_transfer),
    row("3.2 row 13 no clusters", True, two_statuses(INVALID)),
    row("3.2 row 15 init(None) again", None, lambda s: s.datadist.init(None)),
    row("3.2 row 17 mem_utilization = 1.0", None, config(mem_utilization=1.0)),
    row("3.2 row 19 synchronize(0) polls", True, poll),
    row("3.2 row 21 deallocate_cache twice", True, deallocated_twice),
]


@pytest.mark.parametrize(("expected", "call"), ACCEPTED)
def test_accepted(linked: SimpleNamespace, expected: Any, call: Call) -> None:
    assert call(linked) == expected


def test_every_point_has_a_case() -> None:
    points = {int(case.id.split()[2]) for case in (*REFUSED, *ACCEPTED)}

    assert points == set(range(1, 25))
