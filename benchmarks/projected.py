"""What pushes would take on a product: projected from its cost table in simulated time, never measured.

Two instances of one process on two devices; the host's time per task, the task's own and the link's rate come
from ``torch_llm_datadist.emulator.clock.profile()``, each with its source. Only direct transfers are
projected: packed ones do not exist yet.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from . import instance, report

TOTAL_BYTES = 128 << 20
SIZES = [16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 2 << 20]
# HIXL, benchmarks/performance.md: 128 MiB, one machine, GB/s.
PUBLISHED = {
    "A3": {
        "HCCS": {16: 18.0, 128: 122, 1024: 161, 2048: 165},
        "FabricMem, host": {16: 2.9, 128: 22.6, 1024: 175, 2048: 181},
        "FabricMem, AICPU": {16: 16.1, 128: 126, 1024: 170},
    },
    "A2": {"HCCS": {16: 8.9, 1024: 20.0, 2048: 20.3}},
}


def child() -> None:
    """Prints a line of JSON: the table of costs, and per size the seconds and the copies of a push."""
    import torch

    import torch_llm_datadist as datadist
    from torch_llm_datadist import emulator, ops
    from torch_llm_datadist.emulator import clock

    torch.set_num_threads(1)
    ends = []
    for cluster_id, device in ((1, 0), (2, 1)):
        torch.npu.set_device(device)
        ends.append(instance.start(cluster_id, device))
    raw = [torch.empty(TOTAL_BYTES, dtype=torch.uint8, device=f"npu:{device}") for device in (0, 1)]
    raw[0].copy_(torch.randint(0, 256, (TOTAL_BYTES,), dtype=torch.uint8))
    caches = {}
    for model_id, size in enumerate(SIZES):
        for cluster_id, (end, whole) in enumerate(zip(ends, raw, strict=True), start=1):
            shape = [TOTAL_BYTES // size, size]
            desc = datadist.CacheDesc(1, shape, datadist.DataType.DT_UINT8)
            key = datadist.BlocksCacheKey(cluster_id, model_id)
            caches[size, cluster_id] = end.cache_manager.register_blocks_cache(desc, [whole.view(shape)], key)
    instance.link(ends[0], 2, ends[1].listen_port)
    torch.npu.set_device(0)
    link = ends[0].link_id(2)
    status_word = torch.zeros(1, dtype=torch.int32, device="npu:0")
    stream = torch.npu.current_stream()
    found = []
    for model_id, size in enumerate(SIZES):
        count = TOTAL_BYTES // size
        chooser = random.Random(size)
        src, dst = (torch.tensor(chooser.sample(range(count), count)) for _ in range(2))

        push = partial(
            ops.push_blocks, status_word, list(caches[size, 1].tensors), src, dst,
            link=link, model_id=model_id, tensors_per_layer=1,
        )  # fmt: skip
        push()  # maps the peer's memory
        stream.synchronize()
        raw[1].zero_()
        torch.npu.synchronize(1)
        torch.npu.set_device(0)
        counter = emulator.fail_task(1 << 40, 507013, direction="peer")
        clock.reset()
        push()
        stream.synchronize()
        seconds = clock.now(stream)
        copies = counter.hits
        counter.disarm()
        right = torch.equal(raw[1].cpu().view(count, size)[dst], raw[0].cpu().view(count, size)[src])
        if not right or status_word.item() != 0:
            raise SystemExit(f"wrong bytes arrived in blocks of {size}")
        found.append({"block_bytes": size, "seconds": seconds, "copies": copies})
    costs = {cost.name: [cost.value, cost.source] for cost in clock.profile().values()}
    print(json.dumps({"costs": costs, "direct": found}))
    for end in ends:
        end.finalize()


def project(profile: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TORCH_LLM_DATADIST_EMULATE_TIME": "simulated",
        "TORCH_LLM_DATADIST_EMULATE_PROFILE": profile,
    }
    command = [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", "-m", "benchmarks.projected"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def main(profile: str, path: Path | None) -> None:
    results = project(profile)
    print(
        f"projected for {profile}, not measured: simulated time of {TOTAL_BYTES >> 20} MiB "
        "in scattered blocks"
    )
    for name, (value, source) in results["costs"].items():
        print(f"  {name:22s} {value:8.1f}   {source}")
    published = PUBLISHED[profile]
    columns = "".join(f"{name:>18s}" for name in published)
    print(
        f"{'block':>8s} {'copies':>7s} {'direct, projected GB/s':>24s} {'packed':>8s}   "
        f"published for HIXL:{columns}"
    )
    for row in results["direct"]:
        kib = row["block_bytes"] >> 10
        row["projected_gb_per_s"] = TOTAL_BYTES / row["seconds"] / 1e9
        theirs = "".join(f"{table.get(kib, '-'):>18}" for table in published.values())
        print(
            f"{kib:5d} KiB {row['copies']:7d} {row['projected_gb_per_s']:24.1f} {'-':>8s}   {'':19s}{theirs}"
        )
    print("packed: does not exist yet, so automatic is direct")
    report.write(path, {"profile": profile, "projected": results, "published": published})


if __name__ == "__main__":
    child()
