"""A prefill forward that pushes each layer once it is computed, beside one that pushes after the forward.

    python -m torch_llm_datadist run -m benchmarks.bench_layerwise_overlap [--mode eager,replayed]
        [--layers N] [--compute-ms D] [--transfer-ms T] [--json FILE] [--picture FILE.png]

Both times are emulated: a kernel that takes D per layer, and a link whose bandwidth makes a layer take T. The
sender and the receiver are two devices of this process, so that all events lie on one timeline. "bound" is
what a layer-wise push may take: the same forward without transfers, measured here, + 1.2 T + 5 ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_llm_datadist as datadist
import torch_llm_datadist.emulator as emulator
from torch_llm_datadist import ops
from torch_llm_datadist.emulator import faults

from . import instance

BLOCKS, BLOCK_BYTES, TENSORS_PER_LAYER = 4, 64 << 10, 2
LAYER_BYTES = BLOCKS * BLOCK_BYTES * TENSORS_PER_LAYER
SLACK_MS = 5.0
Forward = Callable[[], None]


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
        torch.npu.synchronize(device)

    def check(self) -> None:
        torch.npu.synchronize(self.device)
        if self.status.item():
            raise SystemExit(f"a transfer failed: {datadist.LLMStatusCode(int(self.status.item())).name}")


def events(count: int) -> list[Any]:
    return [torch.npu.Event(enable_timing=True) for _ in range(count)]


def at_ms(event: Any) -> float:
    """On the device's clock, which both devices share here."""
    return float(event.recorded_time()) / 1e3


class Prefill:
    """A kernel per layer that writes the layer's number, and with `pushes` the layer's push behind it."""

    def __init__(self, sender: Side, compute_s: float, pushes: bool, ends: list[Any] | None = None) -> None:
        self.sender, self.compute_s, self.pushes, self.ends = sender, compute_s, pushes, ends

    def __call__(self) -> None:
        sender = self.sender
        for layer in range(sender.layers):
            emulator.delay_stream(self.compute_s)
            for tensor in sender.raw[2 * layer : 2 * layer + 2]:
                tensor.fill_(layer + 1)
            if self.ends is not None:
                self.ends[layer].record()
            if self.pushes:
                ops.push_layer(sender.status, sender.raw[2 * layer + 1], layer, sender.binding.id)
        if self.pushes:
            ops.finish(sender.status, sender.raw[-1], sender.binding.id)


def prepared(mode: str, body: Forward) -> Forward:
    """The forward as the mode runs it."""
    if mode == "eager":
        return body
    if mode == "compiled":
        return torch.compile(body, backend="aot_eager")  # type: ignore[no-any-return]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, stream=torch.npu.Stream()):
        body()
    return graph.replay  # type: ignore[no-any-return]


class Run(dict[str, Any]):
    """Times in ms since the forward's first kernel: ends of the layers' kernels, and their arrivals."""


def once(mode: str, sender: Side, receiver: Side, compute_s: float, forward: Forward, pushes: bool) -> Run:
    layers = range(sender.layers)
    key = datadist.BlocksCacheKey(receiver.cluster_id, 0)
    task = sender.instance.cache_manager.prepare_push(
        key, sender.cache, list(range(BLOCKS)), list(reversed(range(BLOCKS)))
    )
    for tensor in receiver.raw:
        tensor.zero_()
    torch.npu.synchronize(receiver.device)
    receiver.binding.bind([task.ticket])
    arrived = events(len(layers))
    with torch.npu.device(receiver.device):
        for layer in layers:
            ops.wait_layer(receiver.status, receiver.status, layer, receiver.binding.id)
            arrived[layer].record()
    (begin, computed) = events(2)
    with torch.npu.device(sender.device):
        if pushes:
            sender.binding.bind([task])
        begin.record()
        forward()
        computed.record()
        if not pushes:
            after = datadist.Binding(sender.device, layers)
            after.bind([task])
            for layer in layers:
                ops.push_layer(sender.status, sender.raw[-1], layer, after.id)
            ops.finish(sender.status, sender.raw[-1], after.id)
    sender.check()
    receiver.check()
    for layer in layers:
        if not bool((receiver.raw[2 * layer].cpu() == layer + 1).all()):
            raise SystemExit(f"layer {layer} holds wrong bytes")
    zero = at_ms(begin)
    return Run(arrived=[at_ms(e) - zero for e in arrived], computed=at_ms(computed) - zero)


def measure(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    sender, receiver = Side(1, 0, arguments.layers), Side(2, 1, arguments.layers)
    instance.link(sender.instance, receiver.cluster_id, receiver.instance.listen_port)
    compute_s, transfer_s = arguments.compute_ms / 1e3, arguments.transfer_ms / 1e3
    faults.set_bandwidth("peer", LAYER_BYTES / transfer_s)
    try:
        with torch.npu.device(sender.device):
            plain = prepared(mode, Prefill(sender, compute_s, pushes=False))
            pushing = prepared(mode, Prefill(sender, compute_s, pushes=True))
        runs: dict[str, list[Run]] = {"overlapped": [], "afterwards": []}
        for _ in range(arguments.rounds):
            runs["overlapped"].append(once(mode, sender, receiver, compute_s, pushing, True))
            runs["afterwards"].append(once(mode, sender, receiver, compute_s, plain, False))
    finally:
        faults.set_bandwidth("peer", 0)
        sender.instance.finalize()
        receiver.instance.finalize()
    last = {name: statistics.median(run["arrived"][-1] for run in found) for name, found in runs.items()}
    alone = statistics.median(run["computed"] for run in runs["afterwards"])
    timeline = min(runs["overlapped"], key=lambda run: abs(run["arrived"][-1] - last["overlapped"]))
    return {
        "forward_alone_ms": alone,
        "overlapped_ms": last["overlapped"],
        "afterwards_ms": last["afterwards"],
        "bound_ms": alone + 1.2 * arguments.transfer_ms + SLACK_MS,
        "arrived_ms": timeline["arrived"],
        "arrived_afterwards_ms": runs["afterwards"][-1]["arrived"],
    }


def draw(path: Path, results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--picture needs matplotlib, which is not installed") from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results), 1, figsize=(10, 1 + 2.6 * len(results)), sharex=True, squeeze=False
    )
    for axis, (mode, result) in zip(axes[:, 0], results.items(), strict=True):
        compute = result["forward_alone_ms"] / arguments.layers
        kernels = [(layer * compute, compute * 0.9) for layer in range(arguments.layers)]
        axis.broken_barh(kernels, (2.1, 0.8), color="#4477aa")
        for row, name in ((1, "arrived_ms"), (0, "arrived_afterwards_ms")):
            ends = result[name]
            bars = [(end - arguments.transfer_ms, arguments.transfer_ms * 0.9) for end in ends]
            axis.broken_barh(bars, (row + 0.1, 0.8), color="#ee6677" if row else "#bbbbbb")
        axis.axvline(result["bound_ms"], color="black", linewidth=0.8, linestyle="--")
        axis.set_yticks([0.5, 1.5, 2.5], ["pushed afterwards", "pushed per layer", "kernels"])
        axis.set_title(f"{mode}: last arrival after {result['overlapped_ms']:.0f} ms", fontsize=10)
    axes[-1, 0].set_xlabel("ms since the first kernel (dashed: the bound)")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mode", default="eager,replayed", help="of eager, compiled, replayed")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--compute-ms", type=float, default=20.0, help="D, of each layer")
    parser.add_argument("--transfer-ms", type=float, default=15.0, help="T, of each layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="needs matplotlib")
    arguments = parser.parse_args()
    if not emulator.is_enabled():
        raise SystemExit("the times of this benchmark are emulated; run it where no NPU is")

    print(
        f"emulated on {platform.machine()}, torch {torch.__version__}; {arguments.layers} layers, "
        f"D = {arguments.compute_ms} ms, T = {arguments.transfer_ms} ms, median of {arguments.rounds}"
    )
    print(f"{'':10s} {'forward alone':>14s} {'per layer':>11s} {'bound':>11s} {'afterwards':>11s}")
    results = {}
    for mode in arguments.mode.split(","):
        result = results[mode] = measure(mode, arguments)
        verdict = "" if result["overlapped_ms"] <= result["bound_ms"] else "  over the bound"
        print(
            f"{mode:10s} {result['forward_alone_ms']:11.1f} ms {result['overlapped_ms']:8.1f} ms "
            f"{result['bound_ms']:8.1f} ms {result['afterwards_ms']:8.1f} ms{verdict}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    if arguments.picture:
        draw(arguments.picture, results, arguments)


if __name__ == "__main__":
    main()
