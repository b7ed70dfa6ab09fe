"""The network between a survivor and its peer is cut at every stage: over NIXL, between emulated hosts. The
rows go to the page of ``test_reliability``.

Three processes that import torch cost seconds per worker, so a plain run has one stage. With
``TORCH_LLM_DATADIST_TEST_EVERY_CUT=1``, as ``make reliability`` has it, there are all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.links import BLOCK_BYTES, BLOCKS, TENSORS, pattern, push, start, unlink, wait_unlinked
from tests.peers import HostPeer
from tests.reliability import page, stages
from tests.reliability.cases import CUT, ENDS_WITHIN_S, KEEP_ALIVE_OF_CUTS_S, STAGES
from tests.reliability.stages import BYSTANDER, VICTIM, Seen
from tests.test_emulated_hosts import made
from tests.test_reliability import EXPECTED, begin_anew, serving_meanwhile
from torch_llm_datadist.emulator import faults
from torch_llm_datadist.emulator.hosts import Lab
from torch_llm_datadist.transports import nixl_library

pytestmark = pytest.mark.skipif(bool(nixl_library()[1]), reason=nixl_library()[1])

STARTS_WITHIN_S = 300.0  # three that import torch at once
EVERY_CUT = os.environ.get("TORCH_LLM_DATADIST_TEST_EVERY_CUT") == "1"


def content_bytes(state: SimpleNamespace) -> bytes:
    return instances.content(state).numpy().tobytes()


class Scene:
    """Three hosts with a process each. Made once, since that takes seconds; whole again after each cut."""

    def __init__(self, lab: Lab, peers: list[HostPeer]) -> None:
        self.lab = lab
        self.survivor, self.victim, self.bystander = peers
        self.address = lab["far"].address
        for i, peer in enumerate(peers):
            peer.send(start, i + 1, i, self.options(i))
        self.ports: list[int] = [peer.answer(STARTS_WITHIN_S) for peer in peers]
        self.port = self.ports[1]
        self.link_bystander()

    def options(self, index: int) -> dict[str, Any]:
        address = self.lab[("near", "far", "side")[index]].address
        return {
            "keep_alive_ms": round(KEEP_ALIVE_OF_CUTS_S * 1000),
            "sync_kv_timeout": 10_000,
            "transport": "nixl",
            "listen_ip_info": f"{address}:0",
        }

    def link_bystander(self) -> None:
        address = self.lab["side"].address
        said = self.survivor.call(instances.link, BYSTANDER, self.ports[2], 10_000, address)
        assert said == ["LLM_SUCCESS"]

    def link(self) -> None:
        """Again and again: what a cut has left of an attempt at the victim has to run out first."""
        give_up_at = time.monotonic() + ENDS_WITHIN_S
        while (said := self.survivor.call(instances.link, VICTIM, self.port, 10_000, self.address)) != [
            "LLM_SUCCESS"
        ]:
            assert time.monotonic() < give_up_at, said
        self.victim.call(instances.wait_linked, 1)

    def cut(self) -> None:
        self.lab.network.cut("near", "far")

    def heal(self) -> None:
        self.lab.network.heal("near", "far")

    def content(self, peer: HostPeer) -> torch.Tensor:
        found = bytearray(peer.call(content_bytes))
        return torch.frombuffer(found, dtype=torch.uint8).view(TENSORS, BLOCKS, BLOCK_BYTES)

    def bystander_is_served(self) -> str:
        for who, whom in ((self.survivor, BYSTANDER), (self.bystander, 1)):
            said = who.call(push, whom, [4], [7])
            assert said == "LLM_SUCCESS", said
        assert torch.equal(self.content(self.bystander)[:, 7], pattern(1)[:, 4])
        return "pushes to and from the other peer"

    def is_linked_anew(self) -> str:
        self.heal()
        self.victim.call(wait_unlinked, 1, ENDS_WITHIN_S)
        self.link()
        assert self.survivor.call(push, VICTIM, [1], [6]) == "LLM_SUCCESS"
        assert torch.equal(self.content(self.victim)[:, 6], pattern(1)[:, 1])
        self.survivor.call(unlink, VICTIM, self.port, 10_000, False)
        return "a new link to it, once the network is whole"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with made("near", "far", "side") as lab, contextlib.ExitStack() as stack:
        peers = [HostPeer(lab[name]) for name in ("near", "far", "side")]
        for peer in peers:
            stack.callback(peer.stop)
        yield Scene(lab, peers)


def connect(scene: Scene) -> Seen:
    scene.cut()
    return scene.survivor.call(stages.connect, scene.port, scene.address)  # type: ignore[no-any-return]


def handshake(scene: Scene) -> Seen:
    scene.victim.call(stages.swallow_join)
    scene.survivor.send(stages.connect, scene.port, scene.address)
    scene.victim.call(stages.await_join)
    scene.cut()
    return scene.survivor.answer(ENDS_WITHIN_S)  # type: ignore[no-any-return]


def first_use(scene: Scene) -> Seen:
    scene.link()
    scene.cut()
    return scene.survivor.call(stages.push_on)  # type: ignore[no-any-return]


def queued_push(scene: Scene) -> Seen:
    scene.link()
    scene.survivor.call(stages.queue_pushes, 1.5 * KEEP_ALIVE_OF_CUTS_S)
    scene.cut()
    return scene.survivor.call(stages.read_statuses)  # type: ignore[no-any-return]


def running_push(scene: Scene) -> Seen:
    scene.link()
    first = scene.survivor.call(stages.address_of_first_block)
    held = faults.of(scene.survivor.pid).hold_copy(after=100, address=first)
    scene.survivor.send(stages.push_once)
    try:
        held.wait()
        scene.cut()
        return scene.survivor.answer(ENDS_WITHIN_S)  # type: ignore[no-any-return]
    finally:
        held.disarm()


def wait(scene: Scene) -> Seen:
    scene.link()
    scene.survivor.call(stages.bind_ticket, scene.victim.call(stages.prepare))
    scene.survivor.send(stages.wait_for_layers)
    scene.cut()
    return scene.survivor.answer(ENDS_WITHIN_S)  # type: ignore[no-any-return]


def ask_to_unlink(scene: Scene) -> Seen:
    scene.link()
    scene.cut()
    return scene.survivor.call(stages.ask_to_unlink, scene.port)  # type: ignore[no-any-return]


def finalize(scene: Scene) -> Seen:
    scene.link()
    scene.cut()
    seen: Seen = scene.survivor.call(stages.finalize)
    scene.survivor.call(begin_anew, scene.options(0))
    scene.link_bystander()
    return seen


DO: dict[str, Callable[[Scene], Seen]] = {
    "connect": connect,
    "handshake": handshake,
    "import": first_use,
    "queued push": queued_push,
    "running push": running_push,
    "wait": wait,
    "unlink": ask_to_unlink,
    "finalize": finalize,
}


@pytest.mark.parametrize("stage", STAGES if EVERY_CUT else ["running push"])
def test_the_survivor_of_a_cut_is_told_in_time_and_goes_on(
    scene: Scene, record_property: Callable[[str, object], None], stage: str
) -> None:
    try:
        with serving_meanwhile(scene.survivor, stage) as pause:
            saw, after_s = DO[stage](scene)

        assert saw in EXPECTED[stage]
        assert after_s < ENDS_WITHIN_S
        usable = [scene.bystander_is_served() + pause(), scene.is_linked_anew()]
    finally:
        scene.heal()
    page.record(record_property, page.Row(CUT, stage, saw, f"{after_s:.1f}", "; ".join(usable)))
