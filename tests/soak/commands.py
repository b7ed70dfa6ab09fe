"""What a member can be told to do. Each runs on a thread of one of the worker's pools."""

from __future__ import annotations

import gc
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


class Commands:
    def __init__(self) -> None:
        self.life = 0
        self.is_restarting = False
        self._tasks: dict[int, datadist.Task] = {}
        self._published: dict[int, tuple[datadist.Publication, torch.npu.Event]] = {}
        self._thread = threading.local()

    # The instance and its cache.

    @on("do")
    def start(self, cluster_id: int, device: int, stamps: list[int], keep_alive_s: float) -> int:
        """Returns the port."""
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
        self._device, self._cluster_id = device, cluster_id
        self._instance = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
        self._instance.init(config.generate_options())
        self._tensors = [torch.from_numpy(rows(stamps, t)).to(f"npu:{device}") for t in range(TENSORS)]
        torch.npu.synchronize()
        desc = datadist.CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], datadist.DataType.DT_UINT8)
        key = BlocksCacheKey(cluster_id)
        self._manager = self._instance.cache_manager
        self._cache = self._manager.register_blocks_cache(desc, self._tensors, key)
        self.life += 1
        self.is_restarting = False
        return self._instance.listen_port or 0

    @on("ask")
    def stop(self) -> None:
        """In good order, with whatever is under way."""
        self.is_restarting = True
        self._instance.finalize()
        self._tasks.clear()
        self._published.clear()

    @on("ask")
    def ping(self) -> None:
        pass

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
    def push(self, cluster_id: int, src: list[int], dst: list[int], delay_s: float, tag: int | None) -> None:
        with self._stream(delay_s):
            self._manager.push_blocks(BlocksCacheKey(cluster_id), self._cache, src, dst, tag=tag)

    @on("wait")
    def wait_arrival(self, cluster_id: int, tag: int) -> None:
        self._manager.wait_arrival(cluster_id, tag, TRANSFER_MS)

    @on("wait")
    def pull(self, cluster_id: int, src: list[int], dst: list[int], ticket: int | None) -> None:
        with self._stream():
            self._manager.pull_blocks(BlocksCacheKey(cluster_id), self._cache, src, dst, ticket=ticket)

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
    def prepare(self, cluster_id: int, src: list[int], dst: list[int]) -> tuple[int, int]:
        """Its number here, and the ticket, which is the receiver's: those of two receivers may be equal."""
        task = self._manager.prepare_push(BlocksCacheKey(cluster_id), self._cache, src, dst)
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
    def may_be_written(self, link: int, blocks: list[int]) -> bool:
        """By a peer that pushed without a ticket, over a link that is to be over."""
        return self.has_link(link) or self._is_in_doubt(link, blocks)

    @on("ask")
    def ticket_may_write(self, ticket: int, blocks: list[int]) -> bool:
        try:
            if not ticket_state(ticket).has_ended:
                return True
        except datadist.LLMException:
            pass  # its link is gone, or its slot serves another
        return self._is_in_doubt(ticket >> 32, blocks)

    @on("ask")
    def is_in_doubt(self, link: int, blocks: list[int]) -> bool:
        return self._is_in_doubt(link, blocks)

    def _is_in_doubt(self, link: int, blocks: list[int]) -> bool:
        found = self._manager.blocks_in_doubt(link)
        return any(block in doubt.blocks for doubt in found for block in blocks)

    # Bytes.

    @on("do")
    def write(self, blocks: list[int], stamps: list[int]) -> None:
        with self._stream():
            self._write(blocks, stamps)
            torch.npu.current_stream().synchronize()

    def _write(self, blocks: Sequence[int], stamps: list[int]) -> None:
        for number, tensor in enumerate(self._tensors):
            fresh = torch.from_numpy(rows(stamps, number)).to(tensor.device)
            for block, row in zip(blocks, fresh, strict=True):
                tensor[block].copy_(row)

    @on("ask")
    def look(self, blocks: list[int], stamps: list[int]) -> list[str]:
        """What is wrong with them."""
        wrong = []
        with self._stream():
            for number, tensor in enumerate(self._tensors):
                found = tensor.cpu().numpy()[blocks]
                if np.array_equal(found, rows(stamps, number)):
                    continue
                for block, row, stamp in zip(blocks, found, stamps, strict=True):
                    difference = describe_difference(row, stamp, number)
                    if difference:
                        wrong.append(f"block {block}: {difference}")
        return wrong

    @on("do")
    def spoil(self, block: int) -> None:
        """Flips a byte, which must be found."""
        with self._stream():
            self._tensors[-1][block, 1234] ^= 1
            torch.npu.current_stream().synchronize()

    # Leaks.

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
