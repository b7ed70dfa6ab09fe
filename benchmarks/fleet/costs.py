"""What things take: each constant with its source. Nothing in here is a measurement of an NPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    value: float
    source: str


_MEASURED = "measured: this package on one 2-core x86-64 machine (sim_fleet --check)"
_PUBLISHED = "published: benchmarks/performance.md of HIXL"


@dataclass(frozen=True)
class LinkCosts:
    """Processor time of one end of a link while it is made, in microseconds, and memory.

    ``..._us`` is time of the control thread, on the step of that name; ``aside_us`` is spent by other threads
    of the process (ZeroMQ's, the link's own), which start when the native link is opened, ``call_us`` by the
    caller of ``link_clusters``, however many links it asks for; ``first_us`` and ``first_aside_us``, for
    which the control thread waits, come on top for the first link of a process, ``chunk_us`` for each further
    chunk of pages. ``looks_us`` is of each second, also while nothing happens: threads look whether all is
    well, and tell the peers of it. ``crowd`` is a factor: what work takes longer that waited for a processor.
    """

    dial_us: Constant = Constant(450, _MEASURED)
    hello_us: Constant = Constant(582, _MEASURED)
    welcome_us: Constant = Constant(1137, _MEASURED)
    join_us: Constant = Constant(1122, _MEASURED)
    joined_us: Constant = Constant(474, _MEASURED)
    other_us: Constant = Constant(80, _MEASURED)
    call_us: Constant = Constant(930, _MEASURED)
    aside_us: Constant = Constant(690, _MEASURED)
    first_us: Constant = Constant(2240, _MEASURED)
    first_aside_us: Constant = Constant(4000, _MEASURED)
    chunk_us: Constant = Constant(1500, "assumed: 4 MiB allocated and filled; the first is in first_us")
    peer_look_us: Constant = Constant(1.0, _MEASURED)
    looks_us: Constant = Constant(8000, _MEASURED)
    crowd: Constant = Constant(1.3, _MEASURED)
    latency_us: Constant = Constant(290, _MEASURED)
    host_kib: Constant = Constant(157, _MEASURED)
    first_kib: Constant = Constant(2209, _MEASURED)

    def of_step(self, step: str) -> float:
        constant: Constant | None = getattr(self, f"{'hello' if step == 'message' else step}_us", None)
        return (constant or self.other_us).value


@dataclass(frozen=True)
class NetworkCosts:
    """One process's share of the network between hosts, and its device."""

    soc_name: str
    link_gb_s: Constant
    submit_copy_us: Constant = Constant(5.7, f"{_PUBLISHED}: 16 KiB blocks submitted by the host, 2.87 GB/s")
    task_us: Constant = Constant(0.8, "derived: HCCS of 16 KiB at 18.0 GB/s")
    kernel_us: Constant = Constant(5.0, "assumed")
    memory_gb_s: Constant = Constant(1600, "assumed: nominal for one die")
    latency_us: Constant = Constant(10, "assumed: one way, through two switches")
    tick_ms: Constant = Constant(2, "csrc/link/engine.cpp: kBusyTickMs; words of slots go with a tick")
    idle_tick_ms: Constant = Constant(50, "csrc/link/engine.cpp: kIdleTickMs")


NETWORKS = {
    "a3-roce": NetworkCosts("Ascend910_9391", Constant(23.8, f"{_PUBLISHED}: A3, two machines, RoCE, 2 MiB")),
    "a3-hccs": NetworkCosts(
        "Ascend910_9391", Constant(90, f"{_PUBLISHED}: A3, two machines, HCCS, writes of 2 MiB")
    ),
    "a2-roce": NetworkCosts("Ascend910B3", Constant(23.8, f"{_PUBLISHED}: A2, two machines, RoCE, 2 MiB")),
}


@dataclass(frozen=True)
class Model:
    """Whose caches move: tensors of [blocks, block_bytes], two per layer."""

    layers: int = 32
    block_tokens: int = 16
    block_bytes: int = 32 << 10
    num_blocks: int = 4096
    prefill_tokens_per_s: float = 20_000  # assumed: of one process
    prompt_tokens: tuple[int, int] = (512, 8192)

    @property
    def tensors(self) -> int:
        return 2 * self.layers


@dataclass(frozen=True)
class Policy:
    """What the engine around the library does; the library leaves it to the engine."""

    keep_alive_ms: int = 3000
    restart_s: float = 60.0  # from a node's failure until its processes are back
    cut_s: float = 10.0  # that a node is cut off which comes back by itself
    cut_share: float = 0.25  # of the failures; the others are deaths
    retry_s: float = 1.0  # between attempts to link again
    front_end_s: float = 5.0  # until a front end asks another decode process
    requests_per_s: float = 2.0  # of one decode process
    staging_bytes: int = 64 << 20
    max_in_flight: int = 256
