"""One process: the product's control plane, over a native core that keeps books instead of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from torch_llm_datadist import (
    _native,
    comms,
    control,
    farewell,
    handshake,
    link_table,
    peers,
    wire,
)
from torch_llm_datadist.cache import Cache, CacheDesc
from torch_llm_datadist.data_type import DataType
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.handshake import Target
from torch_llm_datadist.identity import Identity, own_identity
from torch_llm_datadist.peer import LinkState, Peer
from torch_llm_datadist.registry import CacheRegistry, LocalCache

from .control_wire import ModelLoop, Network
from .costs import LinkCosts, Model, Policy
from .events import Cores, Simulation

PORT = 26000
_KEY_BYTES = 65  # of an export handle
_CLOCKED = (comms, control, farewell, handshake, link_table, peers)


@dataclass
class Segment:
    handle: bytes
    offset: int
    address: int
    kind: int = 0


@dataclass(eq=False)
class NativeLink:
    """One end.

    Attributes:
        death: why it is down; "" while it lives.
    """

    handle: int
    peer_cluster_id: int
    peer_handle: int = 0
    death: str = ""
    is_closed: bool = False


class Core:
    """In the place of the native instance."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.links: dict[int, NativeLink] = {}
        self.made = 0  # links in all
        self.pages = 0  # that were ever in use at one time
        self._segments = [Segment(b"k" * _KEY_BYTES, 64 * i, 0) for i in range(process.fleet.model.tensors)]

    def open_link(self, cluster_id: int, *_: object, **__: object) -> tuple[int, Segment]:
        handle = self._process.fleet.new_handle()
        self.links[handle] = NativeLink(handle, cluster_id)
        self.made += 1
        self.pages = max(self.pages, len(self.links))
        self._process.opened_link()
        return handle, Segment(b"k" * _KEY_BYTES, 0, 0)

    def export_proofs(self, link: int) -> Segment | None:
        return None

    def link_address(self, link: int) -> bytes:
        return b""

    def connect_link(self, link: int, peer_link: int, *_: object, **__: object) -> None:
        self.links[link].peer_handle = peer_link

    def link_status(self, link: int) -> tuple[bool, int, str]:
        death = self.links[link].death
        return not death, int(LLMStatusCode.LLM_NOT_YET_LINK) if death else 0, death

    def cut_off_of(self, link: int) -> Callable[[], bool]:
        return lambda: False  # mapped links never are; those over NIXL, and HIXL between SuperPods, would be

    def close_link(self, link: int, *_: object) -> None:
        ended = self.links.pop(link)
        ended.is_closed = True
        self._process.closed_link(ended)

    def export_cache(self, *_: object, **__: object) -> Sequence[Segment]:
        return self._segments

    def add_remote_cache(self, *_: object, **__: object) -> None:
        pass

    def drop_remote_cache(self, *_: object) -> None:
        pass

    def is_remote_cache_in_use(self, *_: object) -> bool:
        return False

    def withdraw_cache(self, cache_id: int) -> None:
        pass

    def is_cache_in_use(self, cache_id: int) -> bool:
        return False

    def release_cache(self, cache_id: int) -> None:
        pass


class SimulatedControl(control.Control):
    """Names the step whose time is spent, and nothing else."""

    def _dispatch(self, peer: Peer, message: wire.Message) -> None:
        self.loop.step = type(message).__name__.lower()
        super()._dispatch(peer, message)


class Process:
    """
    Attributes:
        cores: what it runs on, shared with the processes of its machine.
        on_ended: called when this end of a link is closed, for whatever reason.
    """

    def __init__(self, fleet: Fleet, cluster_id: int, cores: Cores) -> None:
        self.fleet, self.cluster_id, self.cores = fleet, cluster_id, cores
        self.ip = f"10.{cluster_id >> 16 & 255}.{cluster_id >> 8 & 255}.{cluster_id & 255}"
        self.is_up = True
        self.latency_s = fleet.link_costs.latency_us.value / 1e6
        self.cut_until = 0.0
        self.on_ended: Callable[[NativeLink], None] = lambda link: None
        self._spent_us = 0.0
        self.cpu_s = 0.0
        self.core = Core(self)
        self._registry = CacheRegistry()
        identity = fleet.identity_of(cluster_id)
        self.control = SimulatedControl(
            self.core, Segment, identity, self._registry, None,
            make_loop=lambda name, on_tick: ModelLoop(self, on_tick),
        )  # type: ignore[arg-type]  # fmt: skip
        self._register(fleet.model)
        self.control._gatekeeper._has_warned = True  # of links without a secret: nobody listens really
        self.control.loop.call(lambda: self.control.listen(self.ip, PORT), 0)
        cores.looking_around += fleet.link_costs.looks_us.value / 1e6

    def _register(self, model: Model) -> None:
        desc = CacheDesc(model.tensors, [model.num_blocks, model.block_bytes], DataType.DT_INT8)
        cache = Cache(1, desc, list(range(4096, 4096 + model.tensors)), True, remote_accessible=True)
        self._registry.add(LocalCache(cache, 0, desc.tensor_sizes))

    # What an engine asks for.

    def link(self, others: Sequence[int], timeout_s: float, answered: Callable[[int, Any], None]) -> None:
        """``link_clusters``, whose answers come one by one."""
        simulation = self.fleet.simulation
        deadline = simulation.now + timeout_s
        call_s = self.fleet.link_costs.call_us.value / 1e6
        self.cpu_s += call_s
        simulation.at(self.cores.use(call_s), partial(self._ask, others, deadline, answered))

    def _ask(self, others: Sequence[int], deadline: float, answered: Callable[[int, Any], None]) -> None:
        for other in others:
            answer: Future[LLMStatusCode] = Future()
            answer.add_done_callback(partial(self._answered, other, answered))
            target = Target(other, self.fleet.processes[other].ip, PORT)
            self.control.loop.post(partial(self._dial, target, deadline, answer))

    def _dial(self, target: Target, deadline: float, answer: Future[LLMStatusCode]) -> None:
        self.control.loop.step = "dial"
        self.control.begin_link(target, deadline, answer)

    def _answered(self, other: int, told: Callable[[int, Any], None], answer: Future[LLMStatusCode]) -> None:
        # When the time of the step is spent.
        self.control.loop.send(lambda: told(other, answer.result()))

    def unlink(self, other: int, answered: Callable[[int, Any], None]) -> None:
        answer: Future[LLMStatusCode] = Future()
        answer.add_done_callback(partial(self._answered, other, answered))
        deadline = self.fleet.simulation.now + 3.0
        self.control.loop.post(partial(self.control.begin_unlink, other, deadline, False, answer))

    def linked_to(self) -> list[int]:
        return self.control.table.cluster_ids()

    def has_link_to(self, other: int) -> bool:
        return other in self.control.table._links

    def is_cut(self) -> bool:
        return self.fleet.simulation.now < self.cut_until

    def cut(self, seconds: float) -> None:
        self.cut_until = self.fleet.simulation.now + seconds

    def fail(self) -> None:
        """From one moment to the next, and without a word: power, or the network."""
        self.is_up = False
        self.fleet.network.listeners.pop(f"tcp://{self.ip}:{PORT}", None)

    # What the model asks for.

    def opened_link(self) -> None:
        costs, fleet = self.fleet.link_costs, self.fleet
        aside_us = costs.aside_us.value
        if self.core.made == 1:
            self._spent_us += costs.first_us.value + costs.first_aside_us.value
        elif (
            len(self.core.links) == self.core.pages and self.core.pages % fleet.sizes["pages_per_chunk"] == 1
        ):
            self._spent_us += costs.chunk_us.value
        self.cpu_s += aside_us / 1e6
        self.cores.use(aside_us / 1e6)

    def closed_link(self, link: NativeLink) -> None:
        self.on_ended(link)

    def link_died(self, handle: int, why: str) -> None:
        """The watchdog's verdict; the control thread finds it when it looks next."""
        link = self.core.links.get(handle)
        if link is not None and not link.death:
            link.death = why
            self.control.loop.wake_at(max(self.fleet.simulation.now, self._next_status_poll()))

    def spend(self, step: str) -> float:
        """When the processor is through with it."""
        costs = self.fleet.link_costs
        us, self._spent_us = self._spent_us, 0.0
        if step == "tick":
            us += costs.peer_look_us.value * sum(1 for _ in self.control._peers)
        else:
            us += costs.of_step(step)
        self.cpu_s += us / 1e6
        return self.cores.use(us / 1e6) if us else self.fleet.simulation.now

    def next_look(self, wanted_s: float | None) -> float | None:
        """When the thread has something to do, without the looks at links that are known to live."""
        if wanted_s is None:
            return None
        times = [peer.deadline for peer in self.control._peers if peer.deadline]
        if any(link.death for link in self.core.links.values()):
            times.append(self._next_status_poll())
        if any(peer.state in _LEAVING and not peer.is_bye_sent for peer in self.control._peers):
            times.append(self.fleet.simulation.now + wanted_s)
        return min(times, default=None)

    def _next_status_poll(self) -> float:
        return self.control._farewell._next_status_poll

    def memory_kib(self, staging_links: int = 0) -> float:
        """Beyond what it has without a link: pages in chunks, and what a link takes on the host."""
        sizes, costs = self.fleet.sizes, self.fleet.link_costs
        chunks = math.ceil(self.core.pages / sizes["pages_per_chunk"])
        pages = chunks * sizes["pages_per_chunk"] * sizes["page_bytes"] / 1024
        first = costs.first_kib.value if self.core.made else 0.0
        staging = staging_links * self.fleet.policy.staging_bytes / 1024
        return first + pages + len(self.core.links) * costs.host_kib.value + staging


_LEAVING = (LinkState.UNLINKING, LinkState.LEAVING)


class Fleet:
    """
    Attributes:
        processes: by cluster id; those of decode come after those of prefill.
        partners: of each prefill process, the decode processes that it links to.
    """

    def __init__(
        self, seed: int, link_costs: LinkCosts, model: Model | None = None, policy: Policy | None = None
    ) -> None:
        self.simulation = Simulation(seed)
        self.link_costs, self.model, self.policy = link_costs, model or Model(), policy or Policy()
        self.network = Network()
        self.processes: dict[int, Process] = {}
        self.partners: dict[int, list[int]] = {}
        self.sizes: dict[str, int] = _native.load().link_sizes()
        self._handles = 0
        self._identity = own_identity(1, 0, remote_accessible=True, cann="simulated")

    def add(self, cluster_id: int, cores: Cores | None = None) -> Process:
        """A process; without ``cores`` on a machine of its own."""
        cores = cores or Cores(self.simulation, 2, self.link_costs.crowd.value)
        process = Process(self, cluster_id, cores)
        self.processes[cluster_id] = process
        return process

    def arrange(self, count: int, links_each: int) -> None:
        """Half of them prefill, half decode, and so many links each, as evenly as can be."""
        half = count // 2
        for cluster_id in range(1, 2 * half + 1):
            self.add(cluster_id)
        links_each = min(links_each, half)
        apart = half // links_each  # so that no node has all the partners of a process
        for one in range(half):
            self.partners[1 + one] = [half + 1 + (one + k * apart) % half for k in range(links_each)]

    def decodes(self) -> range:
        return range(len(self.partners) + 1, 2 * len(self.partners) + 1)

    def alive_decodes(self) -> list[int]:
        return [each for each in self.decodes() if self.processes[each].is_up]

    def identity_of(self, cluster_id: int) -> Identity:
        return msgspec.structs.replace(
            self._identity,
            cluster_id=cluster_id,
            instance=self.simulation.chance.getrandbits(63),
            host="simulated",  # not this machine: nobody looks for its processes here
            pid=cluster_id,
            start_time=1,
        )

    def new_handle(self) -> int:
        self._handles = self._handles % (2**31 - 1) + 1
        return self._handles


@contextmanager
def simulated_clock(simulation: Simulation) -> Iterator[None]:
    """The control plane asks ``time.monotonic`` for the time; within, it is told the simulation's."""
    real = [module.time for module in _CLOCKED]
    for module in _CLOCKED:
        module.time = simulation
    try:
        yield
    finally:
        for module, clock in zip(_CLOCKED, real, strict=True):
            module.time = clock
