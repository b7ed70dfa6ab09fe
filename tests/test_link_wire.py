"""The wire: hostile input, other versions, and who a peer is. Control messages only; links over real
devices are tested in ``test_api_links.py``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec
import pytest
import zmq

from tests.nodes import (
    DEADLINE_S,
    NO_LINK,
    OK,
    link,
    unused_port,
)
from tests.recording_core import Node
from torch_llm_datadist import process_token, wire
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.handshake import Target
from torch_llm_datadist.identity import PROTOCOL_VERSION, host_id, start_time_of


def greeting(client: Node, **changed: object) -> wire.Hello:
    """Of an instance of this process to cluster 1, as it would be sent."""
    token = process_token.of_hello(client.identity.instance, 1)
    fields: dict[str, object] = {"wanted_cluster_id": 1, "identity": client.identity, "token": token}
    return wire.Hello(**(fields | changed))  # type: ignore[arg-type]


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
        self.socket.send_multipart([part for frame in frames for part in wire.split(frame)])

    def ask(self, message: wire.Message | bytes) -> wire.Message:
        self.send(message if isinstance(message, bytes) else wire.encode(message))
        assert self.socket.poll(int(DEADLINE_S * 1000))
        return wire.decode(self.socket.recv())


def test_a_server_survives_malformed_messages(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = node(1, listens=True), node(2)
    good = wire.encode(greeting(client))
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


def test_a_peer_that_claims_to_be_in_this_process_shows_what_only_this_process_knows(
    node: Callable[..., Node],
) -> None:
    """Pid and start time are no secret: whoever was greeted by an instance of this process knows them."""
    server, client, other = node(1, listens=True), node(2), node(4)
    of_another = process_token.of_hello(other.identity.instance, 1)
    for_another = process_token.of_hello(client.identity.instance, 3)

    with RawPeer(server) as raw:
        for token in (b"", b"x" * 32, of_another, for_another):
            answer = raw.ask(greeting(client, token=token))
            assert isinstance(answer, wire.Refused)
            assert answer.code == LLMStatusCode.LLM_LINK_FAILED
            assert "cannot show what only that process knows" in answer.reason
        assert isinstance(raw.ask(greeting(client)), wire.Welcome)
    assert server.native.links == {}


def test_a_server_that_claims_to_be_in_this_process_gets_nothing(node: Callable[..., Node]) -> None:
    client, impostor = node(2), node(1)
    own = process_token.of_welcome(impostor.identity.instance, 99)  # what it was shown for somebody else
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        asked = threading.Thread(target=_welcome_once, args=(socket, impostor, own))
        asked.start()

        code = client.links.link([Target(1, "127.0.0.1", port)], DEADLINE_S)[0]

        asked.join(DEADLINE_S)
    assert code == LLMStatusCode.LLM_LINK_FAILED
    assert client.native.links == {}


def test_who_listens_in_an_instances_place_is_shown_nothing_to_pass_for_a_client_with(
    node: Callable[..., Node],
) -> None:
    """What it is shown could be shown to the instance, which listens elsewhere by now."""
    client, server = node(2), node(1, listens=True)
    server.links.switch_role(None)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as squatter:
        squatter.setsockopt(zmq.LINGER, 0)
        bind_again(squatter, server.port)
        asked = threading.Thread(target=lambda: client.links.link([Target(1, "127.0.0.1", server.port)], 1.0))
        asked.start()

        assert squatter.poll(int(DEADLINE_S * 1000))
        _, data = squatter.recv_multipart()

        asked.join(DEADLINE_S)
    hello = wire.decode(data)
    assert isinstance(hello, wire.Hello)
    assert hello.token == b""
    with RawPeer(other := node(1, listens=True)) as raw:
        answer = raw.ask(data)
        assert isinstance(answer, wire.Refused)
        assert other.native.links == {}


def bind_again(socket: zmq.Socket[bytes], port: int) -> None:
    """Once the one that had the port has let it go."""
    for _ in range(1000):
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return
        except zmq.ZMQError:
            threading.Event().wait(0.01)
    raise AssertionError(f"port {port} stays in use")


def test_addresses_at_which_this_process_listens_are_known(node: Callable[..., Node]) -> None:
    server, port = node(1, listens=True), unused_port()
    process_token.listens("0.0.0.0", port)

    assert process_token.is_here("127.0.0.1", server.port)
    assert not process_token.is_here("127.0.0.2", server.port)
    assert process_token.is_here("127.0.0.2", port)

    process_token.listens_no_more("0.0.0.0", port)
    server.links.close(1.0)
    assert not process_token.is_here("127.0.0.2", port)
    assert not process_token.is_here("127.0.0.1", server.port)


def _welcome_once(socket: zmq.Socket[bytes], impostor: Node, token: bytes) -> None:
    assert socket.poll(int(DEADLINE_S * 1000))
    route, _ = socket.recv_multipart()
    socket.send_multipart([route, wire.encode(wire.Welcome(identity=impostor.identity, token=token))])


def test_a_peer_of_another_process_needs_no_token_and_is_shown_no_address(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    server.register(1)
    elsewhere = msgspec.structs.replace(client.identity, pid=client.identity.pid + 1)

    with RawPeer(server) as raw:
        welcome = raw.ask(greeting(client, identity=elsewhere, token=b""))
        assert isinstance(welcome, wire.Welcome)
        assert welcome.token == b""
        joined = raw.ask(wire.Join(NO_LINK, wire.SegmentRecord(b"page", 0, 0), []))
    assert isinstance(joined, wire.Joined)
    assert {segment.address for cache in joined.caches for segment in cache.segments} == {0}


def test_a_server_drops_messages_that_are_too_long(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)

    with RawPeer(server) as raw:
        raw.socket.send(b"x" * (wire.MAX_FRAME_BYTES_ON_THE_WAY + 1))
        raw.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1))

        assert link(node(3), server) == OK


def test_a_greeting_of_another_protocol_version_is_refused_by_name(node: Callable[..., Node]) -> None:
    server = node(1, listens=True)
    later = PROTOCOL_VERSION + 1

    with RawPeer(server) as raw:
        answer = raw.ask(msgspec.msgpack.encode({"type": "hello", "protocol": later, "news": [1]}))

    assert isinstance(answer, wire.Refused)
    assert answer.code == LLMStatusCode.LLM_LINK_FAILED
    assert f"version {PROTOCOL_VERSION} at one end and {later} at the other" in answer.reason


def test_messages_out_of_order_are_dropped(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    record = wire.SegmentRecord(b"page", 0, 0)

    with RawPeer(server) as raw:
        hello = greeting(client)
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
        raw.ask(greeting(client))
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
        wire.Staging(segment, 64 << 20),
        wire.Refused(0x5010B009, "no"),
        wire.Bye("x"),
    ):
        assert wire.decode(wire.encode(message)) == message


def test_a_long_message_travels_in_frames(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True), node(2)
    segment = wire.SegmentRecord(b"h" * 4096, 0, 0)
    caches = [
        wire.CacheRecord(cache_id=i, model_id=0, num_blocks=1, tensor_bytes=[1], segments=[segment])
        for i in range(1, 101)
    ]
    message = wire.encode(wire.Join(NO_LINK, segment, caches))

    with RawPeer(server) as raw:
        raw.ask(greeting(client))
        assert isinstance(raw.ask(message), wire.Joined)

    assert len(message) > 4 * wire.MAX_FRAME_BYTES
    assert b"".join(wire.split(message)) == message
    assert max(map(len, wire.split(message))) == wire.MAX_FRAME_BYTES
    assert len(server.only_link().remote_caches) == 100


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
