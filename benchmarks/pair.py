"""Two processes with a cache each and a link, for pushes from the first to the second.

The receiver queues the wait for a transfer's flag and tells when it has passed; both read the same clock.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from . import instance, native
from .cases import Case

SENDER, RECEIVER = 1, 2
KEY_BYTES = 65


class End:
    """An instance and its cache."""

    def __init__(self, cluster_id: int, case: Case) -> None:
        import torch

        import torch_llm_datadist as datadist

        torch.set_num_threads(1)
        self.case = case
        self.device = cluster_id - 1
        torch.npu.set_device(self.device)
        self.datadist = instance.start(cluster_id, self.device)
        shape = (2 * case.blocks, case.block_bytes)
        where = f"npu:{self.device}"
        self.tensors = [torch.zeros(shape, dtype=torch.uint8, device=where) for _ in range(case.tensors)]
        desc = datadist.CacheDesc(case.tensors, list(shape), datadist.DataType.DT_UINT8)
        self.cache = self.datadist.cache_manager.register_blocks_cache(
            desc, self.tensors, datadist.BlocksCacheKey(cluster_id, 0)
        )
        self.status = torch.zeros(1, dtype=torch.int32, device=where)
        self.binding = datadist.Binding(self.device, [0])


def content_of(case: Case, seed: int) -> Any:
    """What the sender's cache holds, one tensor after the other; the same wherever the seed is."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (case.tensors, 2 * case.blocks, case.block_bytes // 8)
    return torch.randint(-(1 << 62), 1 << 62, shape, dtype=torch.int64, generator=generator).view(torch.uint8)


def receive(pipe: Connection, case: Case, seed: int) -> None:
    import torch

    from torch_llm_datadist import ops

    end = End(RECEIVER, case)
    expected = content_of(case, seed)
    stream = torch.npu.current_stream()
    chain = 0
    pipe.send(end.datadist.listen_port)
    for what, *given in iter(pipe.recv, None):
        if what == "wait":
            end.binding.bind([given[0]])
            ops.wait_layer(end.status, end.status, 0, end.binding.id)
            pipe.send("waits")
            stream.synchronize()
            pipe.send((time.monotonic_ns(), end.status.item()))
            end.binding.bind(())
        elif what == "chain":
            key = ctypes.create_string_buffer(KEY_BYTES)
            chain = native.load().chain_receiver(end.device, key)
            pipe.send(key.raw)
        elif what == "wait by hand":
            native.load().chain_wait(chain, given[0])
            pipe.send("waits")
            native.load().chain_synchronize(chain)
            pipe.send(time.monotonic_ns())
        else:  # check, and spoil what arrived: the next transfer must bring it again
            src, dst = given
            right = all(
                torch.equal(tensor[dst].cpu(), want[src])
                for tensor, want in zip(end.tensors, expected, strict=True)
            )
            for tensor in end.tensors:
                tensor[dst] = 0
            torch.npu.synchronize()
            pipe.send(right)
    end.datadist.finalize()


class Push(NamedTuple):
    """Seconds of one push until the receiver's stream has passed the wait for its flag."""

    call: float  # all that the sender does: it plans (``prepare_push``), binds and calls the op
    bind: float
    op: float


class Pair:
    """The sender's end; the receiver is a process of its own. Contents and blocks are others each time."""

    def __init__(self, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        seed = random.randrange(1 << 32)
        self._process = context.Process(target=receive, args=(theirs, case, seed), daemon=True)
        self._process.start()
        theirs.close()  # else the death of the receiver is no end of file here
        import torch

        import torch_llm_datadist as datadist

        self.case = case
        self.end = End(SENDER, case)
        self.content = content_of(case, seed)
        for tensor, bytes_ in zip(self.end.tensors, self.content, strict=True):
            tensor.copy_(bytes_)
        torch.npu.synchronize()
        instance.link(self.end.datadist, RECEIVER, self.pipe.recv())
        self.key = datadist.BlocksCacheKey(RECEIVER, 0)
        self._chooser = random.Random(seed)

    def blocks(self) -> tuple[list[int], list[int]]:
        count = self.case.blocks
        return self._chooser.sample(range(2 * count), count), self._chooser.sample(range(2 * count), count)

    def warm_up(self) -> None:
        for half in self.case.halves():
            self.push(half, half)

    def push(self, src: list[int], dst: list[int], idle_s: float = 0.0) -> Push:
        """The receiver's stream waits before the push begins; until it does, after ``prepare_push``, no time
        counts: the ticket travels by whatever brings the request."""
        from torch_llm_datadist import ops

        end = self.end
        asked = time.monotonic_ns()
        task = end.datadist.cache_manager.prepare_push(
            self.key, end.cache, src, dst, tensor_num_per_layer=self.case.tensors
        )
        preparing = time.monotonic_ns() - asked
        self.pipe.send(("wait", task.ticket))
        if self.pipe.recv() != "waits":
            raise SystemExit("the receiver is gone")
        if idle_s:
            time.sleep(idle_s)
        bound = time.monotonic_ns()
        end.binding.bind([task])
        called = time.monotonic_ns()
        ops.push_layer(end.status, end.status, 0, end.binding.id)
        seen, status = self.pipe.recv()
        if status != 0:
            raise SystemExit(f"the transfer failed with {status}")
        ops.finish(end.status, end.status, end.binding.id)
        self.check(src, dst)
        return Push((preparing + seen - bound) / 1e9, (seen - bound) / 1e9, (seen - called) / 1e9)

    def push_blocking(self, src: list[int], dst: list[int]) -> float:
        """Seconds from the call of ``CacheManager.push_blocks`` to its return."""
        started = time.monotonic_ns()
        self.end.datadist.cache_manager.push_blocks(
            self.key, self.end.cache, src, dst, tensor_num_per_layer=1
        )
        seconds = (time.monotonic_ns() - started) / 1e9
        self.check(src, dst)
        return seconds

    def check(self, src: list[int], dst: list[int]) -> None:
        self.pipe.send(("check", src, dst))
        if not self.pipe.recv():
            raise SystemExit(f"wrong bytes arrived: blocks {src} -> {dst} of {self.case}")

    def close(self) -> None:
        self.pipe.send(None)
        self._process.join(20)
        self.end.datadist.finalize()


class ByHand:
    """The same chain of streams without this library (``native.cpp``), between the same two processes."""

    def __init__(self, pair: Pair) -> None:
        import torch

        self._library = native.load()
        self._pair = pair
        pair.pipe.send(("chain",))
        self._sender = self._library.chain_sender(pair.end.device, pair.case.block_bytes, pair.pipe.recv())
        self._op = torch.ops.datadist_bench.chain_op.default
        self._number = 0

    def run(self, idle_s: float = 0.0) -> tuple[float, float]:
        """Seconds to the flag at the receiver from when the thread is told what to feed, and from the op."""
        pair, status = self._pair, self._pair.end.status
        self._number += 1
        pair.pipe.send(("wait by hand", self._number))
        if pair.pipe.recv() != "waits":
            raise SystemExit("the receiver is gone")
        if idle_s:
            time.sleep(idle_s)
        began = time.monotonic_ns()
        self._library.chain_begin(self._sender)
        called = time.monotonic_ns()
        self._op(status, status, 0, self._sender)
        seen = pair.pipe.recv()
        return (seen - began) / 1e9, (seen - called) / 1e9


class Memcpy:
    """The same pieces of ``content_of`` by one thread, to memory that could be shared; verified, too."""

    def __init__(self, case: Case, content: Any) -> None:
        import torch

        self._case = case
        self._library = native.load()
        self._src = content
        self._dst = torch.zeros(content.shape, dtype=torch.uint8).share_memory_()

    def run(self, src: list[int], dst: list[int]) -> float:
        import torch

        case = self._case
        stride = 2 * case.blocks * case.block_bytes
        pairs = [
            (self._dst.data_ptr() + t * stride + d * case.block_bytes,
             self._src.data_ptr() + t * stride + s * case.block_bytes)
            for t in range(case.tensors)
            for s, d in zip(src, dst, strict=True)
        ]  # fmt: skip
        to, start = ((ctypes.c_uint64 * len(pairs))(*column) for column in zip(*pairs, strict=True))
        nanoseconds: int = self._library.copy_pieces(to, start, len(pairs), case.block_bytes)
        if not all(torch.equal(got[dst], want[src]) for got, want in zip(self._dst, self._src, strict=True)):
            raise SystemExit(f"memcpy: wrong bytes arrived: blocks {src} -> {dst} of {case}")
        self._dst[:, dst] = 0
        return nanoseconds / 1e9
