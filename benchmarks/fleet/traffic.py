"""Requests: a prefill process computes a prompt's layers, and each travels to a decode process as it is done.

Slots, windows of staging and the choice between direct and packed are the product's own; the network and the
devices are modelled: what a process sends, and what it receives, goes one after the other at the link's rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

from torch_llm_datadist import _native
from torch_llm_datadist.errors import LLMException

from .costs import NetworkCosts
from .process import Fleet

_AGAIN_S = 0.05  # until a request is looked at again that found no blocks, or no link


class Fabric:
    """The network between the processes: not blocking in its middle, so only the ends queue."""

    def __init__(self, costs: NetworkCosts) -> None:
        self.bytes_per_s = costs.link_gb_s.value * 1e9
        self.latency_s = costs.latency_us.value / 1e6
        self._out_free: dict[int, float] = {}
        self._in_free: dict[int, float] = {}

    def move(self, src: int, dst: int, size: int, ready: float) -> tuple[float, float]:
        """When the last byte has left, and when it is there."""
        seconds = size / self.bytes_per_s
        began = max(ready, self._out_free.get(src, 0.0))
        left = self._out_free[src] = began + seconds
        there = self._in_free[dst] = max(began + self.latency_s, self._in_free.get(dst, 0.0)) + seconds
        return left, there


class Way:
    """A link in one direction: slots and windows of the sender, windows of the receiver, and who waits."""

    def __init__(self, max_in_flight: int) -> None:
        core = _native.load()
        self.slots = core.SenderSlots(max_in_flight)
        self.windows = core.StagingWindows()
        self.landing = core.StagingWindows()
        self.for_slot: deque[Request] = deque()
        self.for_window: dict[int, deque[Request]] = {}
        self.in_flight: dict[int, Request] = {}
        self.was_packed = False


@dataclass(slots=True, eq=False)
class Request:
    """
    Attributes:
        began, ends: when its prefill computes it.
        credit: chunks that the receiver lets it send.
        sent: chunks, or layers of a direct one.
        free_at: when its stream at the sender is done with what it has.
        landed_at: the same at the receiver.
        is_over: it arrived, or failed.
        was_lost: with the link it was on, or with its decode process.
    """

    number: int
    decode: int
    tokens: int
    born: float
    attempts: int = 0
    prefill: int = 0
    began: float = 0.0
    ends: float = 0.0
    way: Way | None = None
    slot: tuple[int, int] = (0, 0)
    window: int = 0
    src: list[int] = field(default_factory=list)
    dst: list[int] = field(default_factory=list)
    is_packed: bool = False
    chunks: list[int] = field(default_factory=list)
    copies: int = 0
    credit: int = 0
    sent: int = 0
    free_at: float = 0.0
    landed_at: float = 0.0
    step_at: float = -1.0
    is_over: bool = False
    was_lost: bool = False


@dataclass
class Counts:
    added_s: list[float] = field(default_factory=list)
    requests: int = 0
    arrived: int = 0
    packed: int = 0
    bytes: int = 0
    no_slot: int = 0
    no_window: int = 0
    no_credit: int = 0
    no_blocks: int = 0
    no_link: int = 0
    lost: int = 0
    recovered: int = 0
    recovered_s: list[float] = field(default_factory=list)
    in_doubt: int = 0  # blocks


class Traffic:
    def __init__(self, fleet: Fleet, costs: NetworkCosts) -> None:
        self.fleet, self.costs = fleet, costs
        self.fabric = Fabric(costs)
        self.counts = Counts()
        self.ways: dict[tuple[int, int], Way] = {}
        self._core = _native.load()
        self._simulation = fleet.simulation
        self._busy_until: dict[int, float] = {}
        self._free_blocks: dict[int, list[int]] = {}
        self._chunks_of = lru_cache(4096)(self._chunks)
        self.in_doubt: dict[tuple[int, int], int] = {}  # (decode, handle of the link) → blocks

    def ask(self, decode: int) -> None:
        """A user's request at that decode process."""
        low, high = self.fleet.model.prompt_tokens
        tokens = round(low * (high / low) ** self._simulation.chance.random())
        self.counts.requests += 1
        self._place(Request(self.counts.requests, decode, tokens, self._simulation.now))

    def _place(self, request: Request) -> None:
        """On the prefill process that is free first, of those that its decode process is linked to."""
        if not self.fleet.processes[request.decode].is_up:
            return self._lose(request)
        request.attempts += 1
        linked = self.fleet.processes[request.decode].linked_to()
        if not linked:
            self.counts.no_link += 1
            return self._simulation.after(_AGAIN_S, lambda: self._place(request))
        busy = self._busy_until
        request.prefill = min(linked, key=lambda each: (busy.get(each, 0.0), each))
        request.began = max(self._simulation.now, busy.get(request.prefill, 0.0))
        request.ends = request.began + request.tokens / self.fleet.model.prefill_tokens_per_s
        busy[request.prefill] = request.ends
        request.is_over = False
        self._simulation.at(request.began, partial(self._prepare, request, request.attempts))

    # The sender's end.

    def _prepare(self, request: Request, attempt: int) -> None:
        """``prepare_push`` and ``expect``."""
        if request.is_over or request.attempts != attempt:
            return
        key = (request.prefill, request.decode)
        here, there = (self.fleet.processes[end] for end in key)
        if not (here.has_link_to(request.decode) and there.has_link_to(request.prefill)):
            return self._fail(request)
        count = math.ceil(request.tokens / self.fleet.model.block_tokens)
        if not request.dst and not self._take_blocks(request, count):
            self.counts.no_blocks += 1
            return self._simulation.after(_AGAIN_S, partial(self._prepare, request, attempt))
        way = self.ways.get(key)
        if way is None:
            way = self.ways[key] = Way(self.fleet.policy.max_in_flight)
        request.way = way
        way.in_flight[request.number] = request
        try:
            request.slot = way.slots.take("decode")
        except LLMException:
            self.counts.no_slot += 1
            way.for_slot.append(request)
            return None
        self._plan(request, way)
        return self._step_at(request, self._layer_ready(request, 0))

    def _take_blocks(self, request: Request, count: int) -> bool:
        here, there = (self._blocks_of(each) for each in (request.prefill, request.decode))
        if len(here) < count or len(there) < count:
            return False
        request.src, here[-count:] = here[-count:], []
        request.dst, there[-count:] = there[-count:], []
        return True

    def _blocks_of(self, cluster_id: int) -> list[int]:
        """Its free blocks, scattered as they are after some hours of use."""
        blocks = self._free_blocks.get(cluster_id)
        if blocks is None:
            blocks = self._free_blocks[cluster_id] = list(range(self.fleet.model.num_blocks))
            self._simulation.chance.shuffle(blocks)
        return blocks

    def _plan(self, request: Request, way: Way) -> None:
        model, policy = self.fleet.model, self.fleet.policy
        request.window = way.windows.take(*request.slot)
        src, dst = torch.tensor(request.src), torch.tensor(request.dst)
        apart = [(each << 40, each << 40, model.block_bytes, 0, 0) for each in (1, 2)]
        packs, _, _, copies, _, _ = self._core.choose_way(
            self.costs.soc_name, apart, src, dst, model.num_blocks, model.layers, policy.staging_bytes
        )
        request.is_packed, request.copies = packs, copies
        request.sent, request.credit = 0, 0
        request.free_at = request.landed_at = self._simulation.now
        self.counts.packed += packs
        self.counts.bytes += len(request.src) * model.block_bytes * model.tensors
        if packs:
            way.was_packed = True
            request.chunks = self._chunks_of(len(request.src))
            self._claim(request, way)

    def _chunks(self, blocks: int) -> list[int]:
        found: list[int] = self._core.packed_chunks(
            [self.fleet.model.block_bytes] * 2, blocks, self.fleet.policy.staging_bytes
        )
        return found

    def _layer_ready(self, request: Request, layer: int) -> float:
        share = (layer + 1) / self.fleet.model.layers
        return request.began + share * (request.ends - request.began)

    def _step_at(self, request: Request, when: float) -> None:
        """The stream goes on then."""
        if request.step_at != when:
            request.step_at = when
            self._simulation.at(when, partial(self._step, request, request.attempts))

    def _step(self, request: Request, attempt: int) -> None:
        """Sends what may go: all chunks, or layers, that are computed and have a credit."""
        layers = self.fleet.model.layers
        if not self._is_moving(request, attempt):
            return
        per_layer = len(request.chunks) if request.is_packed else 1
        while request.sent < layers * per_layer:
            ready = max(self._layer_ready(request, request.sent // per_layer), request.free_at)
            if ready > self._simulation.now:
                return self._step_at(request, ready)
            if request.is_packed:
                if request.sent >= request.credit:
                    self.counts.no_credit += 1
                    return None  # ``_credit`` goes on
                self._send_chunk(request, request.chunks[request.sent % per_layer])
            else:
                self._send_layer(request)
            request.sent += 1
        self._simulation.at(request.free_at, partial(self._drained, request, attempt))
        return self._simulation.at(request.landed_at, partial(self._arrived, request, attempt))

    def _send_layer(self, request: Request) -> None:
        costs, model = self.costs, self.fleet.model
        copies = request.copies / model.layers
        submitted = copies * costs.submit_copy_us.value / 1e6
        tasks = copies * costs.task_us.value / 1e6
        size = len(request.src) * model.block_bytes * 2
        now = self._simulation.now
        left, there = self.fabric.move(request.prefill, request.decode, size, now)
        request.free_at = max(left + tasks, now + submitted)
        request.landed_at = max(there + tasks, now + submitted + self.fabric.latency_s)

    def _send_chunk(self, request: Request, size: int) -> None:
        kernels = 2 * self.costs.kernel_us.value / 1e6 + 2 * size / (self.costs.memory_gb_s.value * 1e9)
        left, there = self.fabric.move(request.prefill, request.decode, size, self._simulation.now + kernels)
        request.free_at = left
        request.landed_at = max(there, request.landed_at) + kernels
        self._simulation.at(
            request.landed_at + self.fabric.latency_s, partial(self._credit, request, request.attempts, 1)
        )

    def _credit(self, request: Request, attempt: int, chunks: int) -> None:
        if self._is_moving(request, attempt):
            request.credit += chunks
            self._step(request, attempt)

    def _is_moving(self, request: Request, attempt: int) -> bool:
        if request.is_over or request.attempts != attempt:
            return False
        ends = (self.fleet.processes[request.prefill], self.fleet.processes[request.decode])
        return all(end.is_up and not end.is_cut() for end in ends)

    def _drained(self, request: Request, attempt: int) -> None:
        if not self._is_moving(request, attempt):
            return
        assert request.way is not None
        self._give_back_source(request)
        if request.way.slots.drained(*request.slot):
            self._slot_is_free(request.way, request.slot[0])

    def _give_back_source(self, request: Request) -> None:
        self._blocks_of(request.prefill).extend(request.src)
        request.src = []

    def _slot_is_free(self, way: Way, slot: int) -> None:
        way.windows.give_back(slot)
        if way.for_slot:
            waiting = way.for_slot.popleft()
            self._simulation.after(0.0, partial(self._prepare, waiting, waiting.attempts))

    # The receiver's end.

    def _claim(self, request: Request, way: Way) -> None:
        if not way.landing.claim(request.window, request.number):
            self.counts.no_window += 1
            way.for_window.setdefault(request.window, deque()).append(request)
            return
        # A word that travels with the watchdog's next tick says so, and with it come the first credits.
        delay = self.costs.tick_ms.value / 1e3 + self.fabric.latency_s
        first = partial(self._credit, request, request.attempts, self.fleet.sizes["chunks_per_window"])
        self._simulation.after(delay, first)

    def _arrived(self, request: Request, attempt: int) -> None:
        if not self._is_moving(request, attempt):
            return
        way = request.way
        assert way is not None
        request.is_over = True
        self.counts.arrived += 1
        self.counts.added_s.append(self._simulation.now - request.ends)
        if request.was_lost:
            self.counts.recovered += 1
            self.counts.recovered_s.append(self._simulation.now - request.born)
        del way.in_flight[request.number]
        if request.is_packed:
            way.landing.release(request.window, request.number)
            waiting = way.for_window.get(request.window)
            if waiting:
                self._claim(waiting.popleft(), way)
        told = 2 * self.costs.tick_ms.value / 1e3 + self.fabric.latency_s
        self._simulation.after(told, partial(self._retired, way, request.slot))
        self._simulation.after(_DECODES_S, partial(self._blocks_of(request.decode).extend, request.dst))

    def _retired(self, way: Way, slot: tuple[int, int]) -> None:
        if way.slots.retired(*slot):
            self._slot_is_free(way, slot[0])

    # Ends of links.

    def link_ended(self, here: int, other: int, handle: int, *, may_write: bool) -> None:
        """At one end: what was on its way there fails, and is asked for again."""
        way = self.ways.pop((other, here), None)
        if way is not None:
            for request in list(way.in_flight.values()):
                if request.dst and may_write:
                    self.in_doubt[here, handle] = self.in_doubt.get((here, handle), 0) + len(request.dst)
                    self.counts.in_doubt += len(request.dst)
                else:
                    self._blocks_of(here).extend(request.dst)
                request.dst = []
                self._fail(request)

    def _fail(self, request: Request) -> None:
        if request.way is not None:
            request.way.in_flight.pop(request.number, None)
        self._give_back_source(request)
        request.is_over, request.way = True, None
        self._count_as_lost(request)
        self._simulation.after(_AGAIN_S, lambda: self._place(request))

    def _count_as_lost(self, request: Request) -> None:
        self.counts.lost += not request.was_lost
        request.was_lost = True

    def _lose(self, request: Request) -> None:
        """Its decode process is gone: the front end asks another one, when it has noticed."""
        self._count_as_lost(request)
        self._give_back_source(request)
        request.is_over, request.dst, request.way = True, [], None
        others = self.fleet.alive_decodes()
        if others:
            request.decode = others[self._simulation.chance.randrange(len(others))]
        self._simulation.after(self.fleet.policy.front_end_s, lambda: self._place(request))

    def forget(self, cluster_id: int) -> None:
        """It begins anew, empty."""
        self._free_blocks.pop(cluster_id, None)
        self._busy_until.pop(cluster_id, None)

    def process_failed(self, cluster_id: int) -> None:
        """What was there for its users is asked for elsewhere."""
        for (_, decode), way in list(self.ways.items()):
            if decode == cluster_id:
                for request in list(way.in_flight.values()):
                    del way.in_flight[request.number]
                    self._lose(request)


_DECODES_S = 5.0  # that a request's blocks are in use at its decode process; assumed


def each(simulation: Any, rate_per_s: float, until: float, what: Callable[[], object]) -> None:
    """At random, so many per second."""

    def happen() -> None:
        what()
        each(simulation, rate_per_s, until, what)

    when = simulation.now + simulation.chance.expovariate(rate_per_s)
    if when < until:
        simulation.at(when, happen)
