"""Any number of prefill and decode processes: they come, link, unlink, leave and die while others transfer.

Nobody but the two ends of a link takes part in making or ending it, and nobody is restarted: those that
transfer do so all the time, and check each byte, while everything else happens around them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.links import BLOCKS, Peers, finalize, linked_to, push, start, unlink, wait_unlinked
from tests.peers import Peer
from tests.test_engine_transports import needs_nixl

ROUND_WITHIN_MS = 20_000
LAST = 251  # the byte that ends the rounds
DEVICES = 4
ROUNDS = 3  # that each process must see after each change
BLOCK_OF_CHANGES = BLOCKS - 1  # what comes and goes writes here; the pairs that stay use the others

# A round: prefill pushes a block of known bytes under a tag, decode checks it and pushes an answer back.


def begin_rounds(state: SimpleNamespace, peer_id: int, block: int, leads: bool) -> None:
    state.rounds, state.trouble = 0, []
    state.turned = threading.Condition()
    state.must_stop = False
    run = _lead if leads else _follow
    state.runner = threading.Thread(target=_guarded, args=(run, state, peer_id, block), daemon=True)
    state.runner.start()


def _guarded(run: Callable[..., None], state: SimpleNamespace, peer_id: int, block: int) -> None:
    try:
        torch.npu.set_device(state.device)
        run(state, peer_id, block)
    except Exception as error:
        state.trouble.append(f"{type(error).__name__}: {error}")
    with state.turned:
        state.turned.notify_all()


def _lead(state: SimpleNamespace, peer_id: int, block: int) -> None:
    while not state.must_stop:
        number = state.rounds + 1
        _send(state, peer_id, block, number, _byte(state.cluster_id, number))
        _check(_receive(state, peer_id, block, number), peer_id, number)
        _count(state)
    _send(state, peer_id, block, state.rounds + 1, LAST)


def _follow(state: SimpleNamespace, peer_id: int, block: int) -> None:
    while (came := _receive(state, peer_id, block, number := state.rounds + 1)) != {LAST}:
        _check(came, peer_id, number)
        _send(state, peer_id, block, number, _byte(state.cluster_id, number))
        _count(state)


def _count(state: SimpleNamespace) -> None:
    with state.turned:
        state.rounds += 1
        state.turned.notify_all()


def _byte(cluster_id: int, number: int) -> int:
    return (37 * cluster_id + number) % LAST


def _send(state: SimpleNamespace, peer_id: int, block: int, number: int, byte: int) -> None:
    for raw in state.raw:
        raw[block] = byte
    instances.push_blocks(state, peer_id, [block], [block], tag=number)


def _receive(state: SimpleNamespace, peer_id: int, block: int, number: int) -> set[int]:
    state.datadist.cache_manager.wait_arrival(peer_id, number, ROUND_WITHIN_MS)
    return bytes_of(state, block)


def _check(came: set[int], peer_id: int, number: int) -> None:
    if came != {_byte(peer_id, number)}:
        raise AssertionError(f"round {number} with {peer_id}: bytes {came} came")


def go_on(state: SimpleNamespace, rounds: int) -> list[str]:
    """Waits for so many more rounds; what went wrong."""
    with state.turned:
        wanted = state.rounds + rounds
        is_in_time = state.turned.wait_for(lambda: state.rounds >= wanted or state.trouble, 30)
        return state.trouble if is_in_time else ["no more rounds"]


def stop(state: SimpleNamespace, is_told: bool) -> list[str]:
    state.must_stop = is_told
    state.runner.join(30)
    return [*state.trouble, *(["a thread still runs"] if state.runner.is_alive() else [])]


# The processes.


class Fleet:
    """Cluster ids of prefill begin at 1, of decode at 101."""

    def __init__(self, peers: Peers, transport: str) -> None:
        self._peers = peers
        self._transport = transport
        self._sent = 0
        self.ports: dict[int, int] = {}
        self.at: dict[int, Peer] = {}

    def join(self, cluster_id: int, options: dict[str, Any] | None = None) -> int:
        (self.at[cluster_id],) = self._peers(1)
        self.ports[cluster_id] = self.at[cluster_id].call(
            start, cluster_id, cluster_id % DEVICES, {"transport": self._transport, **(options or {})}
        )
        return cluster_id

    def require_that_pairs_go_on(self) -> None:
        for pair in PAIRS:
            for each in pair:
                assert self.at[each].call(go_on, ROUNDS) == []

    def link(self, prefill: int, decode: int) -> None:
        assert self.at[prefill].call(instances.link, decode, self.ports[decode]) == ["LLM_SUCCESS"]

    def transfer(self, one: int, other: int) -> None:
        """A push each way over their link, of bytes that were not there before."""
        for here, there in ((one, other), (other, one)):
            self._sent += 1
            said = self.at[here].call(push_byte, there, BLOCK_OF_CHANGES, self._sent % LAST)
            assert said == "LLM_SUCCESS"
            assert self.at[there].call(bytes_of, BLOCK_OF_CHANGES) == {self._sent % LAST}


def push_byte(state: SimpleNamespace, peer_id: int, block: int, byte: int) -> str:
    for raw in state.raw:
        raw[block] = byte
    return push(state, peer_id, [block], [block])


def transports(state: SimpleNamespace) -> set[str]:
    return {info.transport for info in state.datadist.links()}


def bytes_of(state: SimpleNamespace, block: int) -> set[int]:
    return {byte for raw in state.raw for byte in raw[block].cpu().tolist()}


PAIRS = ((1, 101), (2, 102))
over_each = pytest.mark.parametrize(
    "fleet",
    [
        "mapped",
        "hixl",
        pytest.param("nixl", marks=needs_nixl),
    ],
    indirect=True,
)


@pytest.fixture
def fleet(peers: Peers, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """2 prefill and 2 decode processes, all linked; each is in a pair that transfers until the test ends."""
    transport = getattr(request, "param", "mapped")
    made = Fleet(peers, transport)
    for cluster_id in (1, 2, 101, 102):
        made.join(cluster_id)
    for prefill in (1, 2):
        for decode in (101, 102):
            made.link(prefill, decode)
        assert made.at[prefill].call(transports) == {transport}
    for block, (prefill, decode) in enumerate(PAIRS):
        made.at[decode].call(begin_rounds, prefill, block, False)
        made.at[prefill].call(begin_rounds, decode, block, True)
    made.require_that_pairs_go_on()
    yield made
    for prefill, decode in PAIRS:
        assert made.at[prefill].call(stop, True) == []
        assert made.at[decode].call(stop, False) == []


@over_each
def test_a_decode_process_comes_and_goes_while_others_transfer(fleet: Fleet) -> None:
    fleet.join(103)
    for prefill in (1, 2):
        fleet.link(prefill, 103)
        fleet.transfer(prefill, 103)
    fleet.require_that_pairs_go_on()

    port = fleet.ports[103]
    assert fleet.at[1].call(unlink, 103, port, 10_000, False) == ["LLM_SUCCESS"]
    assert fleet.at[1].call(push, 103, [0], [0]).startswith("LLM_NOT_YET_LINK")
    fleet.transfer(2, 103)
    fleet.link(1, 103)
    fleet.transfer(1, 103)
    fleet.require_that_pairs_go_on()

    fleet.at[103].call(finalize)
    for prefill in (1, 2):
        fleet.at[prefill].call(wait_unlinked, 103, 20)
        assert sorted(fleet.at[prefill].call(linked_to)) == [101, 102]
    fleet.require_that_pairs_go_on()


def test_a_prefill_process_comes_and_goes_while_others_transfer(fleet: Fleet) -> None:
    fleet.join(3)
    for decode in (101, 102):
        fleet.link(3, decode)
        fleet.transfer(3, decode)
    fleet.require_that_pairs_go_on()

    assert fleet.at[3].call(unlink, 101, fleet.ports[101], 10_000, True) == ["LLM_SUCCESS"]
    fleet.at[101].call(wait_unlinked, 3, 20)
    fleet.transfer(3, 102)
    fleet.at[3].call(finalize)
    fleet.at[102].call(wait_unlinked, 3, 20)
    fleet.require_that_pairs_go_on()


def test_a_process_that_is_killed_takes_its_own_links_only_and_is_replaced(fleet: Fleet) -> None:
    fleet.join(103)
    for prefill in (1, 2):
        fleet.link(prefill, 103)

    fleet.at[103].kill()
    for prefill in (1, 2):
        assert fleet.at[prefill].call(wait_unlinked, 103, 20).startswith("LLM_NOT_YET_LINK")
    fleet.require_that_pairs_go_on()

    fleet.join(103, {"listen_ip_info": f"127.0.0.1:{fleet.ports[103]}"})
    for prefill in (1, 2):
        fleet.link(prefill, 103)
        fleet.transfer(prefill, 103)
    fleet.require_that_pairs_go_on()


@over_each
def test_newcomers_link_to_everybody_at_the_same_time(fleet: Fleet) -> None:
    newcomers = [fleet.join(each) for each in (3, 103)]
    wanted = {3: [101, 102, 103], 103: [1, 2]}

    for each in newcomers:
        fleet.at[each].send(link_to_all, {other: fleet.ports[other] for other in wanted[each]})

    answers = [fleet.at[each].answer() for each in newcomers]
    assert answers == [["LLM_SUCCESS"] * len(wanted[each]) for each in newcomers]
    for each in newcomers:
        for other in wanted[each]:
            fleet.transfer(each, other)
    assert sorted(fleet.at[103].call(linked_to)) == [1, 2, 3]
    fleet.require_that_pairs_go_on()


def link_to_all(state: SimpleNamespace, ports: dict[int, int]) -> list[str]:
    clusters = [instances.cluster(cluster_id, port) for cluster_id, port in ports.items()]
    return [code.name for code in state.datadist.link_clusters(clusters, timeout=20_000)[1]]
