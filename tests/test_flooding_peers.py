"""A linked peer that says more than an end of a link keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from tests import instances
from tests.links import linked_to, push, start, wait_unlinked
from tests.peers import Peer
from torch_llm_datadist import CacheDesc, DataType, LLMException, wire
from torch_llm_datadist.arrivals import MAX_UNCLAIMED_BYTES

AT_ONCE = 100  # fewer than a connection queues
WITHIN_S = 60.0
LATER_THAN_ALL = 10**6  # ids of caches that were never registered
KEYS = 4000


def send_all(
    state: SimpleNamespace, message_of: Callable[[int], wire.Message], count: int, *, ends_link: bool = False
) -> None:
    """From the control thread, and no faster than the connection takes them."""
    links = state.datadist._running.links
    (peer,) = list(links._control._peers)

    def send_some(first: int) -> None:
        for i in range(first, min(first + AT_ONCE, count)):
            peer.send(message_of(i))

    for first in range(0, count, AT_ONCE):
        links._loop.call(lambda first=first: send_some(first), 10.0)
        if not links.sync(2, WITHIN_S):
            assert ends_link, f"cluster 2 has not taken {first + AT_ONCE} messages in time"
            return


def announce_more(state: SimpleNamespace, count: int, keys: int) -> None:
    links = state.datadist._running.links
    (peer,) = list(links._control._peers)
    local = state.datadist._running.registry.reachable()[0]
    record = links._control._announcements._export(local, peer)
    assert record is not None
    many = [wire.KeyRecord(False, number, 0, 0) for number in range(keys)]

    def announce(i: int) -> wire.Message:
        return wire.Announce(msgspec.structs.replace(record, cache_id=LATER_THAN_ALL + i, keys=many))

    send_all(state, announce, count, ends_link=True)


def push_tags(state: SimpleNamespace, count: int) -> None:
    send_all(state, lambda i: wire.Pushed(f"{i:0256}", 5010001, "x" * 4096), count)


def remote_caches(state: SimpleNamespace) -> list[tuple[int, int]]:
    """Of each peer: how many, and how many bytes told of them."""
    peers = state.datadist._running.links._control._peers
    return [(len(peer.remote_caches), sum(peer.remote_bytes.values())) for peer in peers]


def resident_bytes(state: SimpleNamespace) -> int:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) * 1024


def unclaimed(state: SimpleNamespace) -> tuple[int, int]:
    arrivals = state.datadist._running.links.arrivals
    return len(arrivals._unclaimed[1]), arrivals._bytes[1]


@pytest.fixture
def flooder(peers: Callable[[int], list[Peer]]) -> tuple[Peer, Peer, Peer]:
    """A liar, cluster 1, whose peer, 2, has another one, 3."""
    liar, honest, other = peers(3)
    patient = {"keep_alive_ms": 30_000}  # what floods them is not to make them late
    liar.call(start, 1, 0, patient)
    port = honest.call(start, 2, 1, patient)
    other.call(start, 3, 2, patient)
    for peer in (liar, other):
        assert peer.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    return liar, honest, other


@pytest.mark.parametrize(
    ("count", "keys", "words"),
    [
        (2 * wire.MAX_ANNOUNCED_CACHES, 0, f"{wire.MAX_ANNOUNCED_CACHES + 1} caches, expected at most 4096"),
        (2000, KEYS, "bytes, expected at most 16777216"),
    ],
    ids=["caches", "bytes"],
)
def test_who_announces_more_than_is_kept_loses_its_link_and_no_other_one_does(
    flooder: tuple[Peer, Peer, Peer], count: int, keys: int, words: str
) -> None:
    liar, honest, other = flooder
    liar.send(announce_more, count, keys)

    said = honest.call(wait_unlinked, 1, WITHIN_S)

    liar.answer(WITHIN_S)
    assert "announced cache 1" in said
    assert words in said
    for caches, size in honest.call(remote_caches):
        assert caches <= wire.MAX_ANNOUNCED_CACHES
        assert size <= wire.MAX_ANNOUNCED_BYTES
    assert honest.call(linked_to) == [3]
    assert other.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def test_tags_that_nobody_waits_for_take_no_more_memory_than_is_said(
    flooder: tuple[Peer, Peer, Peer],
) -> None:
    liar, honest, other = flooder
    count = 4 * MAX_UNCLAIMED_BYTES // 4096
    before = honest.call(resident_bytes)

    liar.call(push_tags, count)

    kept, size = honest.call(unclaimed)
    assert 0 < kept < count
    assert MAX_UNCLAIMED_BYTES // 2 < size <= MAX_UNCLAIMED_BYTES
    assert honest.call(resident_bytes) - before < 2 * MAX_UNCLAIMED_BYTES
    assert sorted(honest.call(linked_to)) == [1, 3]
    assert other.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def register_many(state: SimpleNamespace, count: int, tensors: int) -> str:
    """All over the same memory; how it ended."""
    state.shared = torch.zeros([tensors, 1, 64], dtype=torch.uint8, device=f"npu:{state.device}")
    desc = CacheDesc(tensors, [1, 64], DataType.DT_UINT8)
    manager = state.datadist.cache_manager
    try:
        for _ in range(count):
            manager.register_blocks_cache(desc, list(state.shared))
    except LLMException as error:
        return f"{error.status_code.name}: {error}"
    return "LLM_SUCCESS"


def known(state: SimpleNamespace) -> int:
    links = state.datadist._running.links
    (link,) = links.table.infos()
    assert links.sync(link.cluster_id, WITHIN_S)
    ((count, size),) = remote_caches(state)
    assert size > wire.MAX_MESSAGE_BYTES
    return count


def test_more_caches_than_a_message_holds_are_all_known_to_the_peer_that_links(
    peers: Callable[[int], list[Peer]],
) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {})
    count, tensors = 150, 120
    for peer in (client, server):
        assert peer.call(register_many, count, tensors) == "LLM_SUCCESS"

    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]

    assert client.call(known) == server.call(known) == count + 1
    assert client.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def test_who_would_announce_more_bytes_than_a_peer_keeps_is_refused_and_keeps_its_links(
    flooder: tuple[Peer, Peer, Peer],
) -> None:
    many, _, _ = flooder

    said = many.call(register_many, 100, 2048)

    assert said.startswith("LLM_OUT_OF_MEMORY: register_blocks_cache: peers would know ")
    assert "bytes about the caches of this instance" in said
    assert "16777216" in said
    assert many.call(push, 2, [0], [1]) == "LLM_SUCCESS"
    assert many.call(linked_to) == [2]
