"""copy_cache, copy_blocks and swap_blocks, against plain indexing of the same bytes (2.6 of the API's
description).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.conformance.case import check_raises
from tests.streams import standing_still
from torch_llm_datadist import Cache, CacheDesc, DataType, LLMStatusCode, Placement, emulator

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
FAILED = LLMStatusCode.LLM_FAILED
DEVICE, HOST = Placement.DEVICE, Placement.HOST
TENSORS, BATCH, ENTRY = 3, 4, 96
SEEDS = {"batch": 1, "batch2": 2, "host": 3, "host2": 4, "wide": 5, "blocks": 6, "host blocks": 7, "one": 8}


@pytest.fixture(scope="module")
def state() -> Iterator[SimpleNamespace]:
    made = SimpleNamespace()
    instances.start(made, 1, 0)
    made.manager = made.datadist.cache_manager
    batch, on_host = (caches.describe(TENSORS, BATCH, ENTRY, where) for where in (DEVICE, HOST))
    for name, desc in {
        "batch": batch,
        "batch2": batch,
        "host": on_host,
        "host2": on_host,
        "wide": caches.describe(TENSORS, BATCH, 2 * ENTRY),
        "one": caches.describe(1, BATCH, ENTRY),
        "blocks": batch,
        "host blocks": on_host,
    }.items():
        caches.add(made, name, SEEDS[name], desc, is_blocks="blocks" in name)
    yield made
    made.datadist.finalize()


def restore(state: SimpleNamespace, name: str) -> list[torch.Tensor]:
    content = caches.bytes_of(SEEDS[name], [t.numel() for t in state.raw[name]])
    for raw, bytes_ in zip(state.raw[name], content, strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(0)
    return caches.rows(content, BATCH)


# copy_cache.


@pytest.mark.parametrize(
    ("dst", "src"), list(itertools.product(["batch", "host"], ["batch2", "host2"])), ids=lambda n: n
)
@pytest.mark.parametrize(("offset", "size"), [(0, -1), (0, 1), (7, 20), (ENTRY - 1, -1), (ENTRY - 5, 5)])
def test_copy_cache_copies_a_part_of_an_entry(
    state: SimpleNamespace, dst: str, src: str, offset: int, size: int
) -> None:
    """2.6: any placements; the same part of both entries; -1 is the rest of the source's entry."""
    source, expected = restore(state, src), restore(state, dst)

    state.manager.copy_cache(state.caches[dst], state.caches[src], 3, 1, offset, size, req_id=5)

    end = ENTRY if size == -1 else offset + size
    for to, of in zip(expected, source, strict=True):
        to[3, offset:end] = of[1, offset:end]
    assert caches.equal(caches.look(state, dst), expected)
    assert caches.equal(caches.look(state, src), source)


def test_copy_cache_within_one_cache(state: SimpleNamespace) -> None:
    expected = restore(state, "batch")

    state.manager.copy_cache(state.caches["batch"], state.caches["batch"], 2, 0)
    state.manager.copy_cache(state.caches["batch"], state.caches["batch"], 1, 1)  # onto itself: nothing

    for to in expected:
        to[2] = to[0]
    assert caches.equal(caches.look(state, "batch"), expected)


def test_copy_cache_between_caches_with_other_strides(state: SimpleNamespace) -> None:
    source, expected = restore(state, "batch"), restore(state, "wide")
    state.manager.copy_cache(state.caches["wide"], state.caches["batch"], 1, 2)
    for to, of in zip(expected, source, strict=True):
        to[1, :ENTRY] = of[2]
    assert caches.equal(caches.look(state, "wide"), expected)


COPY_ERRORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("2.6 dst is None (mended)", TypeError, {"dst": None}),
    ("2.6 src is an id", TypeError, {"src": 1}),
    ("2.6 blocks cache", INVALID, {"src": "blocks"}),
    ("2.6 unknown id", NO_CACHE,
     {"dst": Cache(99, CacheDesc(3, [4, 96], DataType.DT_UINT8), [1] * 3, False)}),
    ("2.6 other number of tensors", INVALID, {"src": "one"}),
    ("2.6 dst index past the end", INVALID, {"dst_batch_index": BATCH}),
    ("2.6 src index past the end", INVALID, {"src_batch_index": BATCH}),
    ("2.6 dst index -1", ValueError, {"dst_batch_index": -1}),
    ("2.6 src index None", TypeError, {"src_batch_index": None}),
    ("3.2 row 1 src index True (mended)", TypeError, {"src_batch_index": True}),
    ("2.6 size 0", INVALID, {"size": 0}),
    ("2.6 size -2", INVALID, {"size": -2}),
    ("2.6 size past the end", INVALID, {"offset": 1, "size": ENTRY}),
    ("2.6 offset past the end", INVALID, {"offset": ENTRY}),
    ("2.6 offset -1", ValueError, {"offset": -1}),
    ("2.6 offset 2**63", INVALID, {"offset": 2**63}),
    ("2.6 size 2**63", ValueError, {"size": 2**63}),
    ("2.6 source entry larger than the destination's", INVALID, {"src": "wide"}),
    ("2.6 req_id -1", ValueError, {"req_id": -1}),
    ("2.6 req_id a str", TypeError, {"req_id": "1"}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given"), [e[1:] for e in COPY_ERRORS], ids=[e[0] for e in COPY_ERRORS])
def test_copy_cache_refuses(state: SimpleNamespace, expected: Any, given: dict[str, Any]) -> None:
    before = restore(state, "batch")
    arguments = {"dst": "batch", "src": "batch2", **given}
    for name in ("dst", "src"):
        if isinstance(arguments[name], str):
            arguments[name] = state.caches[arguments[name]]

    message = check_raises(expected, lambda: state.manager.copy_cache(**arguments))

    assert message.startswith("copy_cache: ")
    assert caches.equal(caches.look(state, "batch"), before)


# copy_blocks.


@pytest.mark.parametrize("name", ["blocks", "host blocks"])
@pytest.mark.parametrize("info", [{0: [1]}, {0: [1, 3]}, {0: [2], 1: [3]}, {2: []}, {3: [3]}, {}], ids=str)
def test_copy_blocks_copies_each_source_to_its_destinations(
    state: SimpleNamespace, name: str, info: dict[int, list[int]]
) -> None:
    """2.6; mended: an empty dict copies nothing, in the original entry 0 onto itself."""
    before, expected = restore(state, name), restore(state, name)

    state.manager.copy_blocks(state.caches[name], info)

    for to, of in zip(expected, before, strict=True):
        for source, destinations in info.items():
            to[destinations] = of[source]
    assert caches.equal(caches.look(state, name), expected)


@pytest.mark.parametrize(
    ("expected", "cache", "info"),
    [
        pytest.param(TypeError, None, {}, id="2.6 cache is None (mended)"),
        pytest.param(INVALID, "batch", {}, id="2.6 contiguous cache"),
        pytest.param(TypeError, "blocks", None, id="3.2 row 24 None (mended)"),
        pytest.param(TypeError, "blocks", {1: (2,)}, id="3.2 row 24 value is a tuple"),
        pytest.param(TypeError, "blocks", {1: 2}, id="2.6 value is an int"),
        pytest.param(TypeError, "blocks", {1: [numpy.int64(2)]}, id="3.2 row 2 numpy int"),
        pytest.param(TypeError, "blocks", {"1": [2]}, id="key is a str"),
        pytest.param(ValueError, "blocks", {1: [-1]}, id="negative"),
        pytest.param(INVALID, "blocks", {BATCH: [1]}, id="2.6 source past the end"),
        pytest.param(INVALID, "blocks", {0: [1, BATCH]}, id="2.6 destination past the end: nothing copied"),
        pytest.param(INVALID, "blocks", {0: [1], 2: [1]}, id="destination twice"),
        pytest.param(INVALID, "blocks", {0: [1], 1: [2]}, id="destination is a source"),
    ],
)
def test_copy_blocks_refuses(state: SimpleNamespace, expected: Any, cache: Any, info: Any) -> None:
    before = restore(state, "blocks")

    message = check_raises(expected, lambda: state.manager.copy_blocks(state.caches.get(cache), info))

    assert message.startswith("copy_blocks: ")
    assert caches.equal(caches.look(state, "blocks"), before)


# swap_blocks.


def cpu_cache(state: SimpleNamespace, seed: int) -> tuple[Cache, list[torch.Tensor]]:
    """Host memory of the caller, known by its addresses only."""
    raw = caches.bytes_of(seed, [BATCH * ENTRY] * TENSORS)
    desc = caches.describe(TENSORS, BATCH, ENTRY, HOST)
    return Cache.create_cpu_cache(desc, [t.data_ptr() for t in raw]), raw


@pytest.mark.parametrize("pairs", [{}, {0: 3}, {0: 1, 1: 2, 3: 0}, {2: 2}], ids=str)
@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("kind", ["registered", "create_cpu_cache"])
def test_swap_blocks_copies_one_way_between_host_and_device(
    state: SimpleNamespace, kind: str, direction: str, pairs: dict[int, int]
) -> None:
    device = restore(state, "blocks")
    if kind == "registered":
        host, raw = state.caches["host blocks"], state.raw["host blocks"]
        restore(state, "host blocks")
    else:
        host, raw = cpu_cache(state, 9)
    on_host = [t.clone().view(BATCH, -1) for t in raw]
    source, expected = (on_host, device) if direction == "in" else (device, on_host)
    for to, of in zip(expected, source, strict=True):
        for s, d in pairs.items():
            to[d] = of[s]

    ends = (host, state.caches["blocks"]) if direction == "in" else (state.caches["blocks"], host)
    state.manager.swap_blocks(*ends, pairs)

    assert caches.equal(caches.look(state, "blocks"), device)
    assert caches.equal(raw, on_host)


def test_swap_blocks_sends_neighbours_as_one_copy(state: SimpleNamespace) -> None:
    host, _ = cpu_cache(state, 9)
    before = emulator.calls("aclrtMemcpyAsync")
    state.manager.swap_blocks(host, state.caches["blocks"], {0: 1, 1: 2, 2: 3})

    assert emulator.calls("aclrtMemcpyAsync") - before == TENSORS


@pytest.mark.parametrize(
    ("expected", "src", "dst", "pairs"),
    [
        pytest.param(TypeError, None, "blocks", {}, id="2.6 src is None (mended)"),
        pytest.param(INVALID, "batch", "host blocks", {}, id="2.6 contiguous"),
        pytest.param(INVALID, "blocks", "blocks", {}, id="2.6 both on the device"),
        pytest.param(INVALID, "host blocks", "cpu", {}, id="2.6 both on the host"),
        pytest.param(INVALID, "cpu of another size", "blocks", {0: 0}, id="2.6 block sizes differ"),
        pytest.param(INVALID, "cpu of fewer tensors", "blocks", {0: 0}, id="2.6 num_tensors differ"),
        pytest.param(TypeError, "blocks", "cpu", None, id="2.6 map is None (mended)"),
        pytest.param(TypeError, "blocks", "cpu", {0: "1"}, id="3.2 row 24 value is a str"),
        pytest.param(TypeError, "blocks", "cpu", {0.0: 1}, id="key is a float"),
        pytest.param(ValueError, "blocks", "cpu", {0: -1}, id="negative"),
        pytest.param(INVALID, "blocks", "cpu", {BATCH: 0}, id="2.6 source past the end"),
        pytest.param(INVALID, "blocks", "cpu", {0: BATCH}, id="2.6 destination past the end"),
        pytest.param(INVALID, "blocks", "cpu", {0: 1, 2: 1}, id="destination twice"),
    ],
)
def test_swap_blocks_refuses(state: SimpleNamespace, expected: Any, src: Any, dst: Any, pairs: Any) -> None:
    before = restore(state, "blocks")
    cpu, raw = cpu_cache(state, 9)
    others = {
        "cpu": cpu,
        "cpu of another size": Cache.create_cpu_cache(
            caches.describe(TENSORS, BATCH, ENTRY // 2, HOST), [t.data_ptr() for t in raw]
        ),
        "cpu of fewer tensors": Cache.create_cpu_cache(
            caches.describe(1, BATCH, ENTRY, HOST), [raw[0].data_ptr()]
        ),
        None: None,
    }
    ends = [others[name] if name in others else state.caches[name] for name in (src, dst)]

    message = check_raises(expected, lambda: state.manager.swap_blocks(*ends, pairs))

    assert message.startswith("swap_blocks: ")
    assert caches.equal(caches.look(state, "blocks"), before)
    assert caches.equal(raw, caches.bytes_of(9, [BATCH * ENTRY] * TENSORS))


# Order and errors.


def test_local_copies_wait_for_earlier_work_and_later_work_waits_for_them(state: SimpleNamespace) -> None:
    restore(state, "batch"), restore(state, "batch2")
    tensors, others = (list(state.caches[name].tensors) for name in ("batch", "batch2"))
    with torch.npu.stream(torch.npu.Stream(device=0)):
        emulator.delay_stream(0.02)
        for raw in state.raw["batch2"]:
            raw.fill_(5)
        datadist.ops.copy_cache(state.status, tensors, others, dst_batch=1, src_batch=0)
        after = [t.view(torch.uint8)[1].clone() for t in tensors]
        torch.npu.current_stream().synchronize()

    assert all(bool((t == 5).all()) for t in after)


def test_copies_on_the_host_keep_to_the_order_of_the_stream(state: SimpleNamespace) -> None:
    restore(state, "host"), restore(state, "host2")
    host, other = state.caches["host"].tensors, state.caches["host2"].tensors
    with standing_still():
        datadist.ops.copy_cache(state.status, host, other, dst_batch=1, src_batch=0)
        untouched = [t.clone() for t in host]
    datadist.ops.copy_cache(state.status, other, host, dst_batch=2, src_batch=1)
    torch.npu.synchronize(0)

    assert not any(torch.equal(t[1], o[0]) for t, o in zip(untouched, other, strict=True))
    assert all(torch.equal(t[1], o[0]) and torch.equal(o[2], o[0]) for t, o in zip(host, other, strict=True))


def test_a_copy_that_the_runtime_refuses_raises_and_the_next_one_works(state: SimpleNamespace) -> None:
    restore(state, "batch"), restore(state, "batch2")
    emulator.fail_next("aclrtMemcpyAsync", 1, 507899)

    check_raises(FAILED, lambda: state.manager.copy_cache(state.caches["batch"], state.caches["batch2"]))

    state.manager.copy_cache(state.caches["batch"], state.caches["batch2"])
    assert torch.equal(caches.look(state, "batch")[0][:ENTRY], caches.look(state, "batch2")[0][:ENTRY])


@pytest.mark.parametrize("name", ["copy_cache", "copy_blocks", "swap_blocks"])
def test_a_local_op_refuses_tensors_that_are_elsewhere_or_have_no_entries(
    state: SimpleNamespace, name: str
) -> None:
    ids = torch.tensor([0])
    for bad in (
        torch.zeros(2, 4, device="npu:1"),
        torch.zeros((), device="npu:0"),
        torch.zeros(4, 2).t().npu(),
    ):
        good = torch.zeros(2, 4, device="npu:0")
        calls = {
            "copy_cache": lambda bad=bad, good=good: datadist.ops.copy_cache(state.status, [good], [bad]),
            "copy_blocks": lambda bad=bad: datadist.ops.copy_blocks(state.status, [bad], ids, ids + 1),
            "swap_blocks": lambda bad=bad, good=good: datadist.ops.swap_blocks(
                state.status, [good], [bad], ids, ids
            ),
        }
        check_raises(INVALID, calls[name])


@pytest.mark.parametrize("pairs", [([0, 1], [1, 2]), ([1, 2, 3], [0, 1, 2])])
def test_swap_blocks_within_the_same_tensors_refuses_runs_that_overlap(
    state: SimpleNamespace, pairs: tuple[list[int], list[int]]
) -> None:
    before = torch.arange(2 * BATCH * ENTRY).view(2, BATCH, ENTRY)
    tensors = list(before.npu())

    def swap(src: list[int], dst: list[int]) -> None:
        datadist.ops.swap_blocks(state.status, tensors, tensors, torch.tensor(src), torch.tensor(dst))

    message = check_raises(INVALID, lambda: swap(*pairs))

    assert "overlap" in message
    assert torch.equal(torch.stack(tensors).cpu(), before)
    swap([0, 2], [3, 2])  # a block that stays where it is overlaps nothing
    before[:, 3] = before[:, 0]
    assert torch.equal(torch.stack(tensors).cpu(), before)
