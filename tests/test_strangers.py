"""Strangers at a listening socket: what they learn, what they can make it hold, whom they can keep away.
Control messages only.

The machine may have other things to do. With ``TORCH_LLM_DATADIST_TEST_FULL_FLOOD=1``, as ``make flood`` has
it, it must not: the flood is as long and as dense as it is meant to be, and nobody gets more time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from tests.nodes import DEADLINE_S, OK, link
from tests.peers import Peer
from tests.recording_core import Node
from torch_llm_datadist import gatekeeper, wire
from torch_llm_datadist.handshake import Target
from torch_llm_datadist.link_keys import derive_keys

KEYS = derive_keys("correct horse battery staple")
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
STRANGERS = 500
BYTES_PER_S = 10e6
IS_FULL = os.environ.get("TORCH_LLM_DATADIST_TEST_FULL_FLOOD") == "1"
FLOOD_S = 10.0 if IS_FULL else 1.5
LEAST_BYTES_PER_S = (0.9 if IS_FULL else 0.1) * BYTES_PER_S
LATE_S = 2.0 if IS_FULL else 8.0
OF_A_CONNECTION = wire.MAX_FRAME_BYTES_ON_THE_WAY + 48 * 1024  # one frame, and libzmq's buffers
SETTLING = 8 << 20  # that an allocator keeps


def greeting(mechanism: bytes) -> bytes:
    """ZMTP 3.0, as a client."""
    return SIGNATURE + b"\x03\x00" + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


def is_part_of_greeting(heard: bytes) -> bool:
    """What every listener says to everybody: signature, version, mechanism, "as a server", zeros."""
    rest = b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)
    return heard[:1] in (b"", b"\xff") and rest.startswith(heard[9:])


def long_command(length: int) -> bytes:
    return b"\x06" + length.to_bytes(8, "big") + b"\x05HELLO"


def connect(port: int) -> socket.socket:
    stranger = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    stranger.setblocking(False)
    return stranger


class Flood:
    """Connections that are silent, send random bytes, or a frame as long as they can, and come again."""

    def __init__(self, port: int) -> None:
        frame = greeting(b"CURVE") + long_command(wire.MAX_FRAME_BYTES)
        self._texts = [b"", os.urandom(1024), frame + bytes(wire.MAX_FRAME_BYTES // 2)]
        self._port = port
        self._strangers = [connect(port) for _ in range(STRANGERS)]
        self._sent_of = [0] * STRANGERS
        self.sent_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        for stranger in self._strangers:
            stranger.close()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._is_over.wait(0.001):
            for i in range(STRANGERS):
                if self.sent_bytes < BYTES_PER_S * (time.monotonic() - began):
                    self._go_on(i)

    def _go_on(self, i: int) -> None:
        text = self._texts[i % len(self._texts)]
        try:
            with contextlib.suppress(BlockingIOError):
                sent = self._strangers[i].send(text[self._sent_of[i] :])
                self._sent_of[i] += sent
                self.sent_bytes += sent
            with contextlib.suppress(BlockingIOError):
                if not self._strangers[i].recv(4096):
                    raise ConnectionError
        except OSError:
            self._strangers[i].close()
            self._strangers[i] = connect(self._port)
            self._sent_of[i] = 0


def serve(state: SimpleNamespace) -> int:
    state.node = Node(1, listens=True, keys=KEYS)
    return int(state.node.port)


def start_flood(state: SimpleNamespace, port: int) -> None:
    state.flood = Flood(port)


def stop_flood(state: SimpleNamespace) -> int:
    state.flood.stop()
    return int(state.flood.sent_bytes)


def held_memory(state: SimpleNamespace) -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def time_to_link(node: Callable[..., Node], cluster_id: int, port: int) -> float:
    client = node(cluster_id, keys=KEYS)
    began = time.monotonic()
    assert client.links.link([Target(1, "127.0.0.1", port)], 10 * DEADLINE_S) == [OK]
    took = time.monotonic() - began
    client.links.unlink([1], DEADLINE_S, force=False)
    return took


def test_a_good_peer_links_among_strangers_who_send_garbage(
    peers: Callable[[int], list[Peer]], node: Callable[..., Node]
) -> None:
    server, stranger = peers(2)
    port = server.call(serve)
    usual_s = statistics.median(time_to_link(node, 10 + i, port) for i in range(3))
    before = server.call(held_memory)

    took_s, held = [], []
    stranger.call(start_flood, port)
    began = time.monotonic()
    while time.monotonic() - began < FLOOD_S:
        took_s.append(time_to_link(node, 20 + len(took_s), port))
        held.append(server.call(held_memory) - before)
    sent_bytes = stranger.call(stop_flood)

    print(f"usual {usual_s * 1000:.1f} ms, at worst {max(took_s) * 1000:.1f} ms, {sent_bytes} bytes sent")
    assert sent_bytes > LEAST_BYTES_PER_S * FLOOD_S
    assert max(took_s) < 2 * usual_s + LATE_S
    assert max(held) < gatekeeper.MAX_SILENT * OF_A_CONNECTION + SETTLING


@pytest.fixture
def few_silent(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(gatekeeper, "MAX_SILENT", 8)
    monkeypatch.setattr(gatekeeper, "HANDSHAKE_MS", 600_000)
    return 8


def test_the_oldest_silent_connection_is_closed_for_the_next_one(
    node: Callable[..., Node], few_silent: int
) -> None:
    server, linked, late = (node(1, listens=True, keys=KEYS), node(2, keys=KEYS), node(3, keys=KEYS))
    assert link(linked, server) == OK

    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(connect(server.port)) for _ in range(few_silent + 12)]
        for stranger in strangers[:12]:
            stranger.settimeout(DEADLINE_S)
            while stranger.recv(64):
                pass

        assert link(late, server) == OK
        assert len(server.only_silent()) <= few_silent
    assert linked.links.unlink([1], DEADLINE_S, force=False) == [OK]
    assert late.links.unlink([1], DEADLINE_S, force=False) == [OK]


def test_a_connection_that_does_not_show_its_key_in_time_is_closed(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "HANDSHAKE_MS", 50)
    server = node(1, listens=True, keys=KEYS)

    for text in (b"", SIGNATURE, greeting(b"CURVE")):
        with connect(server.port) as stranger:
            stranger.sendall(text)
            stranger.settimeout(DEADLINE_S)
            while stranger.recv(64):
                pass


def test_a_stranger_gets_the_greeting_and_nothing_else(node: Callable[..., Node]) -> None:
    """Whatever it says: no identity, no handle, no address, no version of anything."""
    server, client = node(1, listens=True, keys=KEYS), node(2)
    server.register(1)
    hello = wire.encode(wire.Hello(wanted_cluster_id=1, identity=client.identity))
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    sayings = [
        b"",
        greeting(b"NULL") + ready + b"\x00" + bytes([len(hello) % 256]) + hello,
        greeting(b"CURVE") + long_command(200) + bytes(194),
        greeting(b"CURVE") + b"\x04\xc8\x05HELLO\x01\x00" + os.urandom(192),
        greeting(b"CURVE") + ready,
        greeting(b"PLAIN") + b"\x04\x12\x05HELLO\x05admin\x05admin",
        os.urandom(4096),
    ]

    for saying in sayings:
        heard = b""
        with connect(server.port) as stranger:
            stranger.settimeout(DEADLINE_S)
            with contextlib.suppress(ConnectionError):
                stranger.sendall(saying)
                if saying:
                    while part := stranger.recv(4096):
                        heard += part
        assert heard in [
            (SIGNATURE + greeting(b"CURVE")[10:])[:length] for length in (0, 10, 11, 12, 64)
        ] or (len(heard) <= 64 and heard[32:] == bytes(len(heard[32:])))
    assert not server.native.links
    assert server.native.exports == 0


def test_a_frame_that_is_too_long_ends_its_connection(node: Callable[..., Node]) -> None:
    server = node(1, listens=True, keys=KEYS)

    with connect(server.port) as stranger:
        stranger.settimeout(DEADLINE_S)
        stranger.sendall(greeting(b"CURVE") + long_command(wire.MAX_FRAME_BYTES_ON_THE_WAY + 1))
        with contextlib.suppress(ConnectionError):
            while stranger.recv(64):
                pass


def test_only_a_connection_to_that_port_is_shut_down() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
        open(os.devnull) as file,
    ):
        port = listener.getsockname()[1]
        gatekeeper._shut_down(far.fileno(), port + 1)
        gatekeeper._shut_down(file.fileno(), port)
        gatekeeper._shut_down(10**6, port)
        near.sendall(b"x")
        assert far.recv(1) == b"x"

        gatekeeper._shut_down(far.fileno(), port)

        assert near.recv(1) == b""


def test_without_a_handler_for_keys_nobody_is_taken() -> None:
    """Should the one of the control thread be missing, CURVE alone would let every known server key in."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        KEYS.protect_server(router)
        KEYS.protect_client(dealer)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.setsockopt(zmq.LINGER, 0)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        dealer.connect(f"tcp://127.0.0.1:{port}")

        kind = int.from_bytes(monitor.recv_multipart()[0][:2], "little")

        dealer.disable_monitor()
        assert kind == zmq.EVENT_DISCONNECTED
