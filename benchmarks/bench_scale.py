"""What grows with links, registered tensors and blocks, and what does not.

    python -m torch_llm_datadist run -m benchmarks.bench_scale [--links N…] [--tensors N…] [--json FILE]

The cost of an op is the host time of ``ops.push_blocks`` for one block of two tensors, on an instance with so
many links or registered tensors; all instances live in one process. Planning is a C++ call on block lists in
random order.
"""

from __future__ import annotations

import random
import resource
import time
from typing import Any

import torch

import torch_llm_datadist as datadist
from torch_llm_datadist import _native, ops

from . import instance, report

RUNS = 200


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


class Instance:
    def __init__(self, cluster_id: int, device: int) -> None:
        self.cluster_id, self.device = cluster_id, device
        self.datadist = instance.start(cluster_id, device)

    def register(self, tensors: int, model_id: int) -> Any:
        raw = [torch.zeros(16, 4096, dtype=torch.uint8, device=f"npu:{self.device}") for _ in range(tensors)]
        desc = datadist.CacheDesc(tensors, [16, 4096], datadist.DataType.DT_UINT8)
        key = datadist.BlocksCacheKey(self.cluster_id, model_id)
        return self.datadist.cache_manager.register_blocks_cache(desc, raw, key)

    def link(self, other: Instance) -> None:
        instance.link(self.datadist, other.cluster_id, other.datadist.listen_port)


def op_cost(sender: Instance, cache: Any, receiver: int) -> dict[str, float]:
    """Host time of the op for one block; the transfer itself is waited for between the runs."""
    torch.npu.set_device(sender.device)
    link = sender.datadist.link_id(receiver)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{sender.device}")
    ids = torch.tensor([3])
    seconds = []
    for run in range(RUNS + 20):
        started = time.perf_counter()
        ops.push_blocks(status, list(cache.tensors), ids, ids, link=link)
        took = time.perf_counter() - started
        torch.npu.synchronize()
        if run >= 20:
            seconds.append(took)
    return report.sum_up(seconds)


def links(counts: list[int]) -> list[dict[str, Any]]:
    sender = Instance(1, 0)
    cache = sender.register(2, 0)
    rows: list[dict[str, Any]] = []
    receivers: list[Instance] = []
    for count in sorted(counts):
        before, began, had = resident_kib(), time.perf_counter(), len(receivers)
        while len(receivers) < count:
            receiver = Instance(2 + len(receivers), 1)
            receiver.register(2, 0)
            sender.link(receiver)
            receivers.append(receiver)
        seconds = time.perf_counter() - began
        made = max(1, count - had)
        rows.append(
            {
                "links": count,
                **op_cost(sender, cache, 2),
                "set_up_ms_each": seconds / made * 1e3,
                "kib_each": (resident_kib() - before) / made,
            }
        )
    for end in [*receivers, sender]:
        end.datadist.finalize()
    return rows


def tensors(counts: list[int]) -> list[dict[str, Any]]:
    sender, receiver = Instance(1, 0), Instance(2, 1)
    cache = sender.register(2, 0)
    receiver.register(2, 0)
    sender.link(receiver)
    rows, made = [], 2
    for count in sorted(counts):
        began, had = time.perf_counter(), made
        while made < count:
            sender.register(2, made)
            made += 2
        seconds = time.perf_counter() - began
        rows.append(
            {
                "tensors": count,
                **op_cost(sender, cache, 2),
                "set_up_ms_each": seconds / max(1, made - had) * 1e3,
            }
        )
    for end in (sender, receiver):
        end.datadist.finalize()
    return rows


def planning(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        # In random order, and yet one run in the end: so that the answer is short.
        ids = torch.tensor(random.Random(count).sample(range(count), count))
        seconds = []
        for _ in range(21):
            started = time.perf_counter()
            copies = _native.load().plan_copies([(1 << 20, 1 << 40, 64, 0, 0)], ids, ids, count, count)
            seconds.append(time.perf_counter() - started)
            if len(copies) != 1:
                raise SystemExit(f"{len(copies)} copies, expected 1")
        rows.append({"blocks": count, **report.sum_up(seconds[1:])})
    return rows


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--links", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tensors", type=int, nargs="+", default=[2, 100, 1000])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = report.machine()
    report.print_head(facts)
    results: dict[str, Any] = {"machine": facts}
    print("host time of an op by the number of links, all in one process")
    results["links"] = links(options.links)
    for row in results["links"]:
        print(
            f"  {row['links']:7d} links    {row['median_us']:7.1f} us (p99 {row['p99_us']:.0f}); "
            f"{row['set_up_ms_each']:.1f} ms and {row['kib_each']:.0f} KiB each, both ends"
        )
    print("host time of an op by the number of registered tensors")
    results["tensors"] = tensors(options.tensors)
    for row in results["tensors"]:
        print(
            f"  {row['tensors']:7d} tensors  {row['median_us']:7.1f} us (p99 {row['p99_us']:.0f}); "
            f"{row['set_up_ms_each']:.2f} ms each to register"
        )
    print("planning of blocks in random order")
    results["planning"] = planning(options.blocks)
    for row in results["planning"]:
        print(f"  {row['blocks']:7d} blocks   {row['median_us']:7.0f} us (p99 {row['p99_us']:.0f})")
    report.write(options.json, results)


if __name__ == "__main__":
    main()
