"""Processes of many instances each, which link with one another: for bench_scale."""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

from . import instance

BLOCKS, BLOCK_BYTES = 16, 4096


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


class Member:
    """What one process does; all its instances are on one device."""

    def __init__(self, first_id: int, count: int, device: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._device = device
        torch.npu.set_device(device)
        self._instances = {
            cluster_id: instance.start(cluster_id, device) for cluster_id in range(first_id, first_id + count)
        }
        self._caches = {cluster_id: self._register(cluster_id, 0) for cluster_id in self._instances}
        self._tensors = 2
        self._status = torch.zeros(1, dtype=torch.int32, device=f"npu:{device}")

    def _register(self, cluster_id: int, model_id: int) -> Any:
        import torch

        import torch_llm_datadist as datadist

        shape = [BLOCKS, BLOCK_BYTES]
        raw = [torch.zeros(shape, dtype=torch.uint8, device=f"npu:{self._device}") for _ in range(2)]
        desc = datadist.CacheDesc(2, shape, datadist.DataType.DT_UINT8)
        return self._instances[cluster_id].cache_manager.register_blocks_cache(
            desc, raw, datadist.BlocksCacheKey(cluster_id, model_id)
        )

    def ports(self) -> dict[int, int]:
        return {cluster_id: end.listen_port for cluster_id, end in self._instances.items()}

    def link(self, wanted: list[tuple[int, dict[int, int]]]) -> dict[str, float]:
        """Links these instances of ours with these ports; what that took, and what this end holds more."""
        import torch

        began, resident = time.perf_counter(), resident_kib()
        on_device = torch.npu.memory_allocated(self._device)
        for cluster_id, ports in wanted:
            instance.link_all(self._instances[cluster_id], ports)
        made = sum(len(ports) for _, ports in wanted)
        return {
            "set_up_ms_each": (time.perf_counter() - began) / made * 1e3,
            "kib_each": (resident_kib() - resident) / made,
            "device_kib_each": (torch.npu.memory_allocated(self._device) - on_device) / made / 1024,
        }

    def register(self, tensors: int) -> float:
        """Registers tensors with the first instance, until it has so many; milliseconds each, until all peers
        know of them."""
        began, had = time.perf_counter(), self._tensors
        while self._tensors < tensors:
            self._register(next(iter(self._instances)), self._tensors)
            self._tensors += 2
        if not self._instances[next(iter(self._instances))].cache_manager._links.settle(120.0):
            raise SystemExit("peers have not heard of all caches within 120 s")
        return (time.perf_counter() - began) / max(1, self._tensors - had) * 1e3

    def op_seconds(self, remote: int, count: int) -> list[tuple[float, float]]:
        """Of pushes of one block of two tensors by the first instance: on the clock, and of the calling
        thread's processor. The device's work is waited for between them; the first one, after a rest of this
        process, is not counted."""
        import torch

        from torch_llm_datadist import ops

        cluster_id, end = next(iter(self._instances.items()))
        tensors, link = list(self._caches[cluster_id].tensors), end.link_id(remote)
        ids = torch.tensor([3])
        found = []
        for _ in range(count + 1):
            core, began = time.thread_time_ns(), time.perf_counter_ns()
            ops.push_blocks(self._status, tensors, ids, ids, link=link)
            clock, core = time.perf_counter_ns() - began, time.thread_time_ns() - core
            found.append((clock / 1e9, core / 1e9))
            torch.npu.synchronize()
        if self._status.item() != 0:
            raise SystemExit(f"a push failed with {self._status.item()}")
        return found[1:]

    def close(self) -> None:
        for end in self._instances.values():
            end.finalize()


def _serve(pipe: Connection, first_id: int, count: int, device: int) -> None:
    member = Member(first_id, count, device)
    pipe.send(None)
    for name, arguments in iter(pipe.recv, None):
        pipe.send(getattr(member, name)(*arguments))
    member.close()


class Process:
    """A member in a process of its own; ``ask`` calls one of its methods."""

    def __init__(self, first_id: int, count: int, device: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, first_id, count, device), daemon=True)
        self._process.start()
        theirs.close()  # else the death of the process is no end of file here

    def is_ready(self) -> None:
        self._pipe.recv()

    def ask(self, name: str, *arguments: object) -> Any:
        self._pipe.send((name, arguments))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)

    def join(self) -> None:
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
