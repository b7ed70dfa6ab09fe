"""The caching allocator of torch_npu on emulated devices: statistics, limits, pools, pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401

from tests.streams import standing_still
from torch_llm_datadist import emulator

MIB = 1 << 20


@pytest.fixture(autouse=True)
def empty_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # torch_npu writes a report there when memory runs out
    torch.npu.init()
    torch.npu.synchronize()
    torch.npu.empty_cache()
    yield
    torch.npu.set_per_process_memory_fraction(1.0)


def tensor_of(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * MIB, dtype=torch.uint8, device="npu")


def test_statistics_follow_what_is_allocated() -> None:
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()

    tensor = tensor_of(32)
    held = torch.npu.memory_allocated()
    del tensor

    assert held - before == pytest.approx(32 * MIB, abs=MIB)
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() == held
    assert torch.npu.memory_reserved() >= 32 * MIB
    assert torch.npu.max_memory_reserved() >= torch.npu.memory_reserved()
    assert torch.npu.memory_stats()["allocation.all.current"] >= 0


def test_empty_cache_gives_memory_back_to_the_device() -> None:
    free_before, total = torch.npu.mem_get_info()
    tensor = tensor_of(64)
    free_with, _ = torch.npu.mem_get_info()
    del tensor
    free_cached, _ = torch.npu.mem_get_info()

    torch.npu.empty_cache()

    assert total == torch.npu.get_device_properties(0).total_memory
    assert free_before - free_with == pytest.approx(64 * MIB, abs=2 * MIB)
    assert free_cached == free_with
    assert torch.npu.mem_get_info()[0] == free_before


def test_freed_memory_is_used_again() -> None:
    first = tensor_of(4)
    address = first.data_ptr()
    del first

    assert tensor_of(4).data_ptr() == address


def test_snapshot_and_summary_name_the_segment() -> None:
    tensor = tensor_of(24)

    segments = torch.npu.memory_snapshot()
    summary = torch.npu.memory_summary()

    assert any(s["address"] <= tensor.data_ptr() < s["address"] + s["total_size"] for s in segments)
    assert "memory summary, device ID 0" in summary


def test_history_of_allocations_is_kept_and_dumped(tmp_path: Path) -> None:
    torch.npu.memory._record_memory_history(stacks="python")
    tensor = tensor_of(3)
    snapshot = torch.npu.memory._snapshot()
    torch.npu.memory._dump_snapshot(str(tmp_path / "dump.pickle"))
    torch.npu.memory._record_memory_history(None)

    actions = [(entry["action"], entry["addr"]) for entry in snapshot["device_traces"][0]]
    assert ("alloc", tensor.data_ptr()) in actions
    assert (tmp_path / "dump.pickle").stat().st_size > 0


def test_fraction_limits_the_process() -> None:
    torch.npu.set_per_process_memory_fraction(0.001)  # of 64 GiB

    with pytest.raises(torch.OutOfMemoryError, match=r"NPU out of memory.*65\.54 MiB allowed"):
        tensor_of(128)
    assert torch.npu.get_per_process_memory_fraction() == pytest.approx(0.001)
    assert tensor_of(16).numel() == 16 * MIB


def test_running_out_of_memory_leaves_a_working_device() -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4096\.00 GiB"):
        torch.empty(1 << 42, dtype=torch.uint8, device="npu")

    assert (torch.ones(3, device="npu") + 1).tolist() == [2, 2, 2]


def test_a_device_full_of_cached_memory_makes_room() -> None:
    emulator.fail_next("aclrtMallocAlign32", 1, 207001)

    tensor = tensor_of(48)  # torch_npu empties its cache and tries again

    assert tensor.fill_(1).sum().item() == 48 * MIB


def test_pool_keeps_its_memory_apart() -> None:
    pool = torch.npu.MemPool()
    with torch.npu.use_mem_pool(pool):
        inside = tensor_of(4)
    outside = tensor_of(4)

    segments = pool.snapshot()

    assert [s["segment_pool_id"] for s in segments] == [pool.id]
    holds = [s["address"] <= inside.data_ptr() < s["address"] + s["total_size"] for s in segments]
    assert holds == [True]
    assert not any(s["address"] <= outside.data_ptr() < s["address"] + s["total_size"] for s in segments)


def test_raw_allocation_is_counted() -> None:
    before = torch.npu.memory_allocated()

    address = torch.npu.caching_allocator_alloc(MIB)
    held = torch.npu.memory_allocated()
    torch.npu.caching_allocator_delete(address)

    assert held - before >= MIB
    assert torch.npu.memory_allocated() == before


def test_pinned_memory_is_told_from_pageable() -> None:
    pageable = torch.arange(10)
    pinned = pageable.pin_memory()

    assert pinned.is_pinned()
    assert torch.empty(4, pin_memory=True).is_pinned()
    assert not pageable.is_pinned()
    assert torch.equal(pinned, pageable)


def test_pinned_copies_are_asynchronous_both_ways() -> None:
    source = torch.arange(1000).pin_memory()
    back = torch.empty(1000, dtype=torch.int64, pin_memory=True)

    with standing_still():
        back.copy_(source.to("npu", non_blocking=True), non_blocking=True)
        pending = torch.npu.current_stream().query()
    torch.npu.synchronize()

    assert not pending
    assert torch.equal(back, source)


def test_pinned_source_changed_too_early_is_seen() -> None:
    source = torch.ones(1000).pin_memory()

    with standing_still():
        on_npu = source.to("npu", non_blocking=True)
        source.fill_(9)

    assert bool((on_npu == 9).all())


def test_pageable_source_may_be_changed_at_once() -> None:
    source = torch.ones(1000)

    emulator.delay_stream(0.05)
    on_npu = source.to("npu", non_blocking=True)
    source.fill_(9)

    assert bool((on_npu == 1).all())


def test_pinned_statistics_are_kept() -> None:
    tensor = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)

    stats = torch.npu.host_memory_stats()
    del tensor
    torch.npu.host_empty_cache()

    assert stats["allocated_bytes.current"] >= 3 * MIB
