"""What is asked of the fleet: that it links, that it serves, and that it loses nodes for an hour."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch_llm_datadist import _native
from torch_llm_datadist.errors import LLMStatusCode

from .. import report
from .costs import LinkCosts, Model, NetworkCosts, Policy
from .events import Cores
from .process import Fleet, NativeLink, Process, simulated_clock
from .traffic import Traffic, each

_LINKED_WITHIN_S = 600.0
_BEFORE_S, _AFTER_S = 2.0, 5.0  # of a failure: while requests are simulated; after it is known
_BEAT_S = 0.05


@dataclass
class SetUp:
    """
    Attributes:
        seconds: from the call of ``link_clusters`` at all prefill processes until the last link is there.
        per_process: the same for each of them by itself.
        cpu_s: of one process, the mean.
        kib: of one process, the mean.
    """

    links: int
    seconds: float
    per_process: list[float]
    cpu_s: float
    kib: float
    messages: int
    message_bytes: int


def set_up(fleet: Fleet) -> SetUp:
    simulation = fleet.simulation
    began = simulation.now
    left = {one: len(others) for one, others in fleet.partners.items()}
    ended: dict[int, float] = {}

    def answered(one: int, other: int, code: LLMStatusCode) -> None:
        if code != LLMStatusCode.LLM_SUCCESS:
            raise SystemExit(f"{one} was not linked to {other}: {code.name}")
        left[one] -= 1
        if not left[one]:
            ended[one] = simulation.now - began

    for one, others in fleet.partners.items():
        fleet.processes[one].link(others, _LINKED_WITHIN_S, partial(answered, one))
    simulation.run(began + _LINKED_WITHIN_S)
    processes = list(fleet.processes.values())
    return SetUp(
        links=sum(map(len, fleet.partners.values())),
        seconds=max(ended.values()),
        per_process=sorted(ended.values()),
        cpu_s=statistics.fmean(process.cpu_s for process in processes),
        kib=statistics.fmean(process.memory_kib() for process in processes),
        messages=fleet.network.messages,
        message_bytes=fleet.network.bytes,
    )


def hub(seed: int, costs: LinkCosts, links: int, model: Model | None = None) -> dict[str, float]:
    """One prefill process that links to so many decode processes at once: what that takes."""
    fleet = Fleet(seed, costs, model)
    fleet.partners[1] = list(range(2, 2 + links))
    for cluster_id in range(1, 2 + links):
        fleet.add(cluster_id)
    with simulated_clock(fleet.simulation):
        found = set_up(fleet)
    process = fleet.processes[1]
    return {"links": links, "seconds": found.seconds, "kib": process.memory_kib(), "cpu_s": process.cpu_s}


def on_one_machine(
    seed: int, costs: LinkCosts, partners: Mapping[int, Sequence[int]], cores: int, model: Model
) -> dict[str, float]:
    """As ``measured.measure``: who links to whom, all at once."""
    fleet = Fleet(seed, costs, model)
    shared = Cores(fleet.simulation, cores, costs.crowd.value)
    fleet.partners = {one: list(others) for one, others in partners.items()}
    for cluster_id in sorted({*partners, *itertools.chain(*partners.values())}):
        fleet.add(cluster_id, shared)
    with simulated_clock(fleet.simulation):
        found = set_up(fleet)
    return {"seconds": found.seconds, "kib": found.kib}


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the straight line through points."""
    slope, intercept = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    off = sum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    spread = sum((y - mean) ** 2 for y in ys)
    return slope, intercept, 1 - off / spread if spread else 1.0


def serve(fleet: Fleet, costs: NetworkCosts, requests: int) -> Traffic:
    """So many requests, spread over all decode processes at the rate of the policy; to their end."""
    traffic = Traffic(fleet, costs)
    simulation, decodes = fleet.simulation, fleet.decodes()
    until = simulation.now + requests / (fleet.policy.requests_per_s * len(decodes))
    each(
        simulation,
        fleet.policy.requests_per_s * len(decodes),
        until,
        lambda: traffic.ask(decodes[simulation.chance.randrange(len(decodes))]),
    )
    simulation.run(until + 300)
    return traffic


@dataclass
class Hour:
    """
    Attributes:
        ended, made: ends of links that a failure ended, and links that were made again.
        noticed_s: from a failure until an end of a link knew of it.
        relinked_s: from the moment at which a process was there again until a link of it was.
    """

    nodes: int = 0
    processes: int = 0
    ended: int = 0
    made: int = 0
    attempts: int = 0
    noticed_s: list[float] = field(default_factory=list)
    relinked_s: list[float] = field(default_factory=list)
    in_doubt: int = 0
    in_doubt_at_the_end: int = 0


class Failures:
    """Nodes that die and come back empty, or are cut off for a while; what the engines do about it."""

    def __init__(self, fleet: Fleet, costs: NetworkCosts, per_node: int) -> None:
        self.fleet, self.traffic, self.hour = fleet, Traffic(fleet, costs), Hour()
        self._idle_tick_s = costs.idle_tick_ms.value / 1e3
        self._per_node = per_node
        self._failed_at: dict[int, float] = {}
        self._back_at: dict[int, float] = {}
        self._clients: dict[int, list[int]] = {}
        for one, others in fleet.partners.items():
            for other in others:
                self._clients.setdefault(other, []).append(one)
        for process in fleet.processes.values():
            process.on_ended = partial(self._link_ended, process)

    def run(self, share_per_hour: float, hours: float = 1.0) -> Hour:
        simulation, count = self.fleet.simulation, len(self.fleet.processes)
        began = simulation.now
        nodes = [
            range(first, min(first + self._per_node, count + 1)) for first in range(1, count, self._per_node)
        ]
        failing = max(1, round(share_per_hour * hours * len(nodes)))
        for node in simulation.chance.sample(nodes, failing):
            when = began + _BEFORE_S + simulation.chance.random() * (3600 * hours - 200)
            is_cut = simulation.chance.random() < self.fleet.policy.cut_share
            simulation.at(when - _BEFORE_S, partial(self._ask_around, node, when))
            simulation.at(when, partial(self._cut if is_cut else self._kill, node))
        simulation.run(began + 3600 * hours)
        self._count_doubts()
        return self.hour

    # Failures.

    def _ask_around(self, node: Sequence[int], when: float) -> None:
        """Requests, as long as the failure matters, at every decode process that it touches."""
        decodes = {cluster_id for cluster_id in node if cluster_id in self._clients}
        for cluster_id in node:
            decodes.update(self.fleet.partners.get(cluster_id, ()))
        until = when + self.fleet.policy.keep_alive_ms / 1e3 + _AFTER_S
        for decode in sorted(decodes):
            each(
                self.fleet.simulation,
                self.fleet.policy.requests_per_s,
                until,
                lambda decode=decode: self._ask(decode),
            )

    def _ask(self, decode: int) -> None:
        if self.fleet.processes[decode].is_up:
            self.traffic.ask(decode)

    def _kill(self, node: Sequence[int]) -> None:
        self._begin(node)
        for cluster_id in node:
            process = self.fleet.processes[cluster_id]
            process.fail()
            self._watch_links_to(process, both_ends=False)
        for cluster_id in node:
            self.traffic.process_failed(cluster_id)
        self.fleet.simulation.after(self.fleet.policy.restart_s, lambda: self._restart(node))

    def _cut(self, node: Sequence[int]) -> None:
        self._begin(node)
        for cluster_id in node:
            self.fleet.processes[cluster_id].cut(self.fleet.policy.cut_s)
        for cluster_id in node:
            self._watch_links_to(self.fleet.processes[cluster_id], both_ends=True)
            self._back_at[cluster_id] = self.fleet.simulation.now + self.fleet.policy.cut_s

    def _begin(self, node: Sequence[int]) -> None:
        self.hour.nodes += 1
        self.hour.processes += len(node)
        for cluster_id in node:
            self._failed_at[cluster_id] = self.fleet.simulation.now

    def _watch_links_to(self, process: Process, *, both_ends: bool) -> None:
        """The watchdogs of the other ends see no more heartbeats; a cut one sees none of theirs, either."""
        for link in list(process.core.links.values()):
            other = self.fleet.processes[link.peer_cluster_id]
            self._watch(other, link.peer_handle, process)
            if both_ends:
                self._watch(process, link.handle, other)

    def _watch(self, here: Process, handle: int, other: Process) -> None:
        simulation, patience_ms = self.fleet.simulation, self.fleet.policy.keep_alive_ms
        last = simulation.now - simulation.chance.random() * _BEAT_S
        liveness = _native.load().Liveness(patience_ms, last - _BEAT_S)
        liveness.look(1, last)

        def look() -> None:
            if not here.is_up:
                return
            if other.is_up and not other.is_cut() and not here.is_cut():
                return  # it beats again
            if liveness.is_lost(simulation.now):
                here.link_died(handle, f"no sign of life for {patience_ms} ms; the peer is frozen or cut off")
            else:
                simulation.after(self._idle_tick_s, look)

        simulation.at(last + patience_ms / 1e3, look)

    # Engines.

    def _restart(self, node: Sequence[int]) -> None:
        for cluster_id in node:
            process = self.fleet.add(cluster_id)
            process.on_ended = partial(self._link_ended, process)
            self._back_at[cluster_id] = self.fleet.simulation.now
            self.traffic.forget(cluster_id)
            if cluster_id in self.fleet.partners:
                for other in self.fleet.partners[cluster_id]:
                    self._link(process, other)

    def _link_ended(self, process: Process, link: NativeLink) -> None:
        other = link.peer_cluster_id
        self.hour.ended += 1
        failed_at = max(self._failed_at.get(other, 0.0), self._failed_at.get(process.cluster_id, 0.0))
        self.hour.noticed_s.append(self.fleet.simulation.now - failed_at)
        peers = [peer for peer in process.control._peers if peer.link == link.handle]
        may_write = any(not peer.cannot_write() for peer in peers)
        self.traffic.link_ended(process.cluster_id, other, link.handle, may_write=may_write)
        if process.cluster_id in self.fleet.partners:
            self.fleet.simulation.after(self.fleet.policy.retry_s, lambda: self._link(process, other))

    def _link(self, process: Process, other: int) -> None:
        """The client's engine tries until it is linked."""
        is_current = self.fleet.processes[process.cluster_id] is process
        if process.is_up and is_current and not process.has_link_to(other):
            self.hour.attempts += 1
            process.link([other], 3.0, partial(self._linked, process))

    def _linked(self, process: Process, other: int, code: Any) -> None:
        simulation = self.fleet.simulation
        if code == LLMStatusCode.LLM_SUCCESS:
            self.hour.made += 1
            back_at = max(self._back_at.get(other, 0.0), self._back_at.get(process.cluster_id, 0.0))
            self.hour.relinked_s.append(simulation.now - back_at)
        else:
            simulation.after(self.fleet.policy.retry_s, lambda: self._link(process, other))

    def _count_doubts(self) -> None:
        self.hour.in_doubt = self.traffic.counts.in_doubt
        for (decode, handle), blocks in self.traffic.in_doubt.items():
            process = self.fleet.processes[decode]
            if handle in {link for _, link, _ in process.control.lost_peers()}:
                self.hour.in_doubt_at_the_end += blocks


def make_fleet(
    seed: int, costs: LinkCosts, count: int, links_each: int, model: Model, policy: Policy
) -> Fleet:
    fleet = Fleet(seed, costs, model, policy)
    fleet.arrange(count, links_each)
    return fleet


def quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "p50": statistics.median(values),
        "p99": report.percentile(values, 0.99),
        "most": max(values),
    }
