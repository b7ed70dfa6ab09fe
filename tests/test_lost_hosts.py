"""A peer on another host is lost in the middle of its push, and nobody will ever tell what became of it: over
NIXL this end takes its memory back by itself, and it is used again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from tests import instances
from tests.links import push, wait_unlinked
from tests.peers import HostPeer, Peer
from tests.test_api_lost_peers import unregister, wait_released
from tests.test_blocks_in_doubt import doubts, until_there_are
from tests.test_emulated_hosts import made
from torch_llm_datadist.emulator.hosts import Lab
from torch_llm_datadist.identity import HOST_ID_VARIABLE, Identity, may_share_super_pod, own_identity
from torch_llm_datadist.transports import nixl_library

pytestmark = pytest.mark.skipif(bool(nixl_library()[1]), reason=nixl_library()[1])

SURVIVOR, VICTIM, BYSTANDER = 1, 2, 3
STARTS_WITHIN_S = 300.0  # three that import torch at once
NOTICED_WITHIN_S = 20.0
TENSORS, BLOCKS, BLOCK_BYTES = 2, 8, 1 << 20
CHUNK = 256 << 10  # short, so that signs of life do not wait long behind data on a slow wire
SLOW = 6 << 20  # bytes a second: a push of all blocks takes three
NEXT = 77  # what the survivor writes into its blocks once they are its own again
EVERYTHING = list(range(BLOCKS))


def start(state: SimpleNamespace, cluster_id: int, address: str, transport: str = "nixl") -> int:
    options = {
        "transport": transport,
        "listen_ip_info": f"{address}:0",
        "keep_alive_ms": 1000,
        "engine_chunk_bytes": CHUNK,
    }
    port = instances.start(state, cluster_id, cluster_id - 1, options)
    instances.register(state, cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
    return port


class Scene:
    """Three hosts with a process each; the survivor is linked with the two others."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab, self._stack = lab, stack
        self.survivor, self.victim, self.bystander = (self._host(name) for name in ("near", "far", "side"))
        self.survivor.answer(STARTS_WITHIN_S)
        self.link(self.victim, VICTIM, "far")
        self.link(self.bystander, BYSTANDER, "side")

    def _host(self, name: str) -> HostPeer:
        peer = HostPeer(self.lab[name])
        self._stack.callback(peer.stop)
        cluster_id = 1 + ("near", "far", "side").index(name)
        peer.send(start, cluster_id, self.lab[name].address)
        return peer

    def link(self, peer: HostPeer, cluster_id: int, host: str) -> None:
        port = peer.answer(STARTS_WITHIN_S)
        said = self.survivor.call(instances.link, cluster_id, port, 10_000, self.lab[host].address)
        assert said == ["LLM_SUCCESS"]
        peer.call(instances.wait_linked, SURVIVOR)

    def lose(self, how: str) -> None:
        if how == "killed":
            self.victim.kill()
        else:
            self.lab.network.cut("near", "far")

    def replace(self) -> None:
        self.victim = self._host("far")
        self.link(self.victim, VICTIM, "far")


@pytest.fixture
def scene() -> Iterator[Scene]:
    with made("near", "far", "side") as lab, contextlib.ExitStack() as stack:
        yield Scene(lab, stack)


def push_everything(state: SimpleNamespace) -> str:
    return push(state, SURVIVOR, EVERYTHING, EVERYTHING)


def wait_until_some_has_come(state: SimpleNamespace) -> None:
    torch.npu.set_device(state.device)
    before = instances.pattern(SURVIVOR, TENSORS, BLOCKS, BLOCK_BYTES)[0]
    deadline = time.monotonic() + NOTICED_WITHIN_S
    while torch.equal(state.raw[0].cpu(), before):
        assert time.monotonic() < deadline, "nothing came"


def use_again(state: SimpleNamespace) -> None:
    for raw in state.raw:
        raw.fill_(NEXT)
    torch.npu.synchronize(state.device)
    instances.register_raw(state)


def content_bytes(state: SimpleNamespace) -> bytes:
    return instances.content(state).numpy().tobytes()


def content(peer: HostPeer) -> torch.Tensor:
    found = bytearray(peer.call(content_bytes))
    return torch.frombuffer(found, dtype=torch.uint8).view(TENSORS, BLOCKS, BLOCK_BYTES)


@pytest.mark.races_on_purpose("looks until some of it has come")
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_what_a_lost_host_may_have_written_is_the_survivors_again_and_a_successor_links(
    scene: Scene, how: str
) -> None:
    survivor = scene.survivor
    scene.lab.network.shape(bytes_per_s=SLOW)
    scene.victim.send(push_everything)
    survivor.call(wait_until_some_has_come)

    scene.lose(how)
    scene.lab.network.shape()
    assert any("cluster 2" in name for name in survivor.call(unregister))
    survivor.call(wait_unlinked, VICTIM, NOTICED_WITHIN_S)

    assert survivor.call(wait_released, NOTICED_WITHIN_S) == []
    assert survivor.call(until_there_are, 0) == []
    survivor.call(use_again)
    assert survivor.call(push, BYSTANDER, [1], [6]) == "LLM_SUCCESS"
    if how == "cut off":
        scene.lab.network.heal("near", "far")
        assert scene.victim.answer(NOTICED_WITHIN_S) != "LLM_SUCCESS"
        scene.victim.stop()
    scene.replace()
    assert survivor.call(push, VICTIM, [1], [6]) == "LLM_SUCCESS"
    assert (content(survivor) == NEXT).all()
    assert (content(scene.victim)[:, 6] == NEXT).all()
    assert (content(scene.bystander)[:, 6] == NEXT).all()


def start_elsewhere(state: SimpleNamespace, cluster_id: int, wires: str) -> int:
    os.environ[HOST_ID_VARIABLE] = f"host-{cluster_id}"
    if wires:
        os.environ["UCX_TLS"] = wires
    return start(state, cluster_id, "127.0.0.1")


@pytest.mark.parametrize(
    ("wires", "is_left"), [("", False), ("tcp,self", False), ("all", True), ("^cma", True), ("^shm", False)]
)
def test_memory_is_taken_back_only_where_ucx_may_reach_it_by_the_network_alone(
    peers: Callable[[int], list[Peer]], wires: str, is_left: bool
) -> None:
    """What is set in the environment is kept, and may let processes of one kernel reach past all keys."""
    survivor, victim = peers(2)
    survivor.call(start_elsewhere, SURVIVOR, wires)
    port = victim.call(start_elsewhere, VICTIM, wires)
    assert survivor.call(instances.link, VICTIM, port) == ["LLM_SUCCESS"]

    victim.kill()
    survivor.call(wait_unlinked, VICTIM, NOTICED_WITHIN_S)

    if is_left:
        time.sleep(0.5)
        assert survivor.call(doubts) == [(EVERYTHING, None)]
    else:
        assert survivor.call(until_there_are, 0) == []


def on_super_pod(pod: str, host: str) -> Peer:
    given = {"HOST": host, "SUPER_POD": pod, "PROFILE": "A3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOST_ID_VARIABLE, host)
        for name, value in given.items():
            patch.setenv(f"TORCH_LLM_DATADIST_EMULATE_{name}", value)
        return Peer(afresh=True)


@pytest.mark.parametrize(("pod", "is_left"), [("8", False), ("7", True)], ids=["another", "the same"])
def test_hixl_takes_memory_back_that_no_device_of_the_same_super_pod_may_have_mapped(
    pod: str, is_left: bool
) -> None:
    survivor, victim = on_super_pod("7", "near"), on_super_pod(pod, "far")
    try:
        survivor.call(start, SURVIVOR, "127.0.0.1", "hixl")
        port = victim.call(start, VICTIM, "127.0.0.1", "hixl")
        assert survivor.call(instances.link, VICTIM, port) == ["LLM_SUCCESS"]

        victim.kill()
        survivor.call(wait_unlinked, VICTIM, NOTICED_WITHIN_S)

        if is_left:
            time.sleep(0.5)
            assert survivor.call(doubts) == [(EVERYTHING, None)]
        else:
            assert survivor.call(until_there_are, 0) == []
    finally:
        survivor.stop()
        victim.stop()


def test_a_device_whose_super_pod_is_not_known_to_be_another_may_have_memory_here_mapped() -> None:
    here = identity(super_pod=3)

    assert not may_share_super_pod(here, identity(super_pod=4))
    assert may_share_super_pod(here, identity(super_pod=3))
    assert may_share_super_pod(here, identity(super_pod=-1))
    assert may_share_super_pod(identity(super_pod=-1), identity(super_pod=-1))


def identity(super_pod: int) -> Identity:
    return own_identity(1, 0, remote_accessible=True, cann="", super_pod=super_pod)
