"""Pushes over NIXL's TCP against bare NIXL between host buffers, in network namespaces with reno.

    python -m torch_llm_datadist run -m benchmarks.bench_wire [--wire veth|relay|loopback] [--mib N] [--check]

Two processes; each round moves the same bytes in turn by bare NIXL from host buffer to host buffer (its own
Python interface, one prepared request), by ``push_blocks`` between caches on devices (staged), and between
caches in host memory (written where they lie). A bare transfer ends when the receiver has its notification, a
push when ``push_blocks`` returns. Every byte is compared at the end.

Blocks of 256 KiB lie one behind the other, so that all three may merge them; those of 16 KiB are drawn at
random, nothing merges, and bare NIXL has a descriptor for each.

A share is the median over the rounds of what the way and bare NIXL reached in that round: whatever else the
machine does meets both.

``veth``: two namespaces, joined by a pair of interfaces of the kernel; needs ``ip``. ``relay``: two
namespaces whose packets a process carries, which limits all three alike. ``loopback``: one namespace.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any

from torch_llm_datadist.emulator.hosts import Lab

from . import report
from .cases import Case

BLOCKS = {"256 KiB": 256 << 10, "16 KiB": 16 << 10}
SCATTERED = ("16 KiB",)
TENSORS = 64
WAYS = ("bare", "device", "host")
WARM_UP = 2  # rounds: each moves one half of the blocks
# (way, blocks): what is wanted at least, as a share of bare NIXL with the same blocks.
WANTED = {
    ("device", "256 KiB"): 0.7,
    ("device", "16 KiB"): 1.3,
    ("host", "256 KiB"): 0.95,
    ("host", "16 KiB"): 0.95,
}
UCX = {"UCX_TLS": "tcp,self", "UCX_LOG_LEVEL": "error"}


def case_of(block_bytes: int, total_bytes: int) -> Case:
    return Case(TENSORS, total_bytes // TENSORS // block_bytes, block_bytes)


@contextlib.contextmanager
def joined(lab: Lab, wire: str) -> Iterator[list[tuple[str, str, str]]]:
    """Host, interface and address of each end."""
    if wire == "loopback":
        yield [("near", "lo", "127.0.0.1")] * 2
        return
    if wire == "relay":
        yield [(name, "lan0", lab[name].address) for name in ("near", "far")]
        return
    ends = [("near", "veth0", "10.78.0.1"), ("far", "veth0", "10.78.0.2")]
    # Its pid names the namespace that the other interface goes to.
    waits = [sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with lab["far"].popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        there.stdout.readline()
        end = ["name", "veth0", "mtu", "65000"]
        run_ip(
            lab,
            "near",
            ["link", "add", *end, "type", "veth", "peer", *end, "netns", str(there.pid)],
        )
        for name, interface, address in ends:
            run_ip(lab, name, ["address", "add", f"{address}/24", "dev", interface])
            run_ip(lab, name, ["link", "set", interface, "up"])
        there.stdin.close()
    yield ends


def run_ip(lab: Lab, name: str, arguments: list[str]) -> None:
    """The tool of iproute2, on that host."""
    ended = subprocess.run(lab[name].command(["ip", *arguments]), capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(
            f"two namespaces cannot be joined (--wire relay needs no ip): ip {' '.join(arguments)}: "
            f"{ended.stderr.strip()}"
        )


def measure(
    lab: Lab, ends: list[tuple[str, str, str]], case: Case, is_scattered: bool, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round by each way; the first two rounds, which meet every page, are left out."""
    ours, theirs = Pipe()
    pipes, processes = [], []
    for role, between, (name, interface, address) in zip(
        ("sender", "receiver"), (ours, theirs), ends, strict=True
    ):
        pipe, far = Pipe()
        files = [far.fileno(), between.fileno()]
        command = [sys.executable, "-m", "benchmarks.wire_end", role, *map(str, files), address]
        command += map(str, (case.tensors, case.blocks, case.block_bytes, int(is_scattered)))
        environment = {**os.environ, **UCX, "UCX_NET_DEVICES": interface}
        processes.append(lab[name].popen(command, pass_fds=files, env=environment))
        pipes.append(pipe)
        far.close()
    ours.close()
    theirs.close()
    try:
        for pipe in pipes:
            assert pipe.recv() == "ready"
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(WARM_UP + rounds):
            for way in WAYS:
                for pipe in pipes:
                    pipe.send((way, number))
                seconds = max(pipe.recv() for pipe in pipes)
                if number >= WARM_UP:
                    found[way].append(seconds)
        for pipe in pipes:
            pipe.send(("compare", WARM_UP + rounds))
        if not all([pipe.recv() for pipe in pipes]):
            raise SystemExit("bytes are wrong at the receiver")
        return found
    except EOFError:
        raise SystemExit("an end has died") from None
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def shares(found: dict[str, list[float]], way: str) -> list[float]:
    return [bare / seconds for bare, seconds in zip(found["bare"], found[way], strict=True)]


def measure_all(wire: str, total_bytes: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each size of blocks the seconds, GB/s by their medians, and the shares."""
    results: dict[str, dict[str, Any]] = {}
    with Lab("near", "far", seed=1) as lab, joined(lab, wire) as ends:
        for blocks, block_bytes in BLOCKS.items():
            case = case_of(block_bytes, total_bytes)
            found = measure(lab, ends, case, blocks in SCATTERED, rounds)
            results[blocks] = {
                "seconds": found,
                "gb_per_s": {way: case.total_bytes / statistics.median(found[way]) / 1e9 for way in WAYS},
                "of_bare": {way: statistics.median(shares(found, way)) for way in WAYS},
                "load": os.getloadavg()[0],
            }
    return results


def main() -> None:
    options = report.parser(__doc__)
    options.add_argument("--wire", choices=("veth", "relay", "loopback"), default="veth")
    options.add_argument("--mib", type=int, default=256, help="of one transfer, a multiple of 16")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--check", action="store_true", help="fail where a share is less than wanted")
    args = options.parse_args()
    if args.mib < 16 or args.mib % 16:
        raise SystemExit(f"--mib is {args.mib}, expected a multiple of 16")
    facts = report.machine()
    report.print_head(facts)
    results = measure_all(args.wire, args.mib << 20, args.rounds)
    print(f"{args.mib} MiB from process to process over TCP (reno), {args.wire}, median of {args.rounds}:")
    print(f"{'blocks':>8} {'way':>8} {'GB/s':>6} {'of bare':>8} {'wanted':>7}")
    short = []
    for blocks, found in results.items():
        for way in WAYS:
            rate, share, wanted = found["gb_per_s"][way], found["of_bare"][way], WANTED.get((way, blocks))
            told = "" if wanted is None else f"{wanted:.2f}"
            print(f"{blocks:>8} {way:>8} {rate:6.2f} {share:8.2f} {told:>7}")
            if wanted is not None and share < wanted:
                short.append(f"{way}, {blocks}: {share:.2f} of bare NIXL, {wanted} is wanted")
    if args.json:
        report.write(args.json, {"machine": facts, "wire": args.wire, "mib": args.mib, "cases": results})
    if args.check and short:
        raise SystemExit("; ".join(short))


if __name__ == "__main__":
    main()
