"""One transfer library over some rounds, in two fresh processes on CPU memory, each byte verified.

    python -m benchmarks.peers.engine ENGINE CASE RUNS SEED      prints the seconds of each run as JSON

From the call at the sender to the moment when the receiver knows; both read the same clock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from ..cases import CASES, Case

FLAG_BYTES = 64


class Cache:
    """Tensors of blocks in one piece of memory, and a word behind them that a peer may write."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tensor_bytes = 2 * case.blocks * case.block_bytes
        self.memory = np.zeros(case.tensors * self.tensor_bytes + FLAG_BYTES, dtype=np.uint8)
        self.tensors = self.memory[:-FLAG_BYTES].reshape(case.tensors, 2 * case.blocks, case.block_bytes)
        self.flag = self.memory[-FLAG_BYTES:].view(np.uint64)
        self.address = self.memory.ctypes.data

    def pieces(self, ids: list[int], address: int | None = None) -> list[int]:
        """Where these blocks start, in all tensors."""
        start = self.address if address is None else address
        return [
            start + t * self.tensor_bytes + i * self.case.block_bytes
            for t in range(self.case.tensors)
            for i in ids
        ]

    def fill(self, seed: int) -> None:
        words = self.tensors.reshape(-1).view(np.uint64)
        words[:] = np.random.default_rng(seed).integers(0, 1 << 63, len(words), dtype=np.uint64)


class Engine(Protocol):
    """``pipe`` carries what the two ends have to know of each other; each has it to itself."""

    def send(self, src: list[int], dst: list[int], run: int) -> None:
        """Returns when it has nothing more to do for it."""

    def wait(self, src: list[int], dst: list[int], run: int) -> None:
        """Returns when all has arrived."""


class Nixl:
    def __init__(self, cache: Cache, pipe: Connection, is_sender: bool) -> None:
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        self._name = "sender" if is_sender else "receiver"
        # Its progress thread halves the throughput on two cores; the receiver polls instead.
        self._agent = nixl_agent(self._name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self._agent.register_memory(
            self._agent.get_reg_descs([(cache.address, cache.memory.nbytes, 0, "")], "DRAM")
        )
        pipe.send((self._agent.get_agent_metadata(), cache.address))
        metadata, address = pipe.recv()
        self._peer = self._agent.add_remote_agent(metadata)
        if isinstance(self._peer, bytes):
            self._peer = self._peer.decode()
        self._blocks = 2 * cache.case.blocks
        self._tensors = cache.case.tensors
        if is_sender:
            length, every = cache.case.block_bytes, list(range(self._blocks))
            ours, theirs = (
                self._agent.prep_xfer_dlist(
                    agent, [(start, length, 0) for start in cache.pieces(every, base)], "DRAM"
                )
                for agent, base in (("NIXL_INIT_AGENT", None), (self._peer, address))
            )
            self._ours, self._theirs = ours, theirs

    def send(self, src: list[int], dst: list[int], run: int) -> None:
        rows = np.arange(self._tensors)[:, None] * self._blocks
        pairs = [(rows + np.array(ids)).reshape(-1).astype(np.int32) for ids in (src, dst)]
        handle = self._agent.make_prepped_xfer("WRITE", self._ours, pairs[0], self._theirs, pairs[1], b"done")
        state = self._agent.transfer(handle)
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise SystemExit(f"nixl: the transfer ended with {state}")
        self._agent.release_xfer_handle(handle)

    def wait(self, src: list[int], dst: list[int], run: int) -> None:
        while not self._agent.get_new_notifs():
            pass


class Mooncake:
    AT_A_TIME = 1024  # its queues refuse more

    def __init__(self, cache: Cache, pipe: Connection, is_sender: bool) -> None:
        from mooncake.engine import TransferEngine

        self._cache = cache
        self._engine = TransferEngine()
        if self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise SystemExit("mooncake: initialize failed")
        if self._engine.register_memory(cache.address, cache.memory.nbytes) != 0:
            raise SystemExit("mooncake: register_memory failed")
        self._number = np.zeros(1, dtype=np.uint64)
        self._engine.register_memory(self._number.ctypes.data, 8)
        pipe.send((f"127.0.0.1:{self._engine.get_rpc_port()}", cache.address))
        self._peer, self._address = pipe.recv()

    def send(self, src: list[int], dst: list[int], run: int) -> None:
        cache, length = self._cache, self._cache.case.block_bytes
        ours, theirs = cache.pieces(src), cache.pieces(dst, self._address)
        for i in range(0, len(ours), self.AT_A_TIME):
            part = slice(i, i + self.AT_A_TIME)
            lengths = [length] * len(ours[part])
            if self._engine.batch_transfer_sync_write(self._peer, ours[part], theirs[part], lengths) != 0:
                raise SystemExit("mooncake: a write failed")
        self._number[0] = run + 1
        flag = self._address + cache.memory.nbytes - FLAG_BYTES
        if self._engine.transfer_sync_write(self._peer, self._number.ctypes.data, flag, 8) != 0:
            raise SystemExit("mooncake: the write of the flag failed")

    def wait(self, src: list[int], dst: list[int], run: int) -> None:
        while self._cache.flag[0] != run + 1:
            pass


class Gloo:
    """A send per piece where pieces are long, else one per tensor, of what was gathered."""

    LONG = 64 << 10

    def __init__(self, cache: Cache, pipe: Connection, is_sender: bool) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self._dist, self._torch = dist, torch
        if is_sender:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            pipe.send(port)
        else:
            port = pipe.recv()
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0 if is_sender else 1, world_size=2
        )
        self._tensors = torch.from_numpy(cache.tensors)
        self._is_long = cache.case.block_bytes > self.LONG

    def send(self, src: list[int], dst: list[int], run: int) -> None:
        for tensor in self._tensors:
            if self._is_long:
                for work in [self._dist.isend(tensor[i], 1) for i in src]:
                    work.wait()
            else:
                self._dist.send(tensor[src], 1)

    def wait(self, src: list[int], dst: list[int], run: int) -> None:
        for tensor in self._tensors:
            if self._is_long:
                for work in [self._dist.irecv(tensor[i], 0) for i in dst]:
                    work.wait()
            else:
                packed = self._torch.empty_like(tensor[: len(dst)])
                self._dist.recv(packed, 0)
                tensor[dst] = packed


ENGINES: dict[str, type[Nixl] | type[Mooncake] | type[Gloo]] = {
    "nixl-shm": Nixl,
    "nixl-tcp": Nixl,
    "mooncake-tcp": Mooncake,
    "gloo": Gloo,
}
ENVIRONMENT = {
    "nixl-shm": {"UCX_TLS": "sm,self,tcp"},
    "nixl-tcp": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"},
    "mooncake-tcp": {"MC_LOG_LEVEL": "ERROR"},
    "gloo": {"GLOO_SOCKET_IFNAME": "lo"},
}


def receive(pipe: Connection, name: str, case: Case, seed: int) -> None:
    cache, expected = Cache(case), Cache(case)
    expected.fill(seed)
    engine = ENGINES[name](cache, pipe, False)
    for run, src, dst in iter(pipe.recv, None):
        pipe.send("waits")
        engine.wait(src, dst, run)
        seen = time.monotonic_ns()
        is_right = bool((cache.tensors[:, dst] == expected.tensors[:, src]).all())
        cache.tensors[:, dst] = 0
        pipe.send((seen, is_right))
    os._exit(0)  # not every library ends well


def measure(name: str, case: Case, runs: int, seed: int) -> list[float]:
    os.environ.update(ENVIRONMENT[name])
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=receive, args=(theirs, name, case, seed), daemon=True)
    process.start()
    theirs.close()
    cache = Cache(case)
    cache.fill(seed)
    engine = ENGINES[name](cache, pipe, True)
    chooser = random.Random(seed)
    found = []
    warm_up = case.halves()
    for run in range(len(warm_up) + runs):
        if run < len(warm_up):
            src = dst = warm_up[run]
        else:
            src, dst = (chooser.sample(range(2 * case.blocks), case.blocks) for _ in range(2))
        pipe.send((run, src, dst))
        if pipe.recv() != "waits":
            raise SystemExit(f"{name}: the receiver is gone")
        started = time.monotonic_ns()
        engine.send(src, dst, run)
        seen, is_right = pipe.recv()
        if not is_right:
            raise SystemExit(f"{name}: wrong bytes arrived for blocks {src} -> {dst}")
        if run >= len(warm_up):
            found.append((seen - started) / 1e9)
    pipe.send(None)
    return found


def main() -> None:
    name, case, runs, seed = sys.argv[1:]
    seconds: Any = measure(name, CASES[case], int(runs), int(seed))
    print(json.dumps(seconds), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
