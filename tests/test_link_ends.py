"""How a link ends: unlinked, closed, or by a death. Control messages only; links over real
devices are tested in ``test_api_links.py``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from tests.nodes import (
    DEADLINE_S,
    OK,
    is_linked,
    link,
    stopped,
    target_of,
    unused_port,
    wait_until,
)
from tests.recording_core import Node
from torch_llm_datadist.errors import LLMStatusCode, NotYetLinkError
from torch_llm_datadist.handshake import Target


def test_unlink_closes_both_ends(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)

    assert client.links.unlink([1], DEADLINE_S, force=False) == [OK]

    assert not server.native.open_links()  # before the client is told
    assert not client.native.open_links()
    with pytest.raises(NotYetLinkError, match="unlinked by this end"):
        client.links.table.get(1, "push_blocks")
    assert link(client, server) == OK


def test_unlink_by_the_server_closes_both_ends(node: Callable[..., Node]) -> None:
    """Lifted: in the original a server can only use force."""
    server, client = node(1, listens=True), node(2)
    link(client, server)

    assert server.links.unlink([2], DEADLINE_S, force=False) == [OK]

    assert not client.native.open_links()


def test_unlink_by_both_ends_at_once_succeeds_at_both(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)
    codes: list[list[LLMStatusCode]] = []
    threads = [
        threading.Thread(target=lambda a=a, b=b: codes.append(a.links.unlink([b], DEADLINE_S, False)))  # type: ignore[misc]
        for a, b in ((server, 2), (client, 1))
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert codes == [[OK], [OK]]


def test_unlink_waits_for_running_transfers_of_either_end(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)
    codes: list[list[LLMStatusCode]] = []
    unlinking = threading.Thread(target=lambda: codes.append(client.links.unlink([1], DEADLINE_S, False)))

    with client.links.table.using(1, "push_blocks"):
        unlinking.start()
        wait_until(lambda: client.links.table.infos()[0].state == "unlinking")
        assert client.native.open_links()
        with pytest.raises(NotYetLinkError, match="is being unlinked"):
            client.links.table.get(1, "push_blocks")
    unlinking.join()

    assert codes == [[OK]]


def test_unlink_that_is_not_answered_fails_and_leaves_the_link(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)

    with server.links.table.using(2, "push_blocks"):  # the server lets its transfer end first, for one second
        codes = client.links.unlink([1], 0.1, force=False)
        assert codes == [LLMStatusCode.LLM_UNLINK_FAILED]
        assert client.links.table.get(1, "push_blocks").is_accepting


def test_unlink_with_force_closes_this_end_and_the_peer_notices(node: Callable[..., Node]) -> None:
    """Mended: in the original the peer has to unlink, too."""
    server, client = node(1, listens=True), node(2)
    link(client, server)

    assert client.links.unlink([1], DEADLINE_S, force=True) == [OK]

    assert not client.native.open_links()
    wait_until(lambda: not server.native.open_links())
    assert link(client, server) == OK


@pytest.mark.parametrize("force", [True, False])
def test_unlink_of_a_link_that_is_not_there_succeeds(node: Callable[..., Node], force: bool) -> None:
    assert node(2).links.unlink([1, 5], DEADLINE_S, force) == [OK, OK]


def test_a_death_is_logged_once_and_remembered(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)

    client.only_link().death = "peer process 1234 exited"

    wait_until(lambda: not is_linked(client, server))
    with pytest.raises(
        NotYetLinkError, match=r"the link to cluster 1 .* ended: peer process 1234 exited \(0\.\d s"
    ):
        client.links.table.get(1, "push_blocks")
    assert caplog.text.count("peer process 1234 exited") == 1


def test_close_unlinks_from_all_peers_and_is_idempotent(node: Callable[..., Node]) -> None:
    server, clients = node(1, listens=True), [node(i) for i in (2, 3, 4)]
    for client in clients:
        link(client, server)

    server.links.close(DEADLINE_S)
    server.links.close(DEADLINE_S)

    assert not server.native.open_links()
    assert not any(client.native.open_links() for client in clients)
    assert server.links.link([target_of(server)], 1.0) == [LLMStatusCode.LLM_FAILED]


def test_close_does_not_wait_longer_than_asked_for_a_silent_peer(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    link(client, server)

    with stopped(client):
        began = time.monotonic()
        server.links.close(0.3)

        assert time.monotonic() - began < 0.3 + 3
        assert not server.native.open_links()


def test_close_while_linking_answers_the_caller(node: Callable[..., Node]) -> None:
    client = node(2)
    answers: list[list[LLMStatusCode]] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.links.link([Target(1, "127.0.0.1", unused_port())], DEADLINE_S))
    )
    asking.start()
    client.links.table.active(1)

    client.links.close(1.0)
    asking.join()

    assert answers == [[LLMStatusCode.LLM_FAILED]]


def test_many_links_are_made_and_dropped(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)
    client = node(2)
    for _, force in zip(range(30), itertools.cycle((True, False)), strict=False):
        assert link(client, server) == OK
        assert client.links.unlink([1], DEADLINE_S, force) == [OK]
    wait_until(lambda: not server.native.open_links())
