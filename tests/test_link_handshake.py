"""How a link is made, and why it is not. Control messages only; links over real
devices are tested in ``test_api_links.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.nodes import (
    DEADLINE_S,
    OK,
    is_linked,
    link,
    target_of,
    unused_port,
    wait_until,
)
from tests.recording_core import Node
from torch_llm_datadist import handshake, process_token
from torch_llm_datadist.errors import LLMStatusCode, NotYetLinkError, OutOfMemoryError, TimeoutExceededError
from torch_llm_datadist.handshake import Target
from torch_llm_datadist.loop import ControlLoop

PATIENCE_S = 60.0  # a busy machine is no fault


def test_link_joins_both_ends(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)

    assert link(client, server) == OK

    server.links.table.wait_linked([2], DEADLINE_S)
    near, far = client.only_link(), server.only_link()
    assert (near.peer_cluster_id, far.peer_cluster_id) == (1, 2)
    assert client.native.links[far.peer_link] is near
    assert server.native.links[near.peer_link] is far


def test_each_end_says_once_what_a_link_goes_over(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "torch_llm_datadist")
    server, client = node(1, listens=True), node(2)

    assert link(client, server) == OK
    assert client.links.unlink([1], DEADLINE_S, force=False) == [OK]  # the server has said it by now

    said = [record for record in caplog.records if "linked to" in record.getMessage()]
    assert sorted(record.getMessage().partition(" (")[0] for record in said) == [
        "linked to cluster 1",
        "linked to cluster 2",
    ]
    assert all(record.getMessage().endswith(" over mapped") for record in said)
    assert {record.levelno for record in said} == {logging.INFO}


def test_link_is_known_to_the_server_when_the_client_is_told(node: Callable[..., Node]) -> None:
    """A server that pushed right after link_clusters returned at the client was told: no link."""
    server, client = node(1, listens=True), node(2)
    for _ in range(50):
        assert link(client, server) == OK
        assert server.links.table.get(2, "push_blocks").is_accepting
        assert client.links.unlink([1], DEADLINE_S, force=False) == [OK]


def test_link_announces_caches_of_both_ends(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1, model_id=5)
    server.register(2, model_id=6, remote_accessible=False)
    client.register(1, model_id=None)

    assert link(client, server) == OK

    (seen,) = client.only_link().remote_caches.values()
    assert (seen.model_id, seen.num_blocks, seen.tensor_bytes, len(seen.segments)) == (5, 4, [32, 32], 2)
    assert [c.model_id for c in server.only_link().remote_caches.values()] == [None]


def test_link_gives_bare_addresses_to_the_same_process_only(node: Callable[..., Node]) -> None:
    here, there, stranger = node(1, listens=True), node(2), node(3, pid=1, start_time=1)
    here.register(1)

    link(there, here)
    link(stranger, here)

    (own,) = there.only_link().remote_caches.values()
    (others,) = stranger.only_link().remote_caches.values()
    assert [s.address for s in own.segments] == [4096, 4097]
    assert [s.address for s in others.segments] == [0, 0]


def test_link_to_several_servers_runs_at_the_same_time(node: Callable[..., Node]) -> None:
    servers = [node(i, listens=True) for i in range(1, 5)]
    client = node(9)
    nobody = Target(77, "127.0.0.1", unused_port())

    codes = client.links.link([*map(target_of, servers), nobody], 1.0)

    assert codes == [OK] * 4 + [LLMStatusCode.LLM_LINK_FAILED]


def slow(open_link: Callable[..., object]) -> Callable[..., object]:
    """As an engine has it, which is made on the control thread."""

    def open_slowly(*args: object) -> object:
        time.sleep(0.1)
        return open_link(*args)

    return open_slowly


def test_links_to_many_are_made_though_engines_take_longer_than_a_server_waits(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "_HANDSHAKE_S", 0.3)
    servers, client = [node(i, listens=True) for i in range(1, 9)], node(9)
    monkeypatch.setattr(client.native, "open_link", slow(client.native.open_link))

    assert client.links.link([target_of(server) for server in servers], PATIENCE_S) == [OK] * 8

    assert all(is_linked(server, client) for server in servers)
    assert len(client.native.open_links()) == 8


def test_links_of_many_are_made_though_engines_take_longer_than_a_server_waits(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "_HANDSHAKE_S", 0.3)
    # As when more have joined than are read before deadlines are looked at.
    monkeypatch.setattr(ControlLoop._read, "__defaults__", (1,))
    server, clients = node(9, listens=True), [node(i) for i in range(1, 9)]
    monkeypatch.setattr(server.native, "open_link", slow(server.native.open_link))

    with ThreadPoolExecutor(len(clients)) as callers:
        said = list(callers.map(lambda client: link(client, server, PATIENCE_S), clients))

    assert said == [OK] * 8
    assert len(server.native.open_links()) == 8


def test_a_client_that_never_joins_is_dropped_after_the_time_of_the_handshake(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshake, "_HANDSHAKE_S", 0.3)
    server, client = node(1, listens=True), node(2)
    monkeypatch.setattr(handshake.Handshake, "on_welcome", lambda *_: None)

    began = time.monotonic()
    waiting = threading.Thread(target=lambda: link(client, server, 1.0))
    waiting.start()
    wait_until(lambda: "the handshake did not end in time" in caplog.text)

    assert time.monotonic() - began >= 0.3
    waiting.join()
    assert not server.native.links


def test_link_reports_link_failed_when_nobody_listens(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    client = node(2)

    (code,) = client.links.link([Target(1, "127.0.0.1", unused_port())], 0.3)

    assert code == LLMStatusCode.LLM_LINK_FAILED
    assert "no answer in time" in caplog.text
    with pytest.raises(NotYetLinkError, match="was not made: no answer in time"):
        client.links.table.get(1, "push_blocks")


def test_link_waits_for_a_server_that_listens_later(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lifted: in the original it fails at once. The client takes the server for one of another process as
    long as this one does not listen there.
    """
    server, client = node(1), node(2)
    port = unused_port()
    has_looked = threading.Event()
    is_here = process_token.is_here

    def look(ip: str, port: int) -> bool:
        answer = is_here(ip, port)
        has_looked.set()
        return answer

    monkeypatch.setattr(process_token, "is_here", look)
    answers: list[list[LLMStatusCode]] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.links.link([Target(1, "127.0.0.1", port)], DEADLINE_S))
    )
    asking.start()
    assert has_looked.wait(DEADLINE_S)

    server.links.listen("127.0.0.1", port)
    asking.join()

    assert answers == [[OK]]


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        (
            {"remote_accessible": False},
            LLMStatusCode.LLM_PARAM_INVALID,
            "enable_remote_cache_accessible is True",
        ),
        ({"authenticated": True}, LLMStatusCode.LLM_LINK_FAILED, "authentication is off at cluster 1 and on"),
        ({"host": "elsewhere"}, LLMStatusCode.LLM_LINK_FAILED, "no transport reaches from cluster"),
    ],
)
def test_link_is_refused_when_the_two_ends_do_not_fit(
    node: Callable[..., Node],
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, object],
    code: LLMStatusCode,
    words: str,
) -> None:
    server, client = node(1, listens=True), node(2, **changed)

    assert link(client, server) == code

    assert words in caplog.text
    assert not server.native.links
    assert not client.native.links


def test_link_warns_once_of_other_versions(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = node(1, listens=True), node(2, torch="1.0", cann="8.0")

    assert link(client, server) == OK

    warnings = [r.getMessage() for r in caplog.records if "other versions" in r.getMessage()]
    assert len(warnings) == 2  # one at each end
    assert all("torch" in w and "1.0" in w and "8.0" in w for w in warnings)


def test_link_is_refused_when_another_cluster_listens_there(node: Callable[..., Node]) -> None:
    """Mended: in the original it is linked, and not found later."""
    server, client = node(1, listens=True), node(2)

    assert client.links.link([Target(5, "127.0.0.1", server.port)], DEADLINE_S) == [
        LLMStatusCode.LLM_PARAM_INVALID
    ]


def test_link_is_refused_between_instances_with_one_cluster_id(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(1)

    assert link(client, server) == LLMStatusCode.LLM_PARAM_INVALID


def test_link_twice_is_already_linked_from_either_end(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2, listens=True)
    link(client, server)

    assert link(client, server) == LLMStatusCode.LLM_ALREADY_LINK
    assert link(server, client) == LLMStatusCode.LLM_ALREADY_LINK


def test_link_of_both_to_each_other_makes_one_link(node: Callable[..., Node]) -> None:
    """Whoever comes second is told so; in any interleaving there is one link in the end.

    Mended: the original does not say what happens.
    """
    one, two = node(1, listens=True), node(2, listens=True)
    codes: list[LLMStatusCode] = []
    threads = [
        threading.Thread(target=lambda a=a, b=b: codes.append(link(a, b)))  # type: ignore[misc]
        for a, b in ((one, two), (two, one))
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert OK in codes
    assert set(codes) <= {OK, LLMStatusCode.LLM_PROCESSING_LINK, LLMStatusCode.LLM_ALREADY_LINK}
    wait_until(lambda: len(one.native.open_links()) == len(two.native.open_links()) == 1)


@pytest.mark.parametrize("at", ["client", "server"])
def test_one_link_more_than_the_limit_is_a_status(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Mended: of the original's limit of 512 its engine says only that something is invalid."""
    assert handshake.MAX_LINKS == 512
    monkeypatch.setattr(handshake, "MAX_LINKS", 1)
    full, first, second = node(1, listens=True), node(2, listens=True), node(3, listens=True)
    link(full, first)

    code = link(full, second) if at == "client" else link(second, full)

    assert code == LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT
    assert is_linked(full, first)
    assert not second.native.open_links()


def test_link_of_the_same_cluster_by_another_live_process_is_refused(node: Callable[..., Node]) -> None:
    server, first, second = node(1, listens=True), node(2), node(2)
    link(first, server)

    assert link(second, server) == LLMStatusCode.LLM_ALREADY_LINK

    assert is_linked(first, server)
    assert server.only_link().peer_link in first.native.links


def test_link_of_a_restarted_client_replaces_the_stale_one(node: Callable[..., Node]) -> None:
    server, dead = node(1, listens=True), node(2, pid=2**22 + 1, start_time=5)
    link(dead, server)
    restarted = node(2)

    assert link(restarted, server) == OK

    assert server.only_link().peer_link in restarted.native.links


def test_link_fails_with_the_code_of_the_core(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)

    server.native.fail_next_open = OutOfMemoryError("no page")
    assert link(client, server) == LLMStatusCode.LLM_OUT_OF_MEMORY
    client.native.fail_next_open = OutOfMemoryError("no page")
    assert link(client, server) == LLMStatusCode.LLM_OUT_OF_MEMORY

    assert link(client, server) == OK


def test_wait_linked_names_what_is_missing(node: Callable[..., Node]) -> None:
    with pytest.raises(TimeoutExceededError, match=r"no link to cluster 4, 5 after 0\.05 s"):
        node(1).links.table.wait_linked([5, 4], 0.05)


def test_listen_on_a_taken_port_names_the_address(node: Callable[..., Node]) -> None:
    server, other = node(1, listens=True), node(2)

    with pytest.raises(RuntimeError, match=rf"cannot listen at 127.0.0.1:{server.port}"):
        other.links.listen("127.0.0.1", server.port)


def test_listen_and_link_over_ipv6(node: Callable[..., Node]) -> None:
    server, client = node(1), node(2)
    port = server.links.listen("::1", 0)

    assert client.links.link([Target(1, "::1", port)], DEADLINE_S) == [OK]
