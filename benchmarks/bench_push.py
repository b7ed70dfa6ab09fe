"""Pushes of scattered blocks between two processes, from the call to its return, every byte verified.

    python -m torch_llm_datadist run benchmarks/bench_push.py [--rounds N] [--json FILE]

"x memcpy" is the time of one thread's memcpy of the same pieces within one process, in the same round, over
the time of
the push: above 1, the push is faster.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import platform
import random
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CASES = {  # name: tensors, blocks per transfer, bytes per block
    "64 x 16 blocks of 256 KiB": (64, 16, 256 << 10),
    "64 x 1 block of 256 KiB": (64, 1, 256 << 10),
    "61 x 16 blocks of 144 KiB": (61, 16, 144 << 10),
    "64 x 64 blocks of 16 KiB": (64, 64, 16 << 10),
    "1 x 1 block of 256 KiB": (1, 1, 256 << 10),
    "1 x 1 block of 4 KiB": (1, 1, 4 << 10),
}


def start(cluster_id: int, device: int, case: tuple[int, int, int], seed: int) -> tuple[Any, Any, list[Any]]:
    import torch

    import torch_llm_datadist as datadist

    tensors, blocks, block_bytes = case
    torch.npu.set_device(device)
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = 60_000
    instance = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * blocks, block_bytes)
    raw = [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(f"npu:{device}")
        for _ in range(tensors)
    ]
    desc = datadist.CacheDesc(tensors, list(shape), datadist.DataType.DT_UINT8)
    cache = instance.cache_manager.register_blocks_cache(desc, raw, datadist.BlocksCacheKey(cluster_id, 0))
    return instance, cache, raw


def receiver(pipe: Connection, case: tuple[int, int, int]) -> None:
    instance, _, raw = start(2, 1, case, seed=2)
    pipe.send(instance.listen_port)
    for dst in iter(pipe.recv, None):
        pipe.send([tensor.cpu()[dst].sum(dtype=_int64()).item() for tensor in raw])
    instance.finalize()


def _int64() -> Any:
    import torch

    return torch.int64


def memcpy_seconds(
    raw: list[Any], target: list[Any], src: list[int], dst: list[int], block_bytes: int
) -> float:
    """One thread copies the same pieces within this process, one memmove each."""
    pieces = [
        (copy.data_ptr() + d * block_bytes, tensor.data_ptr() + s * block_bytes)
        for tensor, copy in zip(raw, target, strict=True)
        for s, d in zip(src, dst, strict=True)
    ]
    started = time.perf_counter()
    for to, source in pieces:
        ctypes.memmove(to, source, block_bytes)
    return time.perf_counter() - started


def measure(case: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    import torch

    import torch_llm_datadist as datadist

    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=receiver, args=(theirs, case), daemon=True)
    process.start()
    theirs.close()  # else the death of the receiver is no end of file here
    instance, cache, raw = start(1, 0, case, seed=1)
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = 2
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info("127.0.0.1", pipe.recv())
    status, _ = instance.link_clusters([info], timeout=30_000)
    if status != datadist.LLMStatusCode.LLM_SUCCESS:
        raise SystemExit(f"linking failed: {status.name}")

    _, blocks, block_bytes = case
    on_host = [tensor.cpu() for tensor in raw]
    target = [torch.zeros_like(tensor) for tensor in on_host]
    chooser = random.Random(0)
    key = datadist.BlocksCacheKey(2, 0)
    pushes, copies = [], []
    for _ in range(rounds + 1):
        src, dst = (chooser.sample(range(2 * blocks), blocks) for _ in range(2))
        copies.append(memcpy_seconds(on_host, target, src, dst, block_bytes))
        started = time.perf_counter()
        instance.cache_manager.push_blocks(key, cache, src, dst, tensor_num_per_layer=1)
        pushes.append(time.perf_counter() - started)
        pipe.send(dst)
        sums = [tensor[src].sum(dtype=torch.int64).item() for tensor in on_host]
        if pipe.recv() != sums:
            raise SystemExit(f"wrong bytes arrived for blocks {src} -> {dst}")
    pipe.send(None)
    process.join(10)
    instance.finalize()
    pushes, copies = sorted(pushes[1:]), sorted(copies[1:])  # the first maps the peer's memory
    total = len(raw) * blocks * block_bytes
    median = statistics.median(pushes)
    return {
        "median_us": median * 1e6,
        "worst_us": pushes[-1] * 1e6,
        "gb_per_s": total / median / 1e9,
        "to_memcpy": statistics.median(copies) / median,
        "bytes": total,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    import torch

    import torch_llm_datadist.emulator as emulator

    where = "emulated device memory on this CPU" if emulator.is_enabled() else "Ascend NPUs"
    print(f"{where}; {platform.machine()}, torch {torch.__version__}; {arguments.rounds} rounds")
    print(f"{'blocking push_blocks':28s} {'median':>10s} {'worst':>10s} {'GB/s':>7s} {'x memcpy':>9s}")
    results = {}
    for name, case in CASES.items():
        result = results[name] = measure(case, arguments.rounds)
        print(
            f"{name:28s} {result['median_us']:7.0f} us {result['worst_us']:7.0f} us "
            f"{result['gb_per_s']:7.2f} {result['to_memcpy']:9.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"where": where, "cases": results}, indent=1))


if __name__ == "__main__":
    main()
