"""What the benchmarks measure, at small sizes: that they run, and that what they show holds."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import bench_dispatch as dispatch
from benchmarks import bench_layerwise_overlap as overlap
from benchmarks import count_instructions, native
from benchmarks.cases import Case
from benchmarks.pair import Memcpy, Pair, content_of
from torch_llm_datadist import ops

LAYERS, COMPUTE_MS, TRANSFER_MS = 4, 100.0, 20.0


@pytest.mark.parametrize("mode", overlap.MODES)
def test_layers_that_are_pushed_one_by_one_arrive_while_the_forward_computes(mode: str) -> None:
    found = overlap.measure(mode, LAYERS, COMPUTE_MS, TRANSFER_MS, rounds=1)

    pushed, computed = found["overlapped"], found["overlapped"]["computed"]
    # By event times: decode could begin before prefill's last layer was computed.
    assert pushed["arrived"][0] < computed
    assert pushed["arrived"] == sorted(pushed["arrived"])
    assert found["afterwards_ms"] >= found["forward_alone_ms"] + LAYERS * TRANSFER_MS
    # No layer arrives before it was computed and had the time to travel.
    ends = pushed["kernel_ends"]
    assert len(ends) == (0 if mode == "replayed" else LAYERS)
    assert all(there - end >= TRANSFER_MS for end, there in zip(ends, pushed["arrived"], strict=False))


def test_a_wrong_byte_at_the_receiver_ends_a_benchmark() -> None:
    pair = Pair(Case(tensors=2, blocks=2, block_bytes=4096))
    try:
        pair.warm_up()
        (src, dst), tensor = pair.blocks(), pair.end.tensors[1]
        found = pair.push(src, dst)
        tensor[src[1], 4095] = ~tensor[src[1], 4095]
        torch.npu.synchronize()

        assert found.call > found.bind > found.op > 0  # each counts from later on
        for push in (pair.push, pair.push_blocking):
            with pytest.raises(SystemExit, match="wrong bytes"):
                push(src, dst)
    finally:
        pair.close()


@pytest.mark.parametrize("leaves_out", [0, 1])
def test_memcpy_beside_it_is_verified_too(leaves_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_pieces(to: Any, start: Any, count: int, size: int) -> int:
        for i in range(count - leaves_out):
            ctypes.memmove(to[i], start[i], size)
        return 1000

    monkeypatch.setattr(native, "load", lambda: SimpleNamespace(copy_pieces=copy_pieces))
    case = Case(tensors=2, blocks=2, block_bytes=4096)
    memcpy = Memcpy(case, content_of(case, seed=1))

    if leaves_out:
        with pytest.raises(SystemExit, match="wrong bytes"):
            memcpy.run([0, 3], [2, 1])
    else:
        assert [memcpy.run([0, 3], [2, 1]) for _ in range(2)] == [1e-6, 1e-6]


@pytest.fixture
def empty_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of those in C++, which take a minute to build."""
    define = dispatch.define_empty_ops

    def defined() -> torch.library.Library:
        library = define()
        for name in dispatch.BESIDE:
            library.impl(name, lambda *arguments: None, "PrivateUse1")
        return library

    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(dispatch, "define_empty_ops", defined)


@pytest.mark.races_on_purpose("sends the same blocks again and again, and nobody looks at them")
def test_the_host_cost_of_every_op_stands_beside_an_empty_one(empty_ops: None) -> None:
    rows = {row["op"]: row for row in dispatch.measure(1)}

    for name in ops.__all__:
        found = [row for op, row in rows.items() if op.split()[0].rstrip(",") == name]
        assert found, name
        assert all(row["runs"] > 0 and row["median_us"] > 0 and row["empty_us"] > 0 for row in found), found
        assert all(row["is_bounded"] == (name in dispatch.BESIDE) or "function" in row["op"] for row in found)
    assert rows[dispatch.PYTHON]["over_custom_op_us"] == 0


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return count_instructions.build(tmp_path_factory.mktemp("counted") / "program", "-O0")


def test_every_path_whose_instructions_are_counted_runs_and_has_a_record(counted: Path) -> None:
    names = count_instructions.names(counted)

    assert names == list(json.loads(count_instructions.RECORDED.read_text())["paths"])
    found = {name: int(subprocess.check_output([counted, name])) for name in names}
    assert found["plan one block"] == found["enqueue one block"] == 1
    assert all(count > 0 for count in found.values()), found


def test_counts_that_have_grown_by_more_than_a_tenth_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps({"compiler": "any", "paths": {"plan": 1000, "enqueue": 1000}}))
    monkeypatch.setattr(count_instructions, "RECORDED", recorded)

    assert count_instructions.grown({"plan": 1100, "enqueue": 900}) == []
    assert count_instructions.grown({"plan": 1101, "enqueue": 1100}) == ["plan"]
    assert count_instructions.grown({"plan": 900, "a new path": 1}) == ["a new path"]
