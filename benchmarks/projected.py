"""What pushes would take on a product: projected from its cost table in simulated time, never measured.

Two instances of one process on two devices; the host's time per task, the task's own and the link's rate come
from ``torch_llm_datadist.emulator.clock.profile()``, each with its source. A push counts from its bind to the
moment at which the receiver's stream may read the blocks: of a packed one that is behind the gather, the copy
and the scatter of its last chunk, each of them a task of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import instance, report

TOTAL_BYTES = 128 << 20
SIZES = [16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 2 << 20]
# A wait is told the time of the latest write of its word. So where threads of this machine come late it ends
# too late, by as much as the writer is ahead, and never too early: the least time counts, once two rounds
# have it.
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
ALIKE = 1.002
SETTLE_S = 0.01  # on the clock of this machine
WAYS = {"direct": False, "packed": True, "automatic": None}
# benchmarks/performance.md of HIXL: 128 MiB, one machine, GB/s.
PUBLISHED = {
    "A3": {
        "HCCS": {16: 18.0, 128: 122, 1024: 161, 2048: 165},
        "FabricMem, host": {16: 2.9, 128: 22.6, 1024: 175, 2048: 181},
        "FabricMem, AICPU": {16: 16.1, 128: 126, 1024: 170},
        "RoCE": {16: 18.2, 2048: 23.9},
    },
    "A2": {"HCCS": {16: 8.9, 1024: 20.0, 2048: 20.3}, "RoCE": {16: 18.3, 2048: 23.7}},
}


def are_enough(seconds: list[float]) -> bool:
    if len(seconds) < LEAST_ROUNDS:
        return False
    least, next_ = sorted(seconds)[:2]
    return next_ <= least * ALIKE or len(seconds) >= MOST_ROUNDS


def child(total_bytes: int) -> None:
    """Prints a line of JSON: the table of costs, and for each size and way a push's seconds and copies."""
    import torch

    import torch_llm_datadist as datadist
    from torch_llm_datadist import emulator, ops
    from torch_llm_datadist.emulator import clock

    torch.set_num_threads(1)
    ends = []
    for cluster_id, device in ((1, 0), (2, 1)):
        torch.npu.set_device(device)
        ends.append(instance.start(cluster_id, device))
    raw = [torch.empty(total_bytes, dtype=torch.uint8, device=f"npu:{device}") for device in (0, 1)]
    raw[0].copy_(torch.randint(0, 256, (total_bytes,), dtype=torch.uint8))
    caches = {}
    for model_id, size in enumerate(SIZES):
        for cluster_id, (end, whole) in enumerate(zip(ends, raw, strict=True), start=1):
            shape = [total_bytes // size, size]
            desc = datadist.CacheDesc(1, shape, datadist.DataType.DT_UINT8)
            key = datadist.BlocksCacheKey(cluster_id, model_id)
            caches[size, cluster_id] = end.cache_manager.register_blocks_cache(desc, [whole.view(shape)], key)
    instance.link(ends[0], 2, ends[1].listen_port)
    sends, waits = (datadist.Binding(device, [0], timeout_s=100) for device in (0, 1))
    status = [torch.zeros(1, dtype=torch.int32, device=f"npu:{device}") for device in (0, 1)]
    streams = [torch.npu.current_stream(device) for device in (0, 1)]
    senders, receivers = ends[0].cache_manager, ends[1].cache_manager

    def settle() -> None:
        """The library's threads queue what they were given before this one goes on: each round begins alike.
        It takes no simulated time."""
        time.sleep(SETTLE_S)

    def push(model_id: int, size: int, src: list[int], dst: list[int], packed: bool | None) -> Any:
        task = senders.prepare_push(
            datadist.BlocksCacheKey(2, model_id), caches[size, 1], src, dst,
            tensor_num_per_layer=1, packed=packed,
        )  # fmt: skip
        if receivers.expect(task.ticket, dst):
            while not task.is_expected:
                time.sleep(0.001)  # no simulated time
        settle()
        torch.npu.set_device(1)
        waits.bind([task.ticket])
        ops.wait_layer(status[1], status[1], 0, waits.id)
        settle()
        torch.npu.set_device(0)
        sends.bind([task])
        settle()
        ops.push_layer(status[0], status[0], 0, sends.id)
        ops.finish(status[0], status[0], sends.id)
        for stream in streams:
            stream.synchronize()
        while not (task.state().has_ended and datadist.ticket_state(task.ticket).has_ended):
            time.sleep(0.001)  # the clocks are set to 0 while nothing runs
        return task

    found = []
    for model_id, size in enumerate(SIZES):
        count = total_bytes // size
        chooser = random.Random(size)
        src, dst = (chooser.sample(range(count), count) for _ in range(2))
        for way, packed in WAYS.items():
            push(model_id, size, src[:2], dst[:2], packed)  # maps the peer's memory, makes staging
            raw[1].zero_()
            torch.npu.synchronize(1)
            seconds = []
            while not are_enough(seconds):
                counter = emulator.fail_task(1 << 40, 507013, direction="peer")
                clock.reset()
                task = push(model_id, size, src, dst, packed)
                seconds.append(clock.now(streams[1]))
                copies = counter.hits
                counter.disarm()
            got, sent = raw[1].cpu().view(count, size), raw[0].cpu().view(count, size)
            if not torch.equal(got[dst], sent[src]) or status[0].item() != 0 or status[1].item() != 0:
                raise SystemExit(f"wrong bytes arrived in blocks of {size}, {way}")
            found.append(
                {
                    "block_bytes": size,
                    "way": way,
                    "seconds": min(seconds),
                    "copies": copies,
                    "is_packed": task.is_packed,
                    "gb_per_s": total_bytes / min(seconds) / 1e9,
                }
            )
    costs = {cost.name: [cost.value, cost.source] for cost in clock.profile().values()}
    print(json.dumps({"costs": costs, "total_bytes": total_bytes, "pushes": found}))
    for end in ends:
        end.finalize()


def project(profile: str, total_bytes: int = TOTAL_BYTES) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TORCH_LLM_DATADIST_EMULATE_TIME": "simulated",
        "TORCH_LLM_DATADIST_EMULATE_PROFILE": profile,
    }
    command = [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", "-m", "benchmarks.projected"]
    done = subprocess.run(
        [*command, str(total_bytes)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def by_size(results: dict[str, Any]) -> dict[int, dict[str, dict[str, Any]]]:
    """block bytes → way → what was projected."""
    rows: dict[int, dict[str, dict[str, Any]]] = {}
    for row in results["pushes"]:
        rows.setdefault(row["block_bytes"], {})[row["way"]] = row
    return rows


def main(profile: str, path: Path | None) -> None:
    facts = report.machine(f"projected for {profile} in simulated time; no figure of a real device")
    report.print_head(facts)
    results = project(profile)
    print(
        f"projected for {profile}, not measured: simulated time of {TOTAL_BYTES >> 20} MiB "
        "in scattered blocks, from the bind to the receiver's gate"
    )
    for name, (value, source) in results["costs"].items():
        print(f"  {name:22s} {value:8.1f}   {source}")
    published = PUBLISHED[profile]
    columns = "".join(f"{name:>18s}" for name in published)
    print(
        f"{'block':>9s}  projected GB/s:{'direct':>9s}{'packed':>9s}{'automatic':>19s}   "
        f"published for HIXL:{columns}"
    )
    for size, row in by_size(results).items():
        kib = size >> 10
        theirs = "".join(f"{table.get(kib, '-'):>18}" for table in published.values())
        way = "packed" if row["automatic"]["is_packed"] else "direct"
        automatic = f"{row['automatic']['gb_per_s']:.1f} ({way})"
        print(
            f"{kib:5d} KiB {'':16s}{row['direct']['gb_per_s']:9.1f}{row['packed']['gb_per_s']:9.1f}"
            f"{automatic:>19s}   {'':19s}{theirs}"
        )
    report.write(path, {"machine": facts, "profile": profile, "projected": results, "published": published})


if __name__ == "__main__":
    child(int(sys.argv[1]))
