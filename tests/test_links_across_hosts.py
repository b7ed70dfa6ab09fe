"""Links between emulated hosts: over engines, by TCP, by a network that is slow, drops packets or is cut."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.peers import HostPeer
from tests.test_emulated_hosts import made
from tests.test_failures import bind_ticket, push_some_layers, wait_for_layers
from tests.test_ordering import DST, LAYERS, SRC, prepare
from torch_llm_datadist.emulator.hosts import Lab
from torch_llm_datadist.transports import nixl_library

KEEP_ALIVE_S = 3.0
CUT_S = 5.0
LARGE_BLOCK = 96 << 10
CHUNK = 256 << 10  # short, so that signs of life do not wait long behind data on a slow wire
SLOW = 6 << 20  # bytes a second: a push of all blocks takes three
# From the cut on. A busy machine may hold a process for seconds; a cut is not healed before both ends know.
NOTICED_WITHIN_S = KEEP_ALIVE_S + 5.0
LOST = datadist.LLMStatusCode.LLM_NOT_YET_LINK


@pytest.fixture
def lab() -> Iterator[Lab]:
    with made("near", "far") as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[HostPeer, HostPeer]]:
    """Prefill near, decode far, linked."""
    with linked(lab, 256) as pair:
        yield pair


@contextlib.contextmanager
def linked(lab: Lab, block_bytes: int, **more: Any) -> Iterator[tuple[HostPeer, HostPeer]]:
    options = {"keep_alive_ms": int(KEEP_ALIVE_S * 1000), "transport": "nixl", **more}
    if options["transport"] == "nixl" and nixl_library()[1]:
        pytest.skip(nixl_library()[1])
    with started(lab, **options) as (a, b, port):
        for cluster_id, peer in ((1, a), (2, b)):
            peer.call(instances.register, cluster_id, 2 * LAYERS, 24, block_bytes)
        assert a.call(link, lab["far"].address, port) == ["LLM_SUCCESS"]
        b.call(instances.wait_linked, 1)
        yield a, b


@contextlib.contextmanager
def started(lab: Lab, port: int = 0, **options: Any) -> Iterator[tuple[HostPeer, HostPeer, int]]:
    """Cluster 1 near, cluster 2 far, and the port at which the latter listens; not linked."""
    with contextlib.ExitStack() as stack:
        a, b = (HostPeer(lab[name]) for name in ("near", "far"))
        stack.callback(a.stop)
        stack.callback(b.stop)
        a.send(instances.start, 1, 0, {**options, "listen_ip_info": f"{lab['near'].address}:{port}"})
        b.send(instances.start, 2, 1, {**options, "listen_ip_info": f"{lab['far'].address}:{port}"})
        a.answer()
        yield a, b, b.answer()


def link(state: SimpleNamespace, address: str, port: int) -> list[str]:
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = 2
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(address, port)
    state.target = (address, port)
    return [code.name for code in state.datadist.link_clusters([info], timeout=10_000)[1]]


def relink(state: SimpleNamespace) -> list[str]:
    return link(state, *state.target)


def transports(state: SimpleNamespace) -> list[tuple[str, str]]:
    return [(one.transport, one.passed_over) for one in state.datadist.links()]


def watch_link(state: SimpleNamespace, cluster_id: int) -> None:
    """Notes when this end knows that the link is lost, whatever else it does meanwhile."""

    def watch() -> None:
        with contextlib.suppress(datadist.LLMException):
            while True:
                state.datadist.link_id(cluster_id)
                time.sleep(0.01)
        state.lost_at = time.monotonic()

    state.watcher = threading.Thread(target=watch, daemon=True)
    state.watcher.start()


def lost_at(state: SimpleNamespace) -> float:
    """By the clock that all hosts share, as they share the kernel."""
    state.watcher.join(NOTICED_WITHIN_S)
    assert not state.watcher.is_alive(), "the link is still there"
    return float(state.lost_at)


def content_bytes(state: SimpleNamespace) -> bytes:
    return instances.content(state).numpy().tobytes()


def content(peer: HostPeer) -> torch.Tensor:
    """As bytes: a process that was not forked from this one's server shares no tensors with it."""
    return whole(peer.call(content_bytes))


def whole(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(2 * LAYERS, 24, -1)


def pattern(seed: int, block_bytes: int = 256) -> torch.Tensor:
    return instances.pattern(seed, 2 * LAYERS, 24, block_bytes)


def test_instances_on_different_hosts_link_over_nixl_and_say_so(pair: Any) -> None:
    a, b = pair

    for peer in pair:
        [(name, passed_over)] = peer.call(transports)
        assert name == "nixl"
        assert "mapped: cluster 1: this instance was told to use 'nixl'" in passed_over

    a.call(instances.push_blocks, 2, SRC, DST)
    expected = pattern(2)
    expected[:, DST] = pattern(1)[:, SRC]
    assert torch.equal(content(b), expected)


def interface_bytes_sent(state: SimpleNamespace) -> int:
    """Of everything but loopback."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    fields = {name.strip(): values.split() for name, _, values in (line.partition(":") for line in lines)}
    return sum(int(values[8]) for name, values in fields.items() if name != "lo")


def push_everything(state: SimpleNamespace) -> float:
    began = time.monotonic()
    instances.push_blocks(state, 2, [*range(24)], [*range(24)])
    return time.monotonic() - began


def test_the_bytes_of_a_push_cross_the_network_and_take_the_time_that_it_needs(lab: Lab) -> None:
    """The hosts share a kernel and /dev/shm, through which UCX would find another way."""
    with linked(lab, LARGE_BLOCK, engine_chunk_bytes=CHUNK, keep_alive_ms=20_000) as (a, b):
        payload = pattern(1, LARGE_BLOCK).numel()
        before = a.call(interface_bytes_sent), b.call(interface_bytes_sent)

        a.call(push_everything)

        assert a.call(interface_bytes_sent) - before[0] >= payload
        assert b.call(interface_bytes_sent) - before[1] < payload / 4
        assert torch.equal(content(b), pattern(1, LARGE_BLOCK))
        lab.network.shape(bytes_per_s=SLOW)
        assert a.call(push_everything) >= 0.8 * payload / SLOW


def tcp_ports(state: SimpleNamespace) -> tuple[set[int], set[tuple[int, int]]]:
    """Of this host: where somebody listens, but for the instance itself, and both ends of each connection."""
    listening, connected = set(), set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, status, *_ = line.split()
        here, there = (int(end.partition(":")[2], 16) for end in (local, remote))
        if here == state.datadist.listen_port or there == state.target[1]:
            continue
        if status == "0A":
            listening.add(here)
        elif status == "01":
            connected.add((here, there))
    return listening, connected


def test_data_connections_go_to_the_ports_that_ucx_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/deploy.md says to who has a firewall."""
    allowed = range(27000, 27100)
    monkeypatch.setenv("UCX_TCP_PORT_RANGE", f"{allowed[0]}-{allowed[-1]}")
    with made("near", "far") as lab, linked(lab, 256) as (a, _b):
        a.call(instances.push_blocks, 2, SRC, DST)

        listening, connected = a.call(tcp_ports)

        assert listening
        assert listening <= set(allowed)
        assert connected
        assert all(here in allowed or there in allowed for here, there in connected)


def test_layers_arrive_whole_over_a_network_that_is_slow_and_loses_packets(lab: Lab, pair: Any) -> None:
    a, b = pair
    lab.network.shape(delay_s=0.02, loss=0.001)
    b.call(bind_ticket, a.call(prepare), 30.0)

    assert a.call(push_some_layers, range(LAYERS), 30.0)[0] == 0
    assert b.call(wait_for_layers)[0] == 0

    expected = pattern(2)
    expected[:, DST] = pattern(1)[:, SRC]
    assert torch.equal(content(b), expected)


def cut(lab: Lab) -> float:
    """The moment from which on nothing crosses; a little before it, maybe."""
    now = time.monotonic()
    lab.network.cut("near", "far")
    return now


def test_a_cut_is_noticed_at_both_ends_and_a_relink_works_after_it(lab: Lab, pair: Any) -> None:
    a, b = pair
    b.call(bind_ticket, a.call(prepare), 60.0)
    for peer, other in ((a, 2), (b, 1)):
        peer.call(watch_link, other)
    b.send(wait_for_layers)
    cut_at = cut(lab)

    status, seconds, _ = b.answer()

    assert status == LOST
    assert seconds < NOTICED_WITHIN_S
    for peer in pair:
        assert 0 < peer.call(lost_at) - cut_at < NOTICED_WITHIN_S
    assert torch.equal(content(b), pattern(2))
    lab.network.heal("near", "far")
    assert a.call(relink) == ["LLM_SUCCESS"]
    a.call(instances.push_blocks, 2, SRC, DST)
    expected = pattern(2)
    expected[:, DST] = pattern(1)[:, SRC]
    assert torch.equal(content(b), expected)


def prepare_all(state: SimpleNamespace) -> int:
    blocks = [*range(24)]
    key = datadist.BlocksCacheKey(2, 0)
    state.task = state.datadist.cache_manager.prepare_push(key, state.cache, blocks, blocks)
    return int(state.task.ticket)


def read_each_layer(state: SimpleNamespace, ticket: int) -> None:
    """Queues a consumer of each layer behind its wait, with a status of its own."""
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([ticket], timeout_s=60.0)
    state.statuses = [torch.zeros_like(state.status) for _ in range(LAYERS)]
    state.seen = []
    for layer, status in enumerate(state.statuses):
        datadist.ops.wait_layer(status, status, layer, binding.id)
        state.seen += [state.raw[2 * layer].clone(), state.raw[2 * layer + 1].clone()]


def what_was_read(state: SimpleNamespace) -> tuple[list[int], bytes, float]:
    """Of each layer its status and bytes, and when the last one was known."""
    torch.npu.synchronize(state.device)
    known_at = time.monotonic()
    seen = torch.stack([tensor.cpu() for tensor in state.seen])
    return [int(status.item()) for status in state.statuses], seen.numpy().tobytes(), known_at


def push_all_layers(state: SimpleNamespace) -> tuple[int, float]:
    """How it ended, and when that was known."""
    binding = datadist.Binding(state.device, range(LAYERS))
    binding.bind([state.task], timeout_s=60.0)
    for layer in range(LAYERS):
        datadist.ops.push_layer(state.status, state.status, layer, binding.id)
    datadist.ops.finish(state.status, state.status, binding.id)
    torch.npu.synchronize(state.device)
    known_at = time.monotonic()
    return int(state.status.item()), known_at


def wait_until_a_layer_has_come(state: SimpleNamespace) -> bool:
    """Until a part of the second layer is there; False when all of the last one is, too."""
    with torch.npu.stream(torch.npu.Stream(state.device)):
        second, last = state.raw[2], state.raw[-1]
        before = second.cpu(), last.cpu()
        deadline = time.monotonic() + 20.0
        while torch.equal(second.cpu(), before[0]):
            assert time.monotonic() < deadline, "nothing came"
        return torch.equal(last.cpu(), before[1])


@pytest.mark.races_on_purpose("looks until some of it has come")
@pytest.mark.parametrize("transport", ["nixl", "hixl"])
def test_a_cut_in_the_middle_of_a_push_shows_nothing_wrong_and_a_relink_works_after_it(
    lab: Lab, transport: str
) -> None:
    with linked(lab, LARGE_BLOCK, engine_chunk_bytes=CHUNK, transport=transport) as (a, b):
        new = pattern(1, LARGE_BLOCK)
        b.call(read_each_layer, a.call(prepare_all))
        for peer, other in ((a, 2), (b, 1)):
            peer.call(watch_link, other)
        lab.network.shape(bytes_per_s=SLOW)
        a.send(push_all_layers)
        assert b.call(wait_until_a_layer_has_come)

        b.send(what_was_read)
        cut_at = cut(lab)
        sent, sent_at = a.answer()
        statuses, raw, read_at = b.answer()
        for known_at in (sent_at, read_at, a.call(lost_at), b.call(lost_at)):
            assert 0 < known_at - cut_at < NOTICED_WITHIN_S
        assert sent == LOST
        assert set(statuses) <= {0, LOST}
        assert statuses[0] == 0
        assert statuses[-1] == LOST
        for layer, status in enumerate(statuses):
            if status == 0:
                assert torch.equal(whole(raw)[2 * layer : 2 * layer + 2], new[2 * layer : 2 * layer + 2])
        left = content(b)
        assert not torch.equal(left, new)

        time.sleep(max(0.0, CUT_S - (time.monotonic() - cut_at)))
        lab.network.shape()
        lab.network.heal("near", "far")
        assert a.call(relink) == ["LLM_SUCCESS"]
        assert torch.equal(content(b), left)  # nothing that was on the way came after all
        a.call(instances.push_blocks, 2, [*range(24)], [*range(24)])
        assert torch.equal(content(b), new)
