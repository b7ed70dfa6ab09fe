"""Links between hosts of one SuperPod (Atlas A3), emulated: memory is mapped by fabric handles."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import caches, instances
from tests.caches import describe
from tests.peers import Peer, PeerError
from tests.test_ordering import LAYERS, check_a_layered_forward
from torch_llm_datadist import BlocksCacheKey, Placement, _native
from torch_llm_datadist.doctor import peer as doctor_peer
from torch_llm_datadist.identity import HOST_ID_VARIABLE
from torch_llm_datadist.transports import TRANSPORT_VARIABLE

BLOCKS, BLOCK_BYTES = 8, 4096
POOL = {"mem_pool_cfg": json.dumps({"memory_size": 4 << 20})}
NEAR, FAR, BEYOND = ("near", "7"), ("far", "7"), ("beyond", "8")


class Machines:
    """Processes of a module, one per host and started when it is first asked for: that takes seconds."""

    def __init__(self) -> None:
        self._peers: dict[tuple[str, ...], Peer] = {}
        self._busy: list[Peer] = []

    def __call__(self, host: str, pod: str, number: int = 0) -> Peer:
        key = (host, pod, str(number))
        if key not in self._peers:
            emulated = "TORCH_LLM_DATADIST_EMULATE_"
            given = {
                HOST_ID_VARIABLE: host,
                f"{emulated}HOST": host,
                f"{emulated}SUPER_POD": pod,
                f"{emulated}PROFILE": "A3",
            }
            with pytest.MonkeyPatch.context() as patch:
                for name, value in given.items():
                    patch.setenv(name, value)
                self._peers[key] = Peer(afresh=True)
        self._busy.append(self._peers[key])
        return self._peers[key]

    def end_instances(self) -> None:
        for peer in self._busy:
            peer.call(finalize)
        self._busy.clear()

    def stop(self) -> None:
        for peer in self._peers.values():
            peer.stop()


@pytest.fixture(scope="module")
def module_machines() -> Iterator[Machines]:
    machines = Machines()
    yield machines
    machines.stop()


@pytest.fixture
def machines(module_machines: Machines) -> Iterator[Machines]:
    yield module_machines
    module_machines.end_instances()


def finalize(state: SimpleNamespace) -> None:
    state.datadist.finalize()
    state.caches, state.raw = {}, {}


def infos(state: SimpleNamespace) -> list[tuple[str, str]]:
    return [(info.transport, info.passed_over) for info in state.datadist.links()]


def allocate(state: SimpleNamespace, seed: int) -> None:
    key = BlocksCacheKey(state.cluster_id, 0)
    caches.add(state, "cache", seed, describe(4, BLOCKS, BLOCK_BYTES), is_blocks=True, key=key, allocate=True)


def content(seed: int) -> list[torch.Tensor]:
    return caches.rows(caches.bytes_of(seed, [BLOCKS * BLOCK_BYTES] * 4), BLOCKS)


def looks_like(state: SimpleNamespace, expected: list[torch.Tensor]) -> bool:
    return caches.equal(caches.look(state, "cache"), expected)


def push(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> None:
    manager = state.datadist.cache_manager
    manager.push_blocks(BlocksCacheKey(cluster_id, 0), state.caches["cache"], src, dst)


def pull(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int], model_id: int = 0) -> None:
    manager = state.datadist.cache_manager
    manager.pull_blocks(BlocksCacheKey(cluster_id, model_id), state.caches["cache"], src, dst)


def started(
    a: Peer,
    b: Peer,
    options: dict[str, Any],
    other: dict[str, Any] | None = None,
    untold: tuple[int, ...] = (),
) -> int:
    """``untold``: clusters whose driver does not tell its SuperPod."""
    a.call(start_untold if 1 in untold else instances.start, 1, 0, options)
    port = b.call(start_untold if 2 in untold else instances.start, 2, 1, options if other is None else other)
    return int(port)


def start_untold(state: SimpleNamespace, cluster_id: int, device: int, options: dict[str, Any]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native.load(), "super_pod_of", lambda device: -1)
        return instances.start(state, cluster_id, device, options)


def linked(
    a: Peer,
    b: Peer,
    options: dict[str, Any],
    other: dict[str, Any] | None = None,
    untold: tuple[int, ...] = (),
) -> None:
    port = started(a, b, options, other, untold)
    a.call(allocate, 1)
    b.call(allocate, 2)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)


def transferred(a: Peer, b: Peer) -> None:
    """Pushes, pulls, and looks at all bytes of both."""
    a.call(push, 2, [0, 1, 5], [3, 4, 7])
    a.call(pull, 2, [2], [6])
    b.call(push, 1, [1], [2])
    ours, theirs = content(1), content(2)
    for one, other in zip(ours, theirs, strict=True):
        mine = one.clone()
        one[6] = other[2]
        one[2] = other[1]
        other[[3, 4, 7]] = mine[[0, 1, 5]]
    assert a.call(looks_like, ours)
    assert b.call(looks_like, theirs)


def test_hosts_of_a_super_pod_map_each_others_pools(machines):
    a, b = machines(*NEAR), machines(*FAR)

    linked(a, b, POOL)

    for peer in (a, b):
        ((transport, passed_over),) = peer.call(infos)
        assert transport == "fabric"
        assert passed_over.startswith("mapped: different hosts")
    transferred(a, b)


def allocate_layers(state: SimpleNamespace, seed: int) -> None:
    """As ``instances.register`` would, out of the pool."""
    content = instances.pattern(seed, 2 * LAYERS, 24, 256)
    desc = describe(2 * LAYERS, 24, 256)
    key = BlocksCacheKey(state.cluster_id, 0)
    state.cache = state.datadist.cache_manager.allocate_blocks_cache(desc, key)
    state.raw = list(state.cache.tensors)
    for tensor, bytes_ in zip(state.raw, content, strict=True):
        tensor.copy_(bytes_)
    torch.npu.synchronize(state.device)


def test_a_layered_forward_crosses_hosts(machines):
    a, b = machines(*NEAR), machines(*FAR)
    port = started(a, b, POOL)
    a.call(allocate_layers, 10)
    b.call(allocate_layers, 20)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)

    check_a_layered_forward(a, b)


def test_on_one_host_the_same_memory_is_mapped_by_the_same_handle(machines):
    a, b = machines(*NEAR), machines(*NEAR, number=1)

    linked(a, b, POOL)

    assert a.call(infos) == b.call(infos) == [("mapped", "")]
    transferred(a, b)


def test_another_super_pod_is_reached_by_the_engine(machines):
    a, b = machines(*NEAR), machines(*BEYOND)

    linked(a, b, POOL)

    ((transport, passed_over),) = a.call(infos)
    assert transport == "hixl"
    assert "fabric: different SuperPods (7 and 8)" in passed_over
    transferred(a, b)


@pytest.mark.parametrize("untold", [(1, 2), (1,), (2,)], ids=["both", "client", "server"])
def test_hosts_that_may_be_of_no_super_pod_are_reached_by_the_engine(machines, untold):
    a, b = machines(*NEAR), machines(*FAR)
    linked(a, b, POOL, untold=untold)

    for peer in (a, b):
        ((transport, passed_over),) = peer.call(infos)
        assert transport == "hixl"
        assert f"fabric: cluster {untold[0]}: its driver does not tell its SuperPod" in passed_over
        assert "transport='fabric' takes it all the same" in passed_over
    transferred(a, b)


@pytest.mark.parametrize("who", [(1, 2), (1,), (2,)], ids=["both", "client", "server"])
def test_fabric_is_taken_on_request_where_drivers_tell_no_super_pod(machines, who):
    a, b = machines(*NEAR), machines(*FAR)
    wishes = {**POOL, "transport": "fabric"}
    options = [wishes if cluster_id in who else POOL for cluster_id in (1, 2)]

    linked(a, b, *options, untold=(1, 2))

    for peer in (a, b):
        assert [transport for transport, _ in peer.call(infos)] == ["fabric"]
    transferred(a, b)


def test_another_super_pod_is_refused_even_on_request(machines):
    a, b = machines(*NEAR), machines(*BEYOND)
    port = started(a, b, {**POOL, "transport": "fabric"}, POOL)

    assert a.call(instances.link, 2, port) == ["LLM_LINK_FAILED"]


def examined(state: SimpleNamespace, port: int) -> tuple[str, str]:
    """What the doctor says of the peer that listens there, to one who wants fabric handles only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRANSPORT_VARIABLE, "fabric")
        *_, last = doctor_peer.examine("127.0.0.1", port)
    return last.state, last.found


@pytest.mark.parametrize(
    ("there", "state", "said"),
    [(FAR, "ok", "would link over fabric"), (BEYOND, "note", "fabric: different SuperPods (8 and 7)")],
    ids=["same", "another"],
)
def test_the_doctor_tells_its_super_pod_when_it_greets(machines, there, state, said):
    a, b = machines(*NEAR), machines(*there)
    port = started(a, b, POOL)

    found = a.call(examined, port)

    assert found[0] == state
    assert said in found[1]


def test_without_a_pool_hosts_are_reached_by_the_engine(machines):
    a, b = machines(*NEAR), machines(*FAR)
    port = started(a, b, POOL, {})

    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]

    ((transport, passed_over),) = a.call(infos)
    assert transport == "hixl"
    assert "fabric: cluster 2: the instance has no mem_pool_cfg" in passed_over


@pytest.mark.parametrize(
    ("placement", "named"),
    [(Placement.DEVICE, "memory of mem_pool_cfg"), (Placement.HOST, "a host cache is not reached")],
)
def test_memory_that_has_no_fabric_handle_is_refused_by_name_and_can_be_sent_from(machines, placement, named):
    a, b = machines(*NEAR), machines(*FAR)
    linked(a, b, POOL)

    said = a.call(register_other, placement)

    assert named in said
    with pytest.raises(PeerError, match="KvCacheNotExist"):
        b.call(pull, 1, [0], [0], 5)
    a.call(push_other, 2)
    theirs = content(2)
    sent = caches.rows(caches.bytes_of(3, [BLOCKS * BLOCK_BYTES] * 4), BLOCKS)
    for other, one in zip(theirs, sent, strict=True):
        other[1] = one[0]
    assert b.call(looks_like, theirs)


def register_other(state: SimpleNamespace, placement: Placement) -> str:
    """A cache that is not of the pool; returns what the log said of it."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torch_llm_datadist").addHandler(handler)
    desc = describe(4, BLOCKS, BLOCK_BYTES, placement)
    key = BlocksCacheKey(state.cluster_id, 5)
    caches.add(state, "other", 3, desc, is_blocks=True, key=key, remote_accessible=True)
    deadline = time.monotonic() + 20
    while not records:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    logging.getLogger("torch_llm_datadist").removeHandler(handler)
    return records[0]


def push_other(state: SimpleNamespace, cluster_id: int) -> None:
    manager = state.datadist.cache_manager
    manager.push_blocks(BlocksCacheKey(cluster_id, 0), state.caches["other"], [0], [1])


def test_a_pool_can_be_made_again_and_again(machines):
    a, b = machines(*NEAR), machines(*FAR)
    for _ in range(3):
        linked(a, b, POOL)
        transferred(a, b)
        a.call(finalize)
        b.call(finalize)
    linked(a, b, POOL)
