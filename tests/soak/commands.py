"""What a member can be told to do. Each runs on a thread of one of the worker's pools."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import torch_llm_datadist as datadist
from tests.soak.content import BLOCK_BYTES, BLOCKS, LAYERS, TENSORS, describe_difference, rows
from torch_llm_datadist import BlocksCacheKey, discard, emulator, ops, ticket_state
from torch_llm_datadist.emulator import faults

TRANSFER_MS = 10_000
PEER_BYTES_PER_S = 100e6  # so that a copy takes a while, and a fault may hit the midst of it

F = TypeVar("F", bound=Callable[..., Any])


def on(pool: str) -> Callable[[F], F]:
    """On which of the worker's pools a command runs."""

    def mark(command: F) -> F:
        command.pool = pool  # type: ignore[attr-defined]
        return command

    return mark


class AfterDelay(datadist.LayerSynchronizer):
    """Each layer leaves behind a kernel that takes so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        if self._seconds:
            emulator.delay_stream(self._seconds)
        return True


class Commands:
    def __init__(self) -> None:
        self.life = 0
        self.is_restarting = False
        self._tasks: dict[int, datadist.Task] = {}
        self._published: dict[int, tuple[datadist.Publication, torch.npu.Event]] = {}
        self._thread = threading.local()
        self._kept: list[torch.Tensor] = []

    # The instance and its cache.

    @on("do")
    def start(
        self, cluster_id: int, device: int, stamps: list[int], host_stamps: list[int], keep_alive_s: float
    ) -> tuple[int, int]:
        """Returns the port, and the id of the cache whose batch entries are the blocks."""
        torch.npu.set_device(device)
        faults.set_bandwidth("peer", PEER_BYTES_PER_S)
        config = datadist.LLMConfig()
        config.device_id = device
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = True
        config.listen_ip_info = "127.0.0.1:0"
        config.keep_alive_ms = round(keep_alive_s * 1000)
        config.sync_kv_timeout = TRANSFER_MS
        config.max_in_flight = 32
        config.packed_staging_bytes = 1 << 20  # chunks of 32 KiB, so that a layer may need several
        config.host_mem_pool_cfg = json.dumps({"memory_size": 1 << 24, "page_shift": 12})
        self._device, self._cluster_id = device, cluster_id
        self._instance = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
        self._instance.init(config.generate_options())
        self._tensors = [torch.from_numpy(rows(stamps, t)).to(f"npu:{device}") for t in range(TENSORS)]
        torch.npu.synchronize()
        self._manager = self._instance.cache_manager
        desc = datadist.CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], datadist.DataType.DT_UINT8)
        self._cache = self._manager.register_blocks_cache(desc, self._tensors, BlocksCacheKey(cluster_id))
        self._batch = self._manager.register_cache(desc, self._tensors)
        on_host = datadist.CacheDesc(
            TENSORS, [BLOCKS, BLOCK_BYTES], datadist.DataType.DT_UINT8, datadist.Placement.HOST
        )
        self._host_cache = self._manager.allocate_blocks_cache(on_host, BlocksCacheKey(cluster_id, 1))
        self._host_tensors = [tensor.view(BLOCKS, BLOCK_BYTES) for tensor in self._host_cache.tensors]
        for number, tensor in enumerate(self._host_tensors):
            tensor.copy_(torch.from_numpy(rows(host_stamps, number)))
        self.life += 1
        self.is_restarting = False
        return self._instance.listen_port or 0, self._batch.cache_id

    @on("ask")
    def stop(self) -> None:
        """In good order, with whatever is under way."""
        self.is_restarting = True
        self._instance.finalize()
        self._tasks.clear()
        self._published.clear()

    @on("wait")
    def never_answer(self) -> None:
        """Which must be found."""
        threading.Event().wait()

    # Links.

    @on("do")
    def link(self, cluster_id: int, port: int, timeout_ms: int) -> str:
        info = datadist.LLMClusterInfo()
        info.remote_cluster_id = cluster_id
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info("127.0.0.1", port)
        return self._instance.link_clusters([info], timeout=timeout_ms)[1][0].name

    @on("wait")
    def link_id(self, cluster_id: int, within_s: float) -> int:
        self._instance.wait_linked([cluster_id], timeout_s=within_s)
        return self._instance.link_id(cluster_id)

    @on("do")
    def unlink(self, cluster_id: int, port: int, force: bool) -> str:
        info = datadist.LLMClusterInfo()
        info.remote_cluster_id = cluster_id
        info.append_remote_ip_info("127.0.0.1", port)
        return self._instance.unlink_clusters([info], timeout=3000, force=force)[1][0].name

    @on("ask")
    def has_link(self, link: int) -> bool:
        return any(info.link == link for info in self._instance.links())

    @on("ask")
    def is_linked(self, cluster_id: int) -> bool:
        return any(info.cluster_id == cluster_id for info in self._instance.links())

    # Whole transfers.

    @on("do")
    def push(
        self,
        cluster_id: int,
        src: list[int],
        dst: list[int],
        delay_s: float,
        tag: int | None,
        to_model: int,
        model_id: int = 0,
    ) -> None:
        with self._stream(delay_s):
            key = BlocksCacheKey(cluster_id, to_model)
            self._manager.push_blocks(key, self._cache_of(model_id), src, dst, tag=tag)

    def _cache_of(self, model_id: int) -> datadist.Cache:
        return self._host_cache if model_id else self._cache

    def _tensors_of(self, model_id: int) -> list[torch.Tensor]:
        return self._host_tensors if model_id else self._tensors

    @on("do")
    def push_entry(self, cluster_id: int, batch_id: int, src: int, dst: int, delay_s: float) -> None:
        with self._stream(delay_s):
            key = datadist.CacheKeyByIdAndIndex(cluster_id, batch_id, dst)
            self._manager.push_cache(key, self._batch, src)

    @on("wait")
    def pull_entry(self, cluster_id: int, batch_id: int, src: int, dst: int) -> None:
        with self._stream():
            key = datadist.CacheKeyByIdAndIndex(cluster_id, batch_id, src)
            self._manager.pull_cache(key, self._batch, dst)

    @on("do")
    def push_asynchronously(self, cluster_id: int, src: list[int], dst: list[int], delay_s: float) -> int:
        """The code of its end."""
        layers = range(LAYERS)
        config = datadist.TransferWithCacheKeyConfig(BlocksCacheKey(cluster_id), layers, layers)
        task = self._manager.transfer_cache_async(self._cache, AfterDelay(delay_s), [config], src, dst)
        return int(task.synchronize(2 * TRANSFER_MS))

    @on("wait")
    def wait_arrival(self, cluster_id: int, tag: int) -> None:
        self._manager.wait_arrival(cluster_id, tag, TRANSFER_MS)

    @on("wait")
    def pull(
        self,
        cluster_id: int,
        src: list[int],
        dst: list[int],
        ticket: int | None,
        from_model: int,
        model_id: int = 0,
    ) -> None:
        with self._stream():
            key = BlocksCacheKey(cluster_id, from_model)
            self._manager.pull_blocks(key, self._cache_of(model_id), src, dst, ticket=ticket)

    @on("do")
    def publish(
        self, cluster_id: int, blocks: list[int], stamps: list[int], delay_s: float
    ) -> tuple[int, int]:
        """Writes the blocks behind a kernel and publishes them; returns its number here, and the ticket."""
        written = torch.npu.Event()
        with self._stream(delay_s):
            self._write(blocks, stamps)
            written.record()
            try:
                made = self._manager.publish(self._tensors[0], self._cache, None, cluster_id, timeout_s=20)
            except BaseException:
                written.synchronize()
                raise
        self._published[made.number] = made, written
        return made.number, made.ticket

    @on("wait")
    def wait_taken(self, number: int) -> tuple[int, str]:
        """How it ended, once the blocks are free."""
        made, written = self._published.pop(number)
        with self._stream():
            written.synchronize()
        give_up_at = time.monotonic() + 40
        while not (found := made.state()).has_ended:
            assert time.monotonic() < give_up_at, f"it has not ended: {found}"
            time.sleep(0.005)
        return found.code, found.detail

    # Transfers by layers.

    @on("do")
    def prepare(self, cluster_id: int, src: list[int], dst: list[int], is_packed: bool) -> tuple[int, int]:
        """Its number here, and the ticket, which is the receiver's: those of two receivers may be equal."""
        key = BlocksCacheKey(cluster_id)
        task = self._manager.prepare_push(key, self._cache, src, dst, packed=is_packed or None)
        self._tasks[task.number] = task
        return task.number, task.ticket

    @on("do")
    def send_layers(self, number: int, delay_s: float, timeout_s: float) -> int:
        """The status that the stream saw."""
        task = self._tasks.pop(number)
        with self._stream() as binding:
            status = torch.zeros(1, dtype=torch.int32, device=f"npu:{self._device}")
            binding.bind([task], timeout_s=timeout_s)
            for layer in range(LAYERS):
                if delay_s:
                    emulator.delay_stream(delay_s)
                ops.push_layer(status, self._tensors[2 * layer], layer, binding.id)
            ops.finish(status, self._tensors[0], binding.id)
            torch.npu.current_stream().synchronize()
            return int(status.item())

    @on("wait")
    def wait_layers(self, ticket: int, blocks: list[int], timeout_s: float) -> int:
        """The status that the stream saw; 0: the bytes are there."""
        self._manager.assign_blocks(ticket, self._cache, blocks)
        with self._stream() as binding:
            status = torch.zeros(1, dtype=torch.int32, device=f"npu:{self._device}")
            binding.bind([ticket], timeout_s=timeout_s)
            for layer in range(LAYERS):
                ops.wait_layer(status, self._tensors[2 * layer], layer, binding.id)
            torch.npu.current_stream().synchronize()
            return int(status.item())

    @on("wait")
    def expect(self, ticket: int, dst: list[int]) -> bool:
        return self._manager.expect(ticket, dst, timeout_s=5.0)

    @on("wait")
    def cancel_ticket(self, ticket: int, blocks: list[int]) -> None:
        self._manager.assign_blocks(ticket, self._cache, blocks)
        self._manager.cancel(ticket, timeout_s=TRANSFER_MS / 1000)

    @on("wait")
    def cancel_task(self, number: int) -> None:
        self._manager.cancel(self._tasks.pop(number), timeout_s=TRANSFER_MS / 1000)

    @on("do")
    def give_up_task(self, number: int) -> None:
        discard(self._tasks.pop(number))

    @on("do")
    def drop_task(self, number: int) -> None:
        del self._tasks[number]

    @on("do")
    def give_up_ticket(self, ticket: int) -> None:
        discard(ticket)

    # Blocks in doubt.

    @on("ask")
    def may_be_written(self, link: int, blocks: list[int], model_id: int = 0) -> bool:
        """By a peer that pushed without a ticket, over a link that is to be over."""
        return self.has_link(link) or self._is_in_doubt(link, blocks, model_id)

    @on("ask")
    def has_ended(self, ticket: int) -> bool:
        try:
            return ticket_state(ticket).has_ended
        except datadist.LLMException:
            return True  # its link is gone, or its slot serves another

    @on("ask")
    def ticket_may_write(self, ticket: int, blocks: list[int]) -> bool:
        return not self.has_ended(ticket) or self._is_in_doubt(ticket >> 32, blocks)

    @on("ask")
    def is_in_doubt(self, link: int, blocks: list[int], model_id: int = 0) -> bool:
        return self._is_in_doubt(link, blocks, model_id)

    def _is_in_doubt(self, link: int, blocks: list[int], model_id: int = 0) -> bool:
        """Blocks and batch entries are the same memory, host memory is another."""
        on_host = self._host_cache.cache_id
        found = [
            doubt
            for doubt in self._manager.blocks_in_doubt(link)
            if (doubt.cache_id == on_host) == bool(model_id) or doubt.is_at_peer
        ]
        return any(block in doubt.blocks for doubt in found for block in blocks)

    # Bytes.

    @on("do")
    def write(self, blocks: list[int], stamps: list[int], model_id: int = 0) -> None:
        with self._stream():
            self._write(blocks, stamps, model_id)
            torch.npu.current_stream().synchronize()

    def _write(self, blocks: Sequence[int], stamps: list[int], model_id: int = 0) -> None:
        for number, tensor in enumerate(self._tensors_of(model_id)):
            fresh = torch.from_numpy(rows(stamps, number)).to(tensor.device)
            for block, row in zip(blocks, fresh, strict=True):
                tensor[block].copy_(row)

    @on("ask")
    def look(self, blocks: list[int], stamps: list[int], model_id: int = 0) -> list[str]:
        """What is wrong with them."""
        wrong = []
        with self._stream():
            for number, tensor in enumerate(self._tensors_of(model_id)):
                found = tensor.cpu().numpy()[blocks]
                if np.array_equal(found, rows(stamps, number)):
                    continue
                for block, row, stamp in zip(blocks, found, stamps, strict=True):
                    difference = describe_difference(row, stamp, number)
                    if difference:
                        wrong.append(f"block {block}: {difference}")
        return wrong

    @on("do")
    def spoil(self, block: int, model_id: int = 0) -> None:
        """Flips a byte, which must be found."""
        with self._stream():
            self._tensors_of(model_id)[-1][block, 1234] ^= 1
            torch.npu.current_stream().synchronize()

    # Leaks.

    @on("ask")
    def keep(self, length: int) -> None:
        """So much memory is never given back, which must be found."""
        self._kept.append(torch.empty(length, dtype=torch.uint8, device=f"npu:{self._device}"))

    @on("ask")
    def footprint(self) -> dict[str, int]:
        """When nothing is under way."""
        gc.collect()
        torch.npu.synchronize()
        free, total = torch.npu.mem_get_info(self._device)
        return {
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "device": total - free,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "links": len(self._instance.links()),
            "held": len(self._manager.held_caches()),
            "doubts": len(self._manager.blocks_in_doubt()),
        }

    # Inside.

    @contextmanager
    def _stream(self, delay_s: float = 0.0) -> Iterator[datadist.Binding]:
        """The calling thread's own stream, and its binding."""
        if not hasattr(self._thread, "stream"):
            torch.npu.set_device(self._device)
            self._thread.stream = torch.npu.Stream()
            self._thread.binding = datadist.Binding(self._device, range(LAYERS))
        with torch.npu.stream(self._thread.stream):
            if delay_s:
                emulator.delay_stream(delay_s)
            yield self._thread.binding
