"""Real processes of this machine, for the model to be checked against: what each step of a link takes.

Each is forked from a server that has imported torch and touched no device, so sixteen of them are soon there.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

import torch_llm_datadist as datadist
from torch_llm_datadist import _native, control, loop

from .. import instance
from .costs import Constant, LinkCosts, Model

STEPS = ("dial", "hello", "welcome", "join", "joined")
_SETTLED_S = 0.15  # after which threads that a link started have run
_DEVICES = 8
_AT_ONCE = 3  # links of one call
FITTED = 4  # processes: what sharing the processors costs is fitted to their time

# torch_npu's own thread looks for work all the time, which takes a tenth of a core and is no part of a link.
os.environ["TASK_QUEUE_ENABLE"] = "0"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def usual(values: Sequence[float]) -> float:
    """What it takes on this machine, of which others take their share at times: the lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


class Stopwatch:
    """Processor time of the control thread by step, in this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._step = ""
        self._depth = 0
        self._wrap(loop.ControlLoop, "_read", "event")
        self._wrap(control.Control, "begin_link", "dial")
        self._name_steps()

    def _wrap(self, owner: type, name: str, step: str) -> None:
        timed = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            if self._depth == 1:
                self._step = step
            began = time.thread_time()
            try:
                return timed(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds[self._step] += time.thread_time() - began

        setattr(owner, name, run)

    def _name_steps(self) -> None:
        dispatch, on_router = control.Control._dispatch, control.Control._on_router_message

        def named(watched: Any, peer: Any, message: Any) -> None:
            self._step = type(message).__name__.lower()
            dispatch(watched, peer, message)

        def greeted(watched: Any, *given: Any) -> None:
            self._step = "hello"  # unless a peer that is known sent it
            on_router(watched, *given)

        control.Control._dispatch = named  # type: ignore[method-assign]
        control.Control._on_router_message = greeted  # type: ignore[method-assign]


@dataclass
class Spent:
    """By one process since it was asked last."""

    wall_s: float
    cpu_s: float
    steps_s: dict[str, float]
    resident_kib: int


def _resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _serve(pipe: Connection, cluster_id: int, tensors: int) -> None:
    torch.set_num_threads(1)
    watch = Stopwatch()
    device = cluster_id % _DEVICES
    end = instance.start(cluster_id, device)
    raw = [torch.zeros(16, 4096, dtype=torch.uint8, device=f"npu:{device}") for _ in range(tensors)]
    desc = datadist.CacheDesc(tensors, [16, 4096], datadist.DataType.DT_UINT8)
    end.cache_manager.register_blocks_cache(desc, raw, datadist.BlocksCacheKey(cluster_id, 0))
    torch.npu.synchronize()
    pipe.send(end.listen_port)
    cpu_s, wall_s = 0.0, 0.0
    for what, given in iter(pipe.recv, None):
        if what == "begin":
            watch.seconds.clear()
            cpu_s, wall_s = time.process_time(), 0.0
            pipe.send(None)
        elif what == "spent":
            pipe.send(Spent(wall_s, time.process_time() - cpu_s, dict(watch.seconds), _resident_kib()))
        else:
            clusters = [_cluster(*each) for each in given]
            began = time.perf_counter()
            if what == "link":
                code, _ = end.link_clusters(clusters, timeout=60_000)
            else:
                code, _ = end.unlink_clusters(clusters, timeout=10_000)
            wall_s = time.perf_counter() - began
            pipe.send(code.name)
    end.finalize()
    os._exit(0)


def _cluster(cluster_id: int, port: int) -> datadist.LLMClusterInfo:
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info("127.0.0.1", port)
    return info


class Real:
    """So many processes, by cluster id from 1."""

    def __init__(self, count: int, tensors: int) -> None:
        self._pipes: dict[int, Connection] = {}
        self._processes = []
        for cluster_id in range(1, count + 1):
            pipe, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(theirs, cluster_id, tensors), daemon=True)
            process.start()
            theirs.close()
            self._pipes[cluster_id] = pipe
            self._processes.append(process)
        self.ports = {cluster_id: pipe.recv() for cluster_id, pipe in self._pipes.items()}

    def ask(self, what: str, of: dict[int, Any] | None = None) -> dict[int, Any]:
        """All of them at the same time; their answers."""
        asked = dict.fromkeys(self._pipes) if of is None else of
        for cluster_id, given in asked.items():
            self._pipes[cluster_id].send((what, given))
        return {cluster_id: self._pipes[cluster_id].recv() for cluster_id in asked}

    def link(self, wanted: dict[int, Sequence[int]], what: str = "link") -> float:
        """Seconds until the last one has all of its links."""
        began = time.perf_counter()
        said = self.ask(what, {one: [(o, self.ports[o]) for o in others] for one, others in wanted.items()})
        seconds = time.perf_counter() - began
        if set(said.values()) != {"LLM_SUCCESS"}:
            raise SystemExit(f"{what}: {said}")
        return seconds

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.send(None)
        for process in self._processes:
            process.join(20)


@contextmanager
def processes(count: int, tensors: int) -> Iterator[Real]:
    real = Real(count, tensors)
    try:
        yield real
    finally:
        real.close()


def mesh(count: int) -> dict[int, list[int]]:
    """Who links to whom: the first half of the processes to all of the other half."""
    half = count // 2
    return {one: list(range(half + 1, count + 1)) for one in range(1, half + 1)}


def measure(count: int, model: Model) -> dict[str, float]:
    """A mesh of so many fresh processes: seconds until all links are there, and KiB of a process for them."""
    with processes(count, model.tensors) as real:
        time.sleep(_SETTLED_S)
        before = real.ask("spent")
        seconds = real.link(mesh(count))
        time.sleep(_SETTLED_S)
        after = real.ask("spent")
    kib = [after[each].resident_kib - before[each].resident_kib for each in after]
    return {"seconds": seconds, "kib": statistics.mean(kib)}


@dataclass
class Links:
    """What all ends of some links spent while they were made in one call, and shortly after."""

    wall_s: float
    passed_s: float
    cpu_s: float
    steps_s: dict[str, float]

    def control_s(self) -> float:
        return sum(self.steps_s[step] for step in STEPS)


class Calibration:
    """What the steps of one link cost on this machine, from fresh processes whose links are remade: pairs,
    and one that links to three others in one call, which tells what is of the call from what is of a link.
    Two that link to two others at the same time tell what it costs to share the processors."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._first: list[Links] = []
        self._again: list[Links] = []
        self._at_once: list[Links] = []
        self._idle: list[float] = []
        self._idle_of_four: list[float] = []
        self._grown: list[int] = []
        self._two_to_two_s: list[float] = []

    def look(self, links: int) -> None:
        """At a pair and at four processes that make so many links, one after the other."""
        with processes(2, self._model.tensors) as real:
            time.sleep(_SETTLED_S)
            before = real.ask("spent")
            self._first.append(_make_links(real, 1))
            self._grown += [
                after.resident_kib - before[each].resident_kib for each, after in real.ask("spent").items()
            ]
            self._again += [_make_links_again(real, 1) for _ in range(links)]
            self._idle.append(_idle_cpu_per_s(real))
        with processes(1 + _AT_ONCE, self._model.tensors) as real:
            time.sleep(_SETTLED_S)
            _make_links(real, _AT_ONCE)
            self._at_once += [_make_links_again(real, _AT_ONCE) for _ in range(links)]
            self._idle_of_four.append(_idle_cpu_per_s(real))
        self._two_to_two_s += [measure(FITTED, self._model)["seconds"] for _ in range(2)]

    def costs(self, simulate: Callable[[LinkCosts, dict[int, list[int]]], dict[str, float]]) -> LinkCosts:
        """``simulate``: what a model with such costs says of such links on this machine."""
        costs = self._costs_alone()
        # What a crowd of four processes makes of their first links, two to two: between 1 and 3, by halves.
        wanted, least, most = usual(self._two_to_two_s), 1.0, 3.0
        while most - least > 0.01:
            crowd = Constant((least + most) / 2, "tried")
            found = simulate(replace(costs, crowd=crowd), mesh(FITTED))["seconds"]
            least, most = (least, crowd.value) if found > wanted else (crowd.value, most)
        source = f"fitted: {len(self._two_to_two_s)} times {FITTED} processes, linked two to two"
        return replace(costs, crowd=Constant(least, source))

    def _costs_alone(self) -> LinkCosts:
        """While nobody waits for a processor."""
        first, again, at_once = self._first, self._again, self._at_once
        idle, idle_of_four = self._idle, self._idle_of_four

        def usual_us(links: list[Links], what: Callable[[Links], float]) -> float:
            return 1e6 * usual([what(link) for link in links])

        def aside_us(links: list[Links], idle: list[float]) -> float:  # of all ends
            idle_per_s = statistics.median(idle)
            return usual_us(links, lambda link: link.cpu_s - idle_per_s * link.passed_s - link.control_s())

        # Of one of several: what is done twice in a row is done faster.
        found = {
            step: usual_us(at_once, lambda link, step=step: link.steps_s[step]) / _AT_ONCE for step in STEPS
        }
        chain, aside = usual_us(again, Links.control_s), aside_us(again, idle)
        found["aside"] = max(0.0, aside_us(at_once, idle_of_four) - aside) / (2 * (_AT_ONCE - 1))
        found["call"] = max(0.0, aside - 2 * found["aside"])
        # Of its four messages.
        found["latency"] = max(0.0, usual_us(again, lambda link: link.wall_s) - chain - found["call"]) / 4
        found["first"] = max(0.0, usual_us(first, Links.control_s) - chain) / 2
        found["first_aside"] = max(0.0, aside_us(first, idle) - aside) / 2
        links = len(again) // len(first)
        source = f"measured: {len(first)} pairs of processes, {links} links each, on this machine"
        found["looks"] = (
            1e6 * (statistics.median(idle_of_four) + statistics.median(idle)) / (2 + 1 + _AT_ONCE)
        )
        constants = {f"{name}_us": Constant(us, source) for name, us in found.items()}
        sizes = _native.load().link_sizes()
        pages_kib = sizes["pages_per_chunk"] * sizes["page_bytes"] / 1024
        first_kib = max(0.0, statistics.median(self._grown) - pages_kib - LinkCosts().host_kib.value)
        return replace(LinkCosts(), **constants, first_kib=Constant(first_kib, source))


def _idle_cpu_per_s(real: Real) -> float:
    real.ask("begin")
    time.sleep(2 * _SETTLED_S)
    return sum(spent.cpu_s for spent in real.ask("spent").values()) / (2 * _SETTLED_S)


def _make_links_again(real: Real, count: int) -> Links:
    real.link({1: range(2, 2 + count)}, "unlink")
    time.sleep(_SETTLED_S / 3)
    return _make_links(real, count)


def _make_links(real: Real, count: int) -> Links:
    """The first process to so many others, in one call."""
    real.ask("begin")
    began = time.perf_counter()
    wall_s = real.link({1: range(2, 2 + count)})
    time.sleep(_SETTLED_S)
    spent = real.ask("spent").values()
    steps: dict[str, float] = defaultdict(float)
    for each in spent:
        for step, seconds in each.steps_s.items():
            steps[step] += seconds
    return Links(wall_s, time.perf_counter() - began, sum(each.cpu_s for each in spent), steps)
