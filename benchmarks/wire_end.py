"""One end of ``bench_wire``.

python -m benchmarks.wire_end ROLE FILE FILE ADDRESS TENSORS BLOCKS BYTES SCATTERED
"""

from __future__ import annotations

import random
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from torch_llm_datadist import emulator

if emulator.is_wanted() is not False and not emulator.has_npu():
    emulator.enable()

import numpy as np
import torch

import torch_llm_datadist as datadist

from .cases import Case
from .peers.engine import Cache, Nixl


class End:
    def __init__(self, role: str, pipe: Connection, address: str, case: Case, is_scattered: bool) -> None:
        self._case, self._pipe = case, pipe
        ids = list(range(2 * case.blocks))
        if is_scattered:
            random.Random(1).shuffle(ids)
        self._halves = ids[: case.blocks], ids[case.blocks :]
        self._is_sender = role == "sender"
        torch.set_num_threads(1)
        self._bare, self._host = Cache(self._case), Cache(self._case)
        if self._is_sender:
            self._bare.fill(1)
            self._host.memory[:] = self._bare.memory
        self._nixl = Nixl(self._bare, pipe, self._is_sender)
        self._start(address)

    def _start(self, address: str) -> None:
        config = datadist.LLMConfig()
        config.device_id = 0 if self._is_sender else 1
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = True
        config.listen_ip_info = f"{address}:0"
        config.sync_kv_timeout = 60_000
        config.transport = "nixl"
        cluster_id = 1 if self._is_sender else 2
        self._datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
        self._datadist.init(config.generate_options())
        device = f"npu:{config.device_id}"
        on_host = [torch.from_numpy(tensor) for tensor in self._host.tensors]
        self._tensors = {"host": on_host, "device": [tensor.to(device) for tensor in on_host]}
        manager = self._datadist.cache_manager
        self._caches: dict[str, Any] = {}
        for model_id, (way, placement) in enumerate(
            (("device", datadist.Placement.DEVICE), ("host", datadist.Placement.HOST))
        ):
            desc = datadist.CacheDesc(
                self._case.tensors,
                [2 * self._case.blocks, self._case.block_bytes],
                datadist.DataType.DT_UINT8,
                placement,
            )
            key = datadist.BlocksCacheKey(cluster_id, model_id)
            self._caches[way] = manager.register_blocks_cache(desc, self._tensors[way], key, True)
        if not self._is_sender:
            self._pipe.send((address, self._datadist.listen_port))
            self._pipe.recv()
            return
        peer, port = self._pipe.recv()
        info = datadist.LLMClusterInfo()
        info.remote_cluster_id = 2
        info.append_local_ip_info(address, 0)
        info.append_remote_ip_info(peer, port)
        status, _ = self._datadist.link_clusters([info], timeout=30_000)
        if status != datadist.LLMStatusCode.LLM_SUCCESS:
            raise SystemExit(f"linking failed: {status.name}")
        self._pipe.send("linked")

    def run(self, way: str, number: int) -> float:
        """Seconds of one transfer, as this end sees them."""
        blocks = self._halves[number % 2]
        if not self._is_sender:
            self._pipe.recv()  # the sender begins
            if way == "bare":
                self._nixl.wait(blocks, blocks, number)
                self._pipe.send(time.monotonic())
            return 0.0
        self._pipe.send("begins")
        began = time.monotonic()
        if way == "bare":
            self._nixl.send(blocks, blocks, number)
            return float(self._pipe.recv()) - began
        key = datadist.BlocksCacheKey(2, 0 if way == "device" else 1)
        self._datadist.cache_manager.push_blocks(key, self._caches[way], blocks, blocks)
        return time.monotonic() - began

    def compare(self) -> bool:
        if self._is_sender:
            return True
        expected = Cache(self._case)
        expected.fill(1)
        found = [self._bare.tensors, self._host.tensors]
        found.append(np.stack([tensor.cpu().numpy() for tensor in self._tensors["device"]]))
        return all(np.array_equal(each, expected.tensors) for each in found)

    def close(self) -> None:
        self._datadist.finalize()


def main() -> None:
    role, parent, peer, address, *sizes, is_scattered = sys.argv[1:]
    pipe = Connection(int(parent))
    end = End(role, Connection(int(peer)), address, Case(*map(int, sizes)), is_scattered == "1")
    pipe.send("ready")
    try:
        while True:
            way, number = pipe.recv()
            pipe.send(end.compare() if way == "compare" else end.run(way, number))
    except EOFError:
        end.close()


if __name__ == "__main__":
    main()
