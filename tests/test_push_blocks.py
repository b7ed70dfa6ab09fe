"""push_blocks and pull_blocks between processes, against plain indexing of the same bytes."""

from __future__ import annotations

import ast
import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import torch_llm_datadist
import torch_llm_datadist as datadist
from tests import instances
from torch_llm_datadist import DataType, _native, emulator

BLOCKS = 24


def reference(
    source: torch.Tensor,
    target: torch.Tensor,
    src: list[int],
    dst: list[int],
    src_tensors: range,
    dst_tensors: range,
) -> torch.Tensor:
    """What the target holds afterwards; everything that is not named stays as it was."""
    expected = target.clone()
    for s, d in zip(src_tensors, dst_tensors, strict=True):
        expected[d, dst] = source[s, src]
    return expected


def linked_pair(
    peers,
    num_tensors: int,
    block_bytes: int,
    data_type: DataType = DataType.DT_UINT8,
    blocks: int = BLOCKS,
    apart: bool = False,
    options: dict[str, Any] | None = None,
):
    """Two processes on two devices with a cache each, linked from the first to the second."""
    a, b = peers(2)
    a.call(instances.start, 1, 0, options)
    port = b.call(instances.start, 2, 1, options)
    a.call(instances.register, 10, num_tensors, blocks, block_bytes, data_type, 0, apart)
    b.call(instances.register, 20, num_tensors, blocks, block_bytes, data_type, 0, apart)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    return a, b


def scattered(seed: int, count: int, blocks: int = BLOCKS) -> tuple[list[int], list[int]]:
    """Some runs that are neighbours on both sides, some that are not."""
    chooser = random.Random(seed)
    src = chooser.sample(range(blocks), count)
    dst = chooser.sample(range(blocks), count)
    if count >= 4:
        src[:2], dst[:2] = [4, 5], [9, 10]
        src = list(dict.fromkeys(src + list(range(blocks))))[:count]
        dst = list(dict.fromkeys(dst + list(range(blocks))))[:count]
    return src, dst


@pytest.mark.parametrize("data_type", list(instances.TORCH_DTYPES), ids=lambda dtype: dtype.name)
def test_push_blocks_is_bit_exact_for_every_dtype(peers, data_type):
    a, b = linked_pair(peers, 4, 64, data_type)
    src, dst = scattered(1, 9)

    a.call(instances.push_blocks, 2, src, dst)

    before_a, before_b = instances.pattern(10, 4, BLOCKS, 64), instances.pattern(20, 4, BLOCKS, 64)
    assert torch.equal(b.call(instances.content), reference(before_a, before_b, src, dst, range(4), range(4)))
    assert torch.equal(a.call(instances.content), before_a)


@pytest.mark.parametrize("tensors_per_layer", [1, 2, 3, 4])
@pytest.mark.parametrize("block_bytes", [1, 3, 511, 4096, 65536, 4 << 20], ids=lambda n: f"{n}B")
def test_push_blocks_moves_only_the_named_blocks(peers, tensors_per_layer, block_bytes):
    blocks = BLOCKS if block_bytes < 1 << 20 else 6
    num_tensors = 2 * tensors_per_layer
    a, b = linked_pair(peers, num_tensors, block_bytes, blocks=blocks, options={"sync_kv_timeout": 30_000})
    src, dst = scattered(block_bytes + tensors_per_layer, min(9, blocks // 2), blocks)

    a.call(push_layers, 2, src, dst, tensors_per_layer)

    before_a = instances.pattern(10, num_tensors, blocks, block_bytes)
    before_b = instances.pattern(20, num_tensors, blocks, block_bytes)
    layer_one = range(tensors_per_layer, 2 * tensors_per_layer)
    expected = reference(before_a, before_b, src, dst, layer_one, range(tensors_per_layer))
    assert torch.equal(b.call(instances.content), expected)


def push_layers(state, cluster_id, src, dst, tensors_per_layer):
    """Layer 1 here to layer 0 there."""
    instances.push_blocks(
        state, cluster_id, src, dst,
        src_layer_range=range(1, 2), dst_layer_range=range(0, 1), tensor_num_per_layer=tensors_per_layer,
    )  # fmt: skip


def test_pull_blocks_is_bit_exact_in_both_directions_of_a_link(peers):
    a, b = linked_pair(peers, 4, 1000)
    src, dst = scattered(3, 9)

    a.call(instances.pull_blocks, 2, src, dst)
    b.call(instances.pull_blocks, 1, src, dst)

    before_a, before_b = instances.pattern(10, 4, BLOCKS, 1000), instances.pattern(20, 4, BLOCKS, 1000)
    after_a = reference(before_b, before_a, src, dst, range(4), range(4))
    assert torch.equal(a.call(instances.content), after_a)
    assert torch.equal(b.call(instances.content), reference(after_a, before_b, src, dst, range(4), range(4)))


def count_imports(state, dst):
    before = emulator.calls("aclrtIpcMemImportByKey")
    instances.push_blocks(state, 2, [0], [dst])
    return emulator.calls("aclrtIpcMemImportByKey") - before


def test_a_segment_of_the_peer_is_imported_once_and_when_first_used(peers):
    a, b = linked_pair(peers, 16, 1000)

    assert a.call(count_imports, 1) <= 1  # sixteen small tensors lie in one segment, as the control page may
    assert a.call(count_imports, 2) == 0
    assert torch.equal(b.call(instances.content)[:, 1], instances.pattern(10, 16, BLOCKS, 1000)[:, 0])


def schema_and_fake_hold(state):
    ids = torch.tensor([1, 2, -1])
    binding = datadist.Binding(state.device, range(2))
    binding.bind(())
    link = state.datadist.link_id(2)
    ops = torch.ops.torch_llm_datadist
    blocks = (state.status, list(state.cache.tensors), ids, ids, link, 0, 0, 0, -1, 2, 1000, True, 0)
    with FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # opcheck hands out copies, which are no registered cache
        ops.push_blocks.default(*blocks)
        ops.pull_blocks.default(*blocks)
    for op, arguments in {
        ops.push_layer.default: (state.status, torch.zeros(1).npu(), 0, binding.id),
        ops.wait_layer.default: (state.status, torch.zeros(1).npu(), 1, binding.id),
        ops.finish.default: (state.status, torch.zeros(1).npu(), binding.id),
    }.items():
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_op_has_a_schema_and_a_fake_that_hold(peers):
    a, _ = linked_pair(peers, 4, 64)

    a.call(schema_and_fake_hold)


def test_the_stub_names_what_the_native_core_has():
    stub = ast.parse((Path(torch_llm_datadist.__file__).parent / "_C.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    methods = {
        f"{node.name}.{item.name}"
        for node in stub.body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name != "__init__"
    }
    native = _native.load()

    has = {name for name in dir(native) if not name.startswith("_") and name != "BUILT_FOR_TORCH_NPU"}
    has_methods = {
        f"{name}.{method}"
        for name in (node.name for node in stub.body if isinstance(node, ast.ClassDef))
        for method in vars(getattr(native, name))
        if not method.startswith("_") and callable(getattr(getattr(native, name), method))
    }

    assert has == named
    assert has_methods == methods


def forget_tensors(state):
    """Only the library still holds them."""
    state.raw = None
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()
    state.filler = [torch.full((BLOCKS, 64), 1, dtype=torch.uint8).npu() for _ in range(64)]


def test_a_registered_cache_outlives_its_tensors(peers):
    a, b = linked_pair(peers, 4, 64)
    b.call(forget_tensors)

    a.call(instances.pull_blocks, 2, [3, 9], [0, 1])

    assert torch.equal(a.call(instances.content)[:, :2], instances.pattern(20, 4, BLOCKS, 64)[:, [3, 9]])
