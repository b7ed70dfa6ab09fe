"""2.8: every cell of the tables that say what goes where, with the bytes; and the rows of its rules.

C is a contiguous cache, B a cache of blocks; D is device memory, H host memory. "D2H C2B" is named in the
direction in which the bytes flow, whoever begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.conformance.case import INVALID, check_raises
from tests.transfers import Always
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

HERE, THERE = 1, 2
TENSORS, BATCH, ENTRY = 4, 3, 72
BLOCKS, BLOCK = 6, 24  # an entry is three blocks
PLACES = {"D": Placement.DEVICE, "H": Placement.HOST}
MODELS = {"D": 0, "H": 1}
POOL = '{"memory_size": 1048576, "page_shift": 12}'

Pair = tuple[SimpleNamespace, SimpleNamespace]
Rows = list[torch.Tensor]


def serve(cluster_id: int, device: int, mode: str) -> SimpleNamespace:
    """An instance with four caches: "CD", "CH", "BD", "BH"."""
    state = SimpleNamespace()
    state.port = instances.start(state, cluster_id, device, {**caches.MODES[mode], "host_mem_pool_cfg": POOL})
    for place, placement in PLACES.items():
        on_host: dict[str, Any] = {"allocate": placement == Placement.HOST}
        contiguous = caches.describe(TENSORS, BATCH, ENTRY, placement)
        caches.add(state, f"C{place}", 1, contiguous, **on_host)
        blocks = caches.describe(TENSORS, BLOCKS, BLOCK, placement)
        key = BlocksCacheKey(cluster_id, MODELS[place])
        caches.add(state, f"B{place}", 2, blocks, is_blocks=True, key=key, **on_host)
    return state


@contextlib.contextmanager
def linked_pair(mode: str) -> Iterator[Pair]:
    here, there = serve(HERE, 0, mode), serve(THERE, 1, mode)
    here.mode = mode
    assert instances.link(here, THERE, there.port) == ["LLM_SUCCESS"]
    instances.wait_linked(there, HERE)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with linked_pair(request.param) as both:
        yield both


only_ra = pytest.mark.parametrize("pair", ["RA"], indirect=True)
only_non_ra = pytest.mark.parametrize("pair", ["non-RA"], indirect=True)


def fill(state: SimpleNamespace, name: str, seed: int) -> Rows:
    """New bytes for a cache; returns them as [entries, bytes]."""
    content = caches.bytes_of(seed, [raw.numel() for raw in state.raw[name]])
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)
    return caches.rows(content, state.caches[name].num_entries)


def entry_key(state: SimpleNamespace, name: str, batch_index: int = 0) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(state.cluster_id, state.caches[name].cache_id, batch_index)


# In plain torch: entry 1 to entry 2; the slices of entry 1 to blocks 5, 0; blocks 1, 4 to blocks 5, 0.


def move(shape: str, source: Rows, target: Rows) -> None:
    for of, to in zip(source, target, strict=True):
        if shape == "C2C":
            to[2] = of[1]
        elif shape == "C2B":
            to[[5, 0]] = of[1].view(-1, BLOCK)[:2]
        else:
            to[[5, 0]] = of[[1, 4]]


def check_moved(shape: str, source: Rows, state: SimpleNamespace, name: str, before: Rows) -> None:
    expected = [tensor.clone() for tensor in before]
    move(shape, source, expected)
    assert caches.equal(caches.look(state, name), expected)


DIRECTIONS = ["D2D", "D2H", "H2D", "H2H"]


def ends(shape: str, direction: str) -> tuple[str, str]:
    """ "C2B", "D2H": the names of the caches "CD" and "BH"."""
    return shape[0] + direction[0], shape[2] + direction[2]


@pytest.mark.parametrize("shape", ["C2C", "C2B", "B2B", "B2C"], ids=lambda s: f"2.8 pull {s}")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_cell_of_the_pull_tables(pair: Pair, shape: str, direction: str) -> None:
    """Lifted: H2H (``LLM_FEATURE_NOT_ENABLED`` in the original), and the pools of D2H and H2D."""
    here, there = pair
    of, to = ends(shape, direction)
    source, before = fill(there, of, 11), fill(here, to, 12)
    manager, local = here.datadist.cache_manager, here.caches[to]

    if shape == "C2C":
        manager.pull_cache(entry_key(there, of, 1), local, 2)
    elif shape == "B2B":
        manager.pull_blocks(BlocksCacheKey(THERE, MODELS[direction[0]]), local, [1, 4], [5, 0])
    elif shape == "B2C":
        key = BlocksCacheKey(THERE, MODELS[direction[0]])
        check_raises(INVALID, lambda: manager.pull_blocks(key, local, [1, 4], [2, 0]))
    elif direction == "H2D" and here.mode == "non-RA":  # different layouts
        check_raises(INVALID, lambda: manager.pull_blocks(entry_key(there, of, 1), local, [], [5, 0]))
    else:
        manager.pull_blocks(entry_key(there, of, 1), local, [], [5, 0])

    if shape == "B2C" or (shape, direction, here.mode) == ("C2B", "H2D", "non-RA"):
        assert caches.equal(caches.look(here, to), before)
    else:
        check_moved(shape, source, here, to, before)


@only_ra
@pytest.mark.parametrize("shape", ["C2C", "C2B", "B2B", "B2C"], ids=lambda s: f"2.8 push {s}")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_cell_of_the_push_table(pair: Pair, shape: str, direction: str) -> None:
    """C2C and B2B; H to D with the same layout only (seeds 003 and 004)."""
    here, there = pair
    of, to = ends(shape, direction)
    source, before = fill(here, of, 21), fill(there, to, 22)
    manager, local = here.datadist.cache_manager, here.caches[of]
    by_id, by_model = entry_key(there, to, 2), BlocksCacheKey(THERE, MODELS[direction[2]])

    if shape == "C2C":
        manager.push_cache(by_id, local, 1)
    elif shape == "B2B":
        manager.push_blocks(by_model, local, [1, 4], [5, 0])
    elif shape == "C2B":
        check_raises(INVALID, lambda: manager.push_blocks(by_model, local, [1, 4], [5, 0]))
        check_raises(INVALID, lambda: manager.push_cache(entry_key(there, to), local, 1))
    else:
        check_raises(INVALID, lambda: manager.push_cache(by_id, local, 1))

    if shape[0] == shape[2]:
        check_moved(shape, source, there, to, before)
    else:
        assert caches.equal(caches.look(there, to), before)


@only_non_ra
def test_pushes_need_remote_access(pair: Pair) -> None:
    """1.7: checked before anything else."""
    here, there = pair
    manager = here.datadist.cache_manager

    said = check_raises(INVALID, lambda: manager.push_cache(entry_key(there, "CD"), here.caches["BD"]))
    assert "enable_remote_cache_accessible is False here" in said
    said = check_raises(INVALID, lambda: manager.push_blocks(None, here.caches["CD"]))
    assert "enable_remote_cache_accessible is False here" in said


def addresses(state: SimpleNamespace, name: str, entry: int) -> list[int]:
    step = ENTRY if name[0] == "C" else BLOCK
    return [address + entry * step for address in state.caches[name].tensor_addrs]


@pytest.mark.parametrize("shape", ["C2C", "C2B", "B2B", "B2C"], ids=lambda s: f"2.8 transfer_cache_async {s}")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_cell_of_the_transfer_table(pair: Pair, shape: str, direction: str) -> None:
    """By keys while remote access is on, by raw addresses otherwise; from host memory refused at once."""
    here, there = pair
    of, to = ends(shape, direction)
    source, before = fill(here, of, 31), fill(there, to, 32)
    layers = range(TENSORS // 2)
    # With source blocks the source's batch index is 0, and the other way round the destination's.
    src_batch = 1 if shape[0] == "C" else 0
    if here.mode == "RA":
        key = entry_key(there, to, 2 if shape[2] == "C" else 0)
        config: Any = TransferWithCacheKeyConfig(key, layers, layers, src_batch)
    else:
        config = TransferConfig(THERE, addresses(there, to, 2 if shape[2] == "C" else 0), layers, src_batch)
    src = [1, 4] if shape[0] == "B" else []
    dst = [5, 0] if shape[2] == "B" else []

    def call() -> Any:
        size = BLOCK if shape == "C2B" else None
        return here.datadist.cache_manager.transfer_cache_async(
            here.caches[of], Always(), [config], src, dst, size
        )

    if direction[0] == "H" or shape == "B2C":
        check_raises(INVALID, call)
        assert caches.equal(caches.look(there, to), before)
        return
    task = call()
    assert task.get_results(30_000) == [LLMStatusCode.LLM_SUCCESS], task.details()
    check_moved(shape, source, there, to, before)


# The rules of the table under them that no other case names.


@pytest.mark.parametrize("size", [ENTRY, ENTRY - 1])
def test_2_8_row_1_size_fits_the_local_and_the_remote_entry(pair: Pair, size: int) -> None:
    """``size``, or the local stride, is at most the local stride and at most the remote one."""
    here, there = pair
    manager = here.datadist.cache_manager
    narrow = caches.describe(TENSORS, BATCH, size - 1)
    caches.add(there, "narrow", 3, narrow)
    caches.add(here, "narrow", 4, narrow)
    before = caches.look(here, "CD")

    remote, local = entry_key(there, "narrow"), here.caches["CD"]
    for length in (size, -1):  # the local entry has ENTRY bytes, the remote one less
        said = check_raises(INVALID, lambda n=length: manager.pull_cache(remote, local, 0, n))
        assert said.startswith("pull_cache: ")
    said = check_raises(
        INVALID, lambda: manager.pull_cache(entry_key(there, "CD"), here.caches["narrow"], 0, size)
    )
    assert f"expected -1 or 1 to {size - 1}" in said
    assert caches.equal(caches.look(here, "CD"), before)

    source = fill(there, "narrow", 5)
    manager.pull_cache(entry_key(there, "narrow", 1), here.caches["CD"], 2, size - 1)
    expected = caches.rows(before, BATCH)
    for of, to in zip(source, expected, strict=True):
        to[2, : size - 1] = of[1]
    assert caches.equal(caches.look(here, "CD"), expected)
    for state in pair:
        state.datadist.cache_manager.unregister_cache(state.caches["narrow"].cache_id)


@pytest.mark.parametrize("remote_block", [BLOCK // 2, 2 * BLOCK])
def test_2_8_row_5_blocks_of_different_size_are_refused(pair: Pair, remote_block: int) -> None:
    """Mended: the original takes the destination's size for both."""
    here, there = pair
    key = BlocksCacheKey(THERE, 7)
    desc = caches.describe(TENSORS, BLOCKS, remote_block)
    caches.add(there, "other", 3, desc, is_blocks=True, key=key)
    before = caches.look(here, "BD")
    manager = here.datadist.cache_manager

    said = check_raises(INVALID, lambda: manager.pull_blocks(key, here.caches["BD"], [0], [0]))

    assert str(BLOCK) in said
    assert str(remote_block) in said
    assert caches.equal(caches.look(here, "BD"), before)
    there.datadist.cache_manager.unregister_cache(there.caches["other"].cache_id)


HALF = {"src_layer_range": range(1), "dst_layer_range": range(1)}


def three_per_layer(call: Callable[..., None], *arguments: Any, **ranges: Any) -> Callable[[], object]:
    return lambda: call(*arguments, tensor_num_per_layer=3, **ranges)


@only_ra
def test_2_8_row_13_tensors_per_layer_divide_the_tensors_where_a_range_is_given(pair: Pair) -> None:
    """Of pulls as in the original. Lifted for pushes without a range, as the seeds have it: all are sent."""
    here, there = pair
    manager, blocks, batch = here.datadist.cache_manager, here.caches["BD"], here.caches["CD"]
    key = BlocksCacheKey(THERE, 0)
    for call in (manager.push_blocks, manager.pull_blocks):
        check_raises(INVALID, three_per_layer(call, key, blocks, [0], [0], **HALF))
    for call in (manager.push_cache, manager.pull_cache):
        check_raises(INVALID, three_per_layer(call, entry_key(there, "CD"), batch, **HALF))
    check_raises(INVALID, three_per_layer(manager.prepare_push, key, blocks, [0], [0]))

    for shape, name, arguments in (
        ("B2B", "BD", (key, blocks, [1, 4], [5, 0])),
        ("C2C", "CD", (entry_key(there, "CD", 1), batch, 2)),
    ):
        source, before = fill(there, name, 41), fill(here, name, 42)
        three_per_layer(getattr(manager, f"pull_{'cache' if shape == 'C2C' else 'blocks'}"), *arguments)()
        check_moved(shape, source, here, name, before)
    source, before = fill(here, "BD", 43), fill(there, "BD", 44)
    three_per_layer(manager.push_blocks, key, blocks, [1, 4], [5, 0])()
    check_moved("B2B", source, there, "BD", before)
    source, before = fill(here, "CD", 45), fill(there, "CD", 46)
    three_per_layer(manager.push_cache, entry_key(there, "CD", 2), batch, 1)()
    check_moved("C2C", source, there, "CD", before)


@only_ra
def test_tensors_per_layer_by_default_with_a_range_of_an_odd_number_of_tensors(pair: Pair) -> None:
    """Seeds 003 and 004: beside a range the default may stay. Lifted: the original wants it to divide."""
    here, there = pair
    key = BlocksCacheKey(THERE, 9)
    desc = caches.describe(5, BLOCKS, BLOCK)
    caches.add(here, "odd", 3, desc, is_blocks=True)
    caches.add(there, "odd", 4, desc, is_blocks=True, key=key)
    source, before = fill(here, "odd", 61), fill(there, "odd", 62)
    manager, local = here.datadist.cache_manager, here.caches["odd"]

    manager.push_blocks(key, local, [1], [5], src_layer_range=range(1, 2), dst_layer_range=range(1))

    for t in range(2):
        before[t][5] = source[2 + t][1]
    assert caches.equal(caches.look(there, "odd"), before)
    beyond = {"src_layer_range": range(2, 3), "dst_layer_range": range(1)}
    check_raises(INVALID, lambda: manager.push_blocks(key, local, [1], [5], **beyond))
    for state in pair:
        state.datadist.cache_manager.unregister_cache(state.caches["odd"].cache_id)


@pytest.mark.parametrize(
    ("data_type", "shape"),
    [
        (DataType.DT_FLOAT16, [BLOCKS, 3, 4]),
        (DataType.DT_DOUBLE, [BLOCKS, 3]),
        (DataType.DT_BOOL, [BLOCKS, 24]),
    ],
    ids=str,
)
def test_2_8_row_15_only_bytes_are_compared_between_the_ends(
    pair: Pair, data_type: DataType, shape: list[int]
) -> None:
    """Not the dtype and not the shape: blocks of as many bytes move, verbatim."""
    here, there = pair
    key = BlocksCacheKey(THERE, 8)
    raw = caches.bytes_of(51, [BLOCKS * BLOCK] * TENSORS)
    dtype = instances.TORCH_DTYPES[data_type]
    tensors = [bytes_.to("npu:1").view(dtype).view(shape) for bytes_ in raw]
    manager = there.datadist.cache_manager
    other = manager.register_blocks_cache(caches.datadist.CacheDesc(TENSORS, shape, data_type), tensors, key)
    before = fill(here, "BD", 52)

    here.datadist.cache_manager.pull_blocks(key, here.caches["BD"], [1, 4], [5, 0])

    check_moved("B2B", caches.rows(raw, BLOCKS), here, "BD", before)
    manager.unregister_cache(other.cache_id)
