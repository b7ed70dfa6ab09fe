"""Host cost of each op: from its call to its return, beside ops of the same kind that do nothing.

    python -m torch_llm_datadist run benchmarks/bench_dispatch.py [--calls N] [--json FILE]

"x C++" is the op's median over that of an empty C++ op with the same schema, called the same way in the same
round; "x Python" over that of an empty ``torch.library.custom_op``. What the device does is not in it: calls
come in batches, and the stream is drained between them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch_npu
from torch.utils.cpp_extension import load_inline

import torch_llm_datadist as datadist
from torch_llm_datadist import emulator, ops

LAYERS, BLOCKS, BLOCK_SIZE, ROW = 4, 64, 16, (4, 64)
BATCH = 20  # calls between two drains: far below what a stream's queue takes

EMPTY = """
#include <torch/library.h>
void nothing(const at::Tensor&, const at::Tensor&, int64_t, int64_t) {}
TORCH_LIBRARY(datadist_bench, m) {
  m.def("nothing(Tensor(a!) status, Tensor after, int layer, int binding) -> ()");
}
TORCH_LIBRARY_IMPL(datadist_bench, PrivateUse1, m) { m.impl("nothing", &nothing); }
"""


@torch.library.custom_op("datadist_bench_python::nothing", mutates_args=("status",))
def nothing_in_python(status: torch.Tensor, after: torch.Tensor, layer: int, binding: int) -> None:
    pass


def cases() -> dict[str, tuple[Callable[[int], object], Callable[[], None]]]:
    """Per op: (a call, what comes before a batch and is not timed)."""
    os.environ["CXX"] = "g++"
    load_inline("datadist_bench", EMPTY, is_python_module=False)
    torch.npu.set_device(0)
    device = "npu:0"
    config = datadist.LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    instance = datadist.LLMDataDist(datadist.LLMRole.MIX, 1)
    instance.init(config.generate_options())
    tensors = [torch.zeros(BLOCKS, BLOCK_SIZE, *ROW, device=device) for _ in range(2 * LAYERS)]
    desc = datadist.CacheDesc(2 * LAYERS, list(tensors[0].shape), datadist.DataType.DT_FLOAT)
    cache = instance.cache_manager.register_blocks_cache(desc, tensors)
    binding = datadist.Binding(0, range(BATCH))
    status = torch.zeros(1, dtype=torch.int32, device=device)
    rows, slot = torch.ones(1, *ROW, device=device), torch.tensor([5], device=device)
    table = torch.arange(4, device=device)
    ids, other_ids = torch.tensor([1, 2]), torch.tensor([3, 4])
    empty = torch.ops.datadist_bench.nothing.default

    def bind() -> None:
        binding.bind(())

    def none() -> None:
        pass

    return {
        "empty C++ op": (lambda i: empty(status, rows, i, 1), none),
        "empty Python custom_op": (lambda i: nothing_in_python(status, rows, i, 1), none),
        "push_layer": (lambda i: ops.push_layer(status, rows, i, binding.id), bind),
        "wait_layer": (lambda i: ops.wait_layer(status, rows, i, binding.id), bind),
        "store_layer": (
            lambda i: ops.store_layer(status, rows, rows, slot, layer=0, cache=cache.handle),
            none,
        ),
        "read_layer": (
            lambda i: ops.read_layer(
                status, rows, rows, table, block_size=BLOCK_SIZE, layer=0, cache=cache.handle
            ),
            none,
        ),
        "copy_blocks": (lambda i: ops.copy_blocks(status, tensors, ids, other_ids), none),
    }


def measure(calls: int) -> dict[str, list[float]]:
    """Microseconds of each call; the ops take turns batch by batch, so that all see the same machine."""
    found: dict[str, list[float]] = {}
    wanted = cases()
    for round_ in range(-1, -(-calls // BATCH)):
        for name, (call, before) in wanted.items():
            before()
            times = []
            for i in range(BATCH):
                start = time.perf_counter_ns()
                call(i)
                times.append((time.perf_counter_ns() - start) / 1000)
            torch.npu.synchronize()
            if round_ >= 0:  # the first one warms up
                found.setdefault(name, []).extend(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="of each op (default: 2000)")
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    arguments = parser.parse_args()
    where = "emulated device memory on this machine's CPU" if emulator.is_enabled() else "a real NPU"
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torch_npu {torch_npu.__version__}",
        "device": where,
        "sizes": f"{2 * LAYERS} tensors of {BLOCKS} blocks of {BLOCK_SIZE} tokens x {ROW}, float32",
    }
    for name, value in machine.items():
        print(f"{name + ':':<10} {value}")
    times = measure(arguments.calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    print(f"\n{'op':<24} {'median µs':>10} {'p99 µs':>10} {'x C++':>8} {'x Python':>9} {'runs':>6}")
    for name, values in times.items():
        p99 = statistics.quantiles(values, n=100)[98]
        over_cpp = medians[name] / medians["empty C++ op"]
        over_python = medians[name] / medians["empty Python custom_op"]
        print(
            f"{name:<24} {medians[name]:>10.2f} {p99:>10.2f} {over_cpp:>8.2f} {over_python:>9.2f} "
            f"{len(values):>6}"
        )
        rows.append(
            {
                "op": name,
                "median_us": medians[name],
                "p99_us": p99,
                "over_empty_cpp": over_cpp,
                "over_empty_python": over_python,
                "runs": len(values),
            }
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({**machine, "ops": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
