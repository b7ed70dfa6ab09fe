"""A prefill forward that pushes each layer once it is computed, beside one that pushes after the forward.

    python -m torch_llm_datadist run -m benchmarks.bench_layerwise_overlap [--mode eager,compiled,replayed]
        [--layers N] [--compute-ms D] [--transfer-ms T] [--rounds N] [--json FILE] [--picture FILE.png]

Both times are emulated: a kernel that takes D per layer, and a link whose bandwidth makes a layer take T. The
sender and the receiver are two devices of this process, so that all events lie on one timeline. "bound" is
what a layer-wise push may take from the first kernel to the last arrival: the same forward without transfers,
measured in turn in the same run, + 1.2 T + 5 ms.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_llm_datadist as datadist
import torch_llm_datadist.emulator as emulator
from torch_llm_datadist import ops
from torch_llm_datadist.emulator import faults

from . import instance, report
from .plots import draw_timeline

BLOCKS, BLOCK_BYTES, TENSORS_PER_LAYER = 4, 64 << 10, 2
LAYER_BYTES = BLOCKS * BLOCK_BYTES * TENSORS_PER_LAYER
SLACK_MS = 5.0
MODES = ("eager", "compiled", "replayed")


class Side:
    """An instance with a cache, and a binding for its forward."""

    def __init__(self, cluster_id: int, device: int, layers: int) -> None:
        torch.npu.set_device(device)
        self.cluster_id, self.device, self.layers = cluster_id, device, layers
        self.instance = instance.start(cluster_id, device)
        shape = (BLOCKS, BLOCK_BYTES)
        tensors = TENSORS_PER_LAYER * layers
        self.raw = [torch.zeros(shape, dtype=torch.uint8, device=f"npu:{device}") for _ in range(tensors)]
        desc = datadist.CacheDesc(tensors, list(shape), datadist.DataType.DT_UINT8)
        key = datadist.BlocksCacheKey(cluster_id, 0)
        self.cache = self.instance.cache_manager.register_blocks_cache(desc, self.raw, key)
        self.status = torch.zeros(1, dtype=torch.int32, device=f"npu:{device}")
        self.binding = datadist.Binding(device, range(layers))
        self.behind = datadist.Binding(
            device, range(layers)
        )  # for pushes behind the forward: no graph knows it
        torch.npu.synchronize(device)

    def check(self) -> None:
        torch.npu.synchronize(self.device)
        if self.status.item():
            raise SystemExit(f"a transfer failed: {datadist.LLMStatusCode(int(self.status.item())).name}")


# The kernel of a layer: takes D and writes a byte to each tensor's blocks. An op, so that compilers and
# graphs keep it in its place; ``out`` is what the layer's push is ordered behind. The cache is hidden.
kernels: dict[int, Callable[[int], None]] = {}


@torch.library.custom_op("datadist_bench_overlap::kernel", mutates_args=("out",))
def kernel(out: torch.Tensor, layer: int) -> None:
    kernels[out.device.index](layer)


@kernel.register_fake
def _(out: torch.Tensor, layer: int) -> None:
    return None


def tensors_of(layer: int) -> range:
    return range(TENSORS_PER_LAYER * layer, TENSORS_PER_LAYER * (layer + 1))


def byte_of(tensor: int) -> int:
    """Neighbours differ, and none is 0."""
    return tensor % 255 + 1


class Prefill:
    """The forward, as its mode runs it; with ``pushes`` each layer's push stands behind its kernel."""

    def __init__(self, mode: str, sender: Side, compute_s: float, pushes: bool) -> None:
        self.mode, self.sender, self.compute_s = mode, sender, compute_s
        self.out = torch.zeros(1, dtype=torch.int32, device=f"npu:{sender.device}")
        # Timed events of a graph are not those of an eager run: each stands for one end of a kernel.
        self.ends = [torch.npu.Event(enable_timing=True) for _ in range(sender.layers)]
        status, out, binding, layers = sender.status, self.out, sender.binding.id, sender.layers

        def forward(status: torch.Tensor, out: torch.Tensor) -> None:
            for layer in range(layers):
                kernel(out, layer)
                if pushes:
                    ops.push_layer(status, out, layer, binding)
            if pushes:
                ops.finish(status, out, binding)

        self._run: Callable[[], object]
        if mode == "eager":
            self._run = lambda: forward(status, out)
        elif mode == "compiled":
            compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
            self._run = lambda: compiled(status, out)
        else:
            kernels[sender.device] = self._compute  # captured with everything else
            graph = torch.npu.NPUGraph()
            with torch.npu.graph(graph, stream=torch.npu.Stream()):
                forward(status, out)
            self._run = graph.replay

    def _compute(self, layer: int) -> None:
        emulator.delay_stream(self.compute_s)
        for number in tensors_of(layer):
            self.sender.raw[number].fill_(byte_of(number))
        if self.mode != "replayed":
            self.ends[layer].record()

    def __call__(self) -> None:
        kernels[self.sender.device] = self._compute
        self._run()


class Timeline(dict[str, Any]):
    """Of one run, in ms since the forward's first kernel: ends of kernels, and each layer's arrival."""


def at_ms(event: Any) -> float:
    """On the device's clock, which both devices share here."""
    return float(event.recorded_time()) / 1e3


def once(sender: Side, receiver: Side, prefill: Prefill, pushes: bool) -> Timeline:
    """One forward; without ``pushes`` its layers are pushed behind it."""
    layers = range(sender.layers)
    key = datadist.BlocksCacheKey(receiver.cluster_id, 0)
    task = sender.instance.cache_manager.prepare_push(
        key, sender.cache, list(range(BLOCKS)), list(reversed(range(BLOCKS)))
    )
    for tensor in receiver.raw:
        tensor.zero_()
    torch.npu.synchronize(receiver.device)
    receiver.binding.bind([task.ticket])
    arrived = [torch.npu.Event(enable_timing=True) for _ in layers]
    with torch.npu.device(receiver.device):
        for layer in layers:
            ops.wait_layer(receiver.status, receiver.status, layer, receiver.binding.id)
            arrived[layer].record()
    begin, computed = (torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.device(sender.device):
        if pushes:
            sender.binding.bind([task])
        torch.npu.synchronize(sender.device)
        begin.record()
        prefill()
        computed.record()
        if not pushes:
            sender.behind.bind([task])
            for layer in layers:
                ops.push_layer(sender.status, sender.raw[-1], layer, sender.behind.id)
            ops.finish(sender.status, sender.raw[-1], sender.behind.id)
    sender.check()
    receiver.check()
    for layer in layers:
        for number in tensors_of(layer):
            if not bool((receiver.raw[number].cpu() == byte_of(number)).all()):
                raise SystemExit(f"tensor {number} of layer {layer} holds wrong bytes")
    zero = at_ms(begin)
    ends = [] if prefill.mode == "replayed" else [at_ms(event) - zero for event in prefill.ends]
    return Timeline(
        kernel_ends=ends, arrived=[at_ms(event) - zero for event in arrived], computed=at_ms(computed) - zero
    )


def measure(mode: str, layers: int, compute_ms: float, transfer_ms: float, rounds: int) -> dict[str, Any]:
    sender, receiver = Side(1, 0, layers), Side(2, 1, layers)
    instance.link(sender.instance, receiver.cluster_id, receiver.instance.listen_port)
    faults.set_bandwidth("peer", LAYER_BYTES / (transfer_ms / 1e3))
    runs: dict[str, list[Timeline]] = {"overlapped": [], "afterwards": []}
    try:
        with torch.npu.device(sender.device):
            pushing = Prefill(mode, sender, compute_ms / 1e3, pushes=True)
            plain = Prefill(mode, sender, compute_ms / 1e3, pushes=False)
        for number in range(rounds + 1):
            for name, prefill, pushes in (("overlapped", pushing, True), ("afterwards", plain, False)):
                timeline = once(sender, receiver, prefill, pushes)
                if number > 0:  # the first compiles and maps the peer's memory
                    runs[name].append(timeline)
    finally:
        faults.set_bandwidth("peer", 0)
        sender.instance.finalize()
        receiver.instance.finalize()
    arrived = {name: [run["arrived"][-1] for run in found] for name, found in runs.items()}
    last = {name: statistics.median(found) for name, found in arrived.items()}
    alone = statistics.median(run["computed"] for run in runs["afterwards"])

    def typical(name: str) -> Timeline:
        return min(runs[name], key=lambda run: abs(run["arrived"][-1] - last[name]))

    return {
        "layers": layers,
        "transfer_ms": transfer_ms,
        "runs": rounds,
        "forward_alone_ms": alone,
        "overlapped_ms": last["overlapped"],
        "overlapped_p99_ms": report.percentile(arrived["overlapped"], 0.99),
        "afterwards_ms": last["afterwards"],
        "afterwards_p99_ms": report.percentile(arrived["afterwards"], 0.99),
        "bound_ms": alone + 1.2 * transfer_ms + SLACK_MS,
        "overlapped": typical("overlapped"),
        "afterwards": typical("afterwards"),
    }


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--mode", default=",".join(MODES), help="of eager, compiled, replayed")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--compute-ms", type=float, default=20.0, help="D, of each layer")
    parser.add_argument("--transfer-ms", type=float, default=15.0, help="T, of each layer; at most D")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="of the timeline; needs matplotlib, see `make plots`")
    options = parser.parse_args()
    check(parser, options)
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--picture needs matplotlib; `make plots` installs it, and draws what --json wrote")
    facts = report.machine()
    report.print_head(facts)
    print(
        f"{options.layers} layers of {LAYER_BYTES >> 10} KiB, D = {options.compute_ms} ms, T = "
        f"{options.transfer_ms} ms, both emulated; medians of {options.rounds} runs"
    )
    print(
        f"{'ms':10s} {'forward alone':>14s} {'per layer':>11s} {'p99':>8s} {'bound':>8s} {'afterwards':>11s} "
        f"{'p99':>8s}"
    )
    results = {}
    for mode in options.mode.split(","):
        result = results[mode] = measure(
            mode, options.layers, options.compute_ms, options.transfer_ms, options.rounds
        )
        verdict = "" if result["overlapped_ms"] <= result["bound_ms"] else "  over the bound"
        print(
            f"{mode:10s} {result['forward_alone_ms']:14.1f} {result['overlapped_ms']:11.1f} "
            f"{result['overlapped_p99_ms']:8.1f} {result['bound_ms']:8.1f} {result['afterwards_ms']:11.1f} "
            f"{result['afterwards_p99_ms']:8.1f}{verdict}",
            flush=True,
        )
    report.write(options.json, {"machine": facts, "modes": results})
    if options.picture:
        draw_timeline(results, options.picture)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not emulator.is_enabled():
        raise SystemExit("the times of this benchmark are emulated; run it where no NPU is")
    unknown = set(options.mode.split(",")) - set(MODES)
    if unknown:
        parser.error(f"--mode: {', '.join(sorted(unknown))} is none of {', '.join(MODES)}")
    if not 0 < options.transfer_ms <= options.compute_ms:
        parser.error(
            f"--transfer-ms: {options.transfer_ms} is not above 0 and at most D = {options.compute_ms}"
        )


if __name__ == "__main__":
    main()
