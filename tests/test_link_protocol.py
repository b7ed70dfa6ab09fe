"""The control messages between instances: handshake, announcements, withdrawal, farewell, and hostile input.

The native core is a recording object here, because nothing but the messages is tested; links over real
devices are tested in ``test_api_links.py``.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from tests.recording_core import Node
from torch_llm_datadist import wire
from torch_llm_datadist.errors import LLMStatusCode, NotYetLinkError, OutOfMemoryError, TimeoutExceededError
from torch_llm_datadist.handshake import Target
from torch_llm_datadist.identity import host_id, start_time_of

OK = LLMStatusCode.LLM_SUCCESS
DEADLINE_S = 10.0
NO_LINK = 10**9


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*args: object, **kwargs: object) -> Node:
        made.append(Node(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.links.close(0.3)


def target_of(server: Node) -> Target:
    return Target(server.identity.cluster_id, "127.0.0.1", server.port)


def link(client: Node, server: Node, timeout_s: float = DEADLINE_S) -> LLMStatusCode:
    return client.links.link([target_of(server)], timeout_s)[0]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread does and that has no event to wait for."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not become true in time")


def is_linked(at: Node, to: Node) -> bool:
    return any(info.cluster_id == to.identity.cluster_id for info in at.links.table.infos())


def test_link_joins_both_ends(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)

    assert link(client, server) == OK

    server.links.table.wait_linked([2], DEADLINE_S)
    near, far = client.only_link(), server.only_link()
    assert (near.peer_cluster_id, far.peer_cluster_id) == (1, 2)
    assert client.native.links[far.peer_link] is near
    assert server.native.links[near.peer_link] is far


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


def unused_port() -> int:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


def test_link_reports_link_failed_when_nobody_listens(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    client = node(2)

    (code,) = client.links.link([Target(1, "127.0.0.1", unused_port())], 0.3)

    assert code == LLMStatusCode.LLM_LINK_FAILED
    assert "no answer in time" in caplog.text
    with pytest.raises(NotYetLinkError, match="was not made: no answer in time"):
        client.links.table.get(1, "push_blocks")


def test_link_waits_for_a_server_that_listens_later(node: Callable[..., Node]) -> None:
    server, client = node(1), node(2)
    port = unused_port()
    answers: list[list[LLMStatusCode]] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.links.link([Target(1, "127.0.0.1", port)], DEADLINE_S))
    )
    asking.start()

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
        ({"host": "elsewhere"}, LLMStatusCode.LLM_LINK_FAILED, "only the mapped transport is there yet"),
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
    """Whoever comes second is told so; in any interleaving there is one link in the end."""
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


def test_a_cache_registered_after_linking_is_announced(node: Callable[..., Node]) -> None:
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


class stopped:
    """Keeps a node's control thread busy, as if its process were frozen."""

    def __init__(self, frozen: Node) -> None:
        self._thawed = threading.Event()
        is_frozen = threading.Event()

        def freeze() -> None:
            is_frozen.set()
            self._thawed.wait(DEADLINE_S)

        frozen.links._loop.post(freeze)
        assert is_frozen.wait(DEADLINE_S)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._thawed.set()


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

        assert time.monotonic() - began < 1.5
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


class RawPeer:
    """Speaks to a server in bytes of its own choice."""

    def __init__(self, server: Node) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{server.port}")

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def ask(self, message: wire.Message | bytes) -> wire.Message:
        self.send(message if isinstance(message, bytes) else wire.encode(message))
        assert self.socket.poll(int(DEADLINE_S * 1000))
        return wire.decode(self.socket.recv())


def test_a_server_survives_malformed_messages(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = node(1, listens=True), node(2)
    good = wire.encode(wire.Hello(wanted_cluster_id=1, identity=client.identity))
    hostile = [
        b"",
        b"\x00",
        b"\xc1" * 100,
        b"\x91" * 100_000,  # deeply nested arrays
        good[:-3],
        good + b"x",
        msgspec.msgpack.encode({"type": "hello", "protocol": "1"}),
        msgspec.msgpack.encode({"type": "nothing"}),
        msgspec.msgpack.encode({"type": "join", "link": -1}),
    ]

    with RawPeer(server) as raw:
        for data in hostile:
            raw.send(data)
        raw.send(b"two", b"frames")
        raw.send(wire.encode(wire.Withdraw(1)))
        assert isinstance(raw.ask(good), wire.Closed | wire.Welcome)

    assert link(node(3), server) == OK
    assert "malformed" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_server_drops_messages_that_are_too_long(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)

    with RawPeer(server) as raw:
        raw.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1))

        assert link(node(3), server) == OK


def test_a_greeting_of_another_protocol_version_is_refused_by_name(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)

    with RawPeer(server) as raw:
        answer = raw.ask(msgspec.msgpack.encode({"type": "hello", "protocol": 7, "news": [1]}))

    assert isinstance(answer, wire.Refused)
    assert answer.code == LLMStatusCode.LLM_LINK_FAILED
    assert "version 2 at one end and 7 at the other" in answer.reason


def test_messages_out_of_order_are_dropped(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    record = wire.SegmentRecord(b"page", 0, 0)

    with RawPeer(server) as raw:
        hello = wire.Hello(wanted_cluster_id=1, identity=client.identity)
        assert isinstance(raw.ask(hello), wire.Welcome)
        for message in (
            hello,
            wire.Bye(""),
            wire.Withdraw(1),
            wire.Joined(NO_LINK, record, []),
            wire.Synced(3),
        ):
            raw.send(wire.encode(message))
        assert isinstance(raw.ask(wire.Join(NO_LINK, record, [])), wire.Joined)
        raw.send(wire.encode(wire.Join(NO_LINK, record, [])))
        assert isinstance(raw.ask(wire.Sync(5)), wire.Synced)


def test_a_cache_announced_twice_ends_the_link(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    segment = wire.SegmentRecord(b"page", 0, 0)
    cache = wire.CacheRecord(cache_id=1, model_id=0, num_blocks=1, tensor_bytes=[1], segments=[segment])

    with RawPeer(server) as raw:
        raw.ask(wire.Hello(wanted_cluster_id=1, identity=client.identity))
        raw.ask(wire.Join(NO_LINK, segment, [cache]))
        answer = raw.ask(wire.Announce(cache))

    assert isinstance(answer, wire.Closed)
    assert "twice" in answer.reason


def test_every_message_survives_the_wire() -> None:
    segment = wire.SegmentRecord(b"\x00\xff", 2**40, 2**47)
    cache = wire.CacheRecord(
        cache_id=1, model_id=2**64 - 1, num_blocks=2, tensor_bytes=[4] * 1000, segments=[segment] * 1000
    )
    for message in (
        wire.Join(7, segment, [cache]),
        wire.Announce(cache),
        wire.Keys(1, [wire.KeyRecord(True, 2**64 - 2, 0, 3)]),
        wire.Taken(1, 0, 2, 4),
        wire.Refused(0x5010B009, "no"),
        wire.Bye("x"),
    ):
        assert wire.decode(wire.encode(message)) == message


def test_start_time_tells_a_dead_process_from_a_live_one() -> None:
    import os
    import subprocess

    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    assert start_time_of(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time_of(child.pid) is None  # a zombie
    child.wait()
    assert start_time_of(child.pid) is None
    child.stdin.close()  # type: ignore[union-attr]


def test_host_id_can_be_played(monkeypatch: pytest.MonkeyPatch) -> None:
    own = host_id()
    monkeypatch.setenv("TORCH_LLM_DATADIST_HOST_ID", "b")
    assert host_id() == f"{own}/b"


def test_many_links_are_made_and_dropped(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)
    client = node(2)
    for _, force in zip(range(30), itertools.cycle((True, False)), strict=False):
        assert link(client, server) == OK
        assert client.links.unlink([1], DEADLINE_S, force) == [OK]
    wait_until(lambda: not server.native.open_links())
