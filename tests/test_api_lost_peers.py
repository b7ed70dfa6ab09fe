"""Peers that are killed or frozen: their links end, their memory is held, they are replaced."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.links import (
    BLOCK_BYTES,
    BLOCKS,
    KEEP_ALIVE_S,
    LATE_S,
    TENSORS,
    Peers,
    finalize,
    linked_pair,
    linked_to,
    pattern,
    push,
    push_until_it_fails,
    start,
    unlink,
    wait_unlinked,
)
from torch_llm_datadist.emulator import faults, libraries


def test_a_killed_server_fails_pushes_and_can_be_replaced_at_its_address(peers: Peers) -> None:
    """Lifted: in the original the client has to unlink by force first."""
    client, server, port = linked_pair(peers)
    pid = server.pid

    server.kill()
    said, after_s = client.call(push_until_it_fails, 2, 10.0)

    assert f"cluster 2 (127.0.0.1:{port}, pid {pid})" in said
    assert after_s < KEEP_ALIVE_S + 1
    assert client.call(linked_to) == []
    assert client.call(unlink, 2, port, 1000, False) == ["LLM_SUCCESS"]
    (again,) = peers(1)
    again.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [4], [5]) == "LLM_SUCCESS"
    assert torch.equal(again.call(instances.content)[:, 5], pattern(1)[:, 4])


def test_a_killed_client_can_be_replaced_without_the_servers_help(peers: Peers) -> None:
    client, server, port = linked_pair(peers)

    client.kill()
    (again,) = peers(1)
    again.call(start, 1, 0, {})

    assert again.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert again.call(push, 2, [4], [5]) == "LLM_SUCCESS"
    assert server.call(push, 1, [4], [5]) == "LLM_SUCCESS"


def test_the_death_of_one_peer_leaves_the_other_links_alone(peers: Peers) -> None:
    hub, *spokes = peers(4)
    hub.call(start, 1, 0, {})
    for i, spoke in enumerate(spokes):
        port = spoke.call(start, 10 + i, 1 + i, {})
        assert hub.call(instances.link, 10 + i, port) == ["LLM_SUCCESS"]

    spokes[0].kill()
    said, _ = hub.call(push_until_it_fails, 10, 10.0)

    assert said.startswith("LLM_NOT_YET_LINK")
    for cluster_id in (11, 12):
        assert hub.call(push, cluster_id, [0], [0]) == "LLM_SUCCESS"
    assert sorted(hub.call(linked_to)) == [11, 12]


def test_a_frozen_peer_ends_the_link_within_the_keep_alive_bound(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)

    server.freeze()
    began = time.monotonic()
    said = client.call(wait_unlinked, 2, 10)

    assert time.monotonic() - began < 2 * KEEP_ALIVE_S + LATE_S
    assert said.startswith("LLM_NOT_YET_LINK")
    assert str(server.pid) in said


def test_memory_is_held_for_a_frozen_peer_until_it_is_dead(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    server.freeze()
    client.call(wait_unlinked, 2, 10)

    assert str(server.pid) in client.call(unregister)[0]
    server.kill()

    assert client.call(wait_released, 10.0) == []


def unregister(state: SimpleNamespace) -> list[str]:
    """Returns for whom the memory is still held."""
    state.datadist.cache_manager.unregister_cache(state.cache.cache_id)
    assert state.datadist._running.links.sync(99, 5) is False  # the control thread has seen it
    return [name for held in state.datadist.cache_manager.held_caches() for name in held.waiting_for]


def wait_released(state: SimpleNamespace, within_s: float) -> list[Any]:
    pause = threading.Event()
    deadline = time.monotonic() + within_s
    while state.datadist.cache_manager.held_caches() and time.monotonic() < deadline:
        pause.wait(0.02)
    return state.datadist.cache_manager.held_caches()


def test_a_cache_unregistered_under_a_link_is_released_when_the_peer_has_confirmed(peers: Peers) -> None:
    """Lifted: in the original only when all links are down."""
    client, server, _ = linked_pair(peers)
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"  # the peer's memory is mapped

    server.call(unregister)

    assert server.call(wait_released, 10.0) == []
    said = client.call(push, 2, [0], [0])
    assert said.startswith("LLM_KV_CACHE_NOT_EXIST"), said
    server.call(instances.register, 2, TENSORS, BLOCKS, BLOCK_BYTES)
    assert client.call(push, 2, [1], [0]) == "LLM_SUCCESS"  # registered after linking, and found
    assert torch.equal(server.call(instances.content)[:, 0], pattern(1)[:, 1])


def test_a_cache_of_a_killed_peers_link_is_released(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"

    server.kill()
    client.call(unregister)

    assert client.call(wait_released, 10.0) == []


def test_memory_that_a_frozen_peer_may_write_outlives_the_instance(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    server.freeze()
    client.call(wait_unlinked, 2, 10)

    client.call(finalize)

    assert [str(server.pid) in name for name in client.call(left_over)] == [True]
    server.kill()
    assert client.call(left_over) == []


def left_over(state: SimpleNamespace) -> list[str]:
    from torch_llm_datadist.registry import left_over_caches

    return [name for held in left_over_caches() for name in held.waiting_for]


def test_linking_to_a_frozen_server_ends_at_the_timeout(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {})
    server.freeze()

    began = time.monotonic()
    codes = client.call(instances.link, 2, port, 500)

    assert codes[0] in ("LLM_LINK_FAILED", "LLM_TIMEOUT")  # before or after the connection stood
    assert time.monotonic() - began < 0.5 + LATE_S
    server.thaw()
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"


def test_a_server_killed_while_linking_ends_at_the_timeout(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {})
    server.freeze()
    client.send(instances.link, 2, port, 700)

    server.kill()

    assert client.answer(10) == ["LLM_LINK_FAILED"]
    (again,) = peers(1)
    again.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]


def test_finalize_is_bounded_with_a_frozen_peer(peers: Peers) -> None:
    client, server, _ = linked_pair(peers, {"keep_alive_ms": 60_000})
    server.freeze()

    began = time.monotonic()
    client.call(finalize)

    assert time.monotonic() - began < 30  # and not keep_alive
    server.thaw()
    assert server.call(wait_unlinked, 1, 10).startswith("LLM_NOT_YET_LINK")


def open_files(state: SimpleNamespace) -> int:
    return len(os.listdir("/proc/self/fd"))


def test_links_that_ended_leave_nothing_at_either_end(peers: Peers) -> None:
    """A page that is never given back is device memory lost, and each holds a descriptor of the peer."""
    client, server, port = linked_pair(peers)
    before = client.call(open_files), server.call(open_files)

    for i in range(16):
        who, whom, at = ((client, 2, port), (server, 1, 0))[i % 2]
        assert who.call(unlink, whom, at, 5000, False) == ["LLM_SUCCESS"]
        assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]

    # One link may still be on its way out at each end.
    assert client.call(open_files) <= before[0] + 2
    assert server.call(open_files) <= before[1] + 2


def hold_words(state: SimpleNamespace, one_fails: bool) -> None:
    """The next word of our watchdog to a peer stands half way, and those behind it wait."""
    libraries.runtime().emuLetValuesReachPeers(0)  # copied, so that one can be held
    state.unmapped = faults.fail_next("aclrtIpcMemClose", 1 << 30, 507000)  # counts
    state.held = faults.hold_copy(after=0, direction="peer", bytes=8)
    state.held.wait()
    if one_fails:
        faults.fail_next("aclrtStreamQuery", 1, 507057)


def count_unmapped(state: SimpleNamespace) -> int:
    assert state.datadist._running.links.sync(99, 5) is False  # the control thread has closed what was lost
    return int(state.unmapped.hits)


def let_words_go(state: SimpleNamespace) -> bool:
    state.held.disarm()
    give_up_at = time.monotonic() + 20
    while not state.unmapped.hits and time.monotonic() < give_up_at:
        time.sleep(0.002)
    return bool(state.unmapped.hits)


@pytest.mark.parametrize("one_fails", [False, True], ids=["held", "held, and one has failed"])
def test_the_page_of_a_dead_peer_is_unmapped_behind_the_last_word_that_is_queued_for_it(
    peers: Peers, one_fails: bool
) -> None:
    """Else that word goes to an address that nobody has, or to what is mapped there next."""
    client, server, _ = linked_pair(peers)
    client.call(hold_words, one_fails)

    server.kill()
    client.call(wait_unlinked, 2, 10.0)

    assert client.call(count_unmapped) == 0
    assert client.call(let_words_go)
    (again,) = peers(1)
    port = again.call(start, 2, 1, {})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [4], [5]) == "LLM_SUCCESS"
    assert torch.equal(again.call(instances.content)[:, 5], pattern(1)[:, 4])
