"""Caches across links: announced, found, withdrawn. Control messages only; links over real
devices are tested in ``test_api_links.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.nodes import (
    DEADLINE_S,
    is_linked,
    link,
    stopped,
    wait_until,
)
from tests.recording_core import Node


def test_a_cache_registered_after_linking_is_announced(node: Callable[..., Node]) -> None:
    """Mended: in the original links never learn of it."""
    server, client = node(1, listens=True), node(2)
    link(client, server)

    server.register(3, model_id=8)

    assert client.links.sync(
        1, DEADLINE_S
    )  # what was registered before the question is known after the answer
    cache = client.links.table.get(1, "push_blocks").remote_cache(8)
    assert cache is not None
    assert cache.cache_id == 3


def test_a_later_cache_hides_an_earlier_one_of_the_same_model(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1, model_id=0)
    link(client, server)

    server.register(2, model_id=0)

    assert client.links.sync(1, DEADLINE_S)
    cache = client.links.table.get(1, "push_blocks").remote_cache(0)
    assert cache is not None
    assert cache.cache_id == 2


def test_sync_without_a_link_is_false(node: Callable[..., Node]) -> None:
    assert not node(2).links.sync(1, DEADLINE_S)


def test_withdrawn_memory_is_released_at_once_without_peers(node: Callable[..., Node]) -> None:
    alone = node(1)
    alone.register(1)

    alone.unregister(1)

    assert alone.native.has_released.wait(DEADLINE_S)
    assert alone.registry.held() == []


def test_withdrawn_memory_is_held_until_the_peer_has_drained(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1)
    link(client, server)
    client.only_link().in_use.add(1)

    server.unregister(1)

    wait_until(lambda: client.only_link().dropped == {1})
    (held,) = server.registry.held()
    assert held.info().waiting_for == (f"cluster 2 (127.0.0.1, pid {client.identity.pid})",)
    assert held.info().length_bytes == 64
    assert not server.native.has_released.is_set()
    client.only_link().in_use.clear()
    assert server.native.has_released.wait(DEADLINE_S)


def test_withdrawn_memory_is_held_while_own_transfers_use_it(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1)
    link(client, server)
    server.native.in_use.add(1)

    server.unregister(1)

    wait_until(lambda: server.registry.held()[0].is_free())
    assert not server.native.has_released.is_set()
    server.native.in_use.clear()
    assert server.native.has_released.wait(DEADLINE_S)


def test_withdrawn_memory_is_held_while_a_lost_peer_may_still_write(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1)
    link(client, server)
    server.only_link().death = "it is frozen"
    with stopped(client):
        wait_until(lambda: not is_linked(server, client))

        server.unregister(1)

        server.links.sync(2, 0.1)
        (held,) = server.registry.held()
        assert held.info().waiting_for
    assert server.native.has_released.wait(DEADLINE_S)  # it thawed, saw that the link is dead, and said so


def test_withdrawn_memory_is_released_when_the_peer_process_is_gone(node: Callable[..., Node]) -> None:
    server, gone = node(1, listens=True), node(2, pid=2**22 + 1, start_time=5)
    server.register(1)
    link(gone, server)

    with stopped(gone):
        server.unregister(1)
        assert server.native.has_released.wait(DEADLINE_S)


def test_withdrawal_reaches_a_peer_that_joins_meanwhile(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    for cache_id in range(1, 30):
        server.register(cache_id, model_id=cache_id)
    asking = threading.Thread(target=link, args=(client, server))

    asking.start()
    for cache_id in range(1, 30):
        server.unregister(cache_id)
    asking.join()

    assert client.links.sync(1, DEADLINE_S)
    wait_until(lambda: not server.registry.held())
    assert client.links.table.get(1, "push_blocks").remote_caches == {}
