"""Each message of the protocol, wrong in each way: a clear end at the right side, and all else goes on. A
message without a row here fails. Control messages only.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import pytest

from tests.nodes import DEADLINE_S, NO_LINK, OK, is_linked, link, wait_until
from tests.recording_core import Node
from tests.test_link_wire import RawPeer
from torch_llm_datadist import wire
from torch_llm_datadist.control import Control
from torch_llm_datadist.identity import own_identity, start_time_of

MESSAGES = get_args(wire.Message)
SEGMENT = wire.SegmentRecord(b"page", 0, 0)
CACHE = wire.CacheRecord(
    cache_id=7,
    model_id=0,
    num_blocks=4,
    tensor_bytes=[32, 32],
    segments=[SEGMENT, SEGMENT],
    keys=[wire.KeyRecord(False, 5, 0, 3)],
)
# A process that lives on, and is not this one.
IDENTITY = msgspec.structs.replace(
    own_identity(2, 0, remote_accessible=True, cann="test"),
    pid=os.getppid(),
    start_time=start_time_of(os.getppid()),
)
HUGE = 2**63 - 1

EXAMPLES: dict[type, wire.Message] = {
    wire.Hello: wire.Hello(wanted_cluster_id=1, identity=IDENTITY),
    wire.Welcome: wire.Welcome(identity=IDENTITY),
    wire.Refused: wire.Refused(1, "no"),
    wire.Join: wire.Join(NO_LINK, SEGMENT, [CACHE]),
    wire.Joined: wire.Joined(NO_LINK, SEGMENT, [CACHE]),
    wire.Announce: wire.Announce(CACHE),
    wire.Withdraw: wire.Withdraw(7),
    wire.Withdrawn: wire.Withdrawn(1),
    wire.Keys: wire.Keys(7, [wire.KeyRecord(False, 6, 0, 1)]),
    wire.Taken: wire.Taken(1, 0, 0, 2),
    wire.Sync: wire.Sync(3),
    wire.Synced: wire.Synced(3),
    wire.Pushed: wire.Pushed("tag", 0, ""),
    wire.Bye: wire.Bye("done"),
    wire.Closed: wire.Closed("done"),
}


@dataclass(frozen=True)
class Lie:
    """A message of the right form that an open link gets, and why the link ends of it; "" if it goes on, None
    where the native core decides that, which is not there.
    """

    message: wire.Message
    ends: str | None = ""


def _cache(**changes: Any) -> wire.CacheRecord:
    return msgspec.structs.replace(CACHE, **{"cache_id": 8, **changes})


# Cache 1 of the server was announced to the peer, cache 2 was not; the peer announced cache 7.
LIES: dict[type, list[Lie]] = {
    wire.Hello: [Lie(EXAMPLES[wire.Hello]), Lie(wire.Hello(wanted_cluster_id=HUGE, identity=IDENTITY))],
    wire.Welcome: [Lie(EXAMPLES[wire.Welcome])],
    wire.Refused: [Lie(wire.Refused(-1, "no")), Lie(wire.Refused(HUGE, ""))],
    wire.Join: [Lie(EXAMPLES[wire.Join]), Lie(wire.Join(1, SEGMENT, []))],
    wire.Joined: [Lie(EXAMPLES[wire.Joined]), Lie(wire.Joined(1, SEGMENT, []))],
    wire.Announce: [
        Lie(wire.Announce(_cache(cache_id=7)), "announced cache 7 twice"),
        Lie(wire.Announce(_cache(num_blocks=5)), "which 5 blocks do not divide"),
        Lie(wire.Announce(_cache(num_blocks=HUGE)), f"which {HUGE} blocks do not divide"),
        Lie(wire.Announce(_cache(segments=[SEGMENT])), "1 segments, 2 sizes and 0 addresses"),
        Lie(wire.Announce(_cache(tensor_bytes=[32] * 3)), "2 segments, 3 sizes and 0 addresses"),
        Lie(wire.Announce(_cache(addresses=[1])), "2 segments, 2 sizes and 1 addresses"),
        Lie(wire.Announce(_cache(keys=[wire.KeyRecord(False, 1, 0, 4)])), "batch entry 4 of cache 8"),
    ],
    wire.Withdraw: [Lie(wire.Withdraw(HUGE)), Lie(wire.Withdraw(1))],
    wire.Withdrawn: [Lie(wire.Withdrawn(2)), Lie(wire.Withdrawn(HUGE)), Lie(wire.Withdrawn(1))],
    wire.Keys: [
        Lie(wire.Keys(HUGE, [])),
        Lie(wire.Keys(7, [wire.KeyRecord(True, 1, 0, HUGE)]), f"batch entry {HUGE} of cache 7"),
    ],
    wire.Taken: [
        Lie(wire.Taken(HUGE, HUGE, HUGE, HUGE)),
        Lie(wire.Taken(2, 0, 0, 1)),
        Lie(wire.Taken(1, 0, 0, HUGE), "which has 2 tensors and 4 entries"),
        Lie(wire.Taken(1, 0, HUGE, 1), "which has 2 tensors and 4 entries"),
        Lie(wire.Taken(1, 4, 0, 1), "of batch entry 4 of cache 1"),
    ],
    wire.Sync: [Lie(wire.Sync(HUGE))],
    wire.Synced: [Lie(wire.Synced(HUGE)), Lie(wire.Synced(0))],
    wire.Pushed: [
        Lie(wire.Pushed("never asked for", -(2**63), "x" * 4096)),
        Lie(wire.Pushed(HUGE, HUGE, "")),
    ],
    wire.Bye: [Lie(wire.Bye("x" * 4096), "the peer left")],
    wire.Closed: [Lie(wire.Closed("x" * 4096), "closed by the peer")],
}

if hasattr(wire, "Staging"):
    EXAMPLES[wire.Staging] = wire.Staging(SEGMENT, 4096)
    LIES[wire.Staging] = [Lie(wire.Staging(SEGMENT, size), None) for size in (1, HUGE)]

each_message = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


def test_every_message_of_the_protocol_has_its_rows() -> None:
    assert set(EXAMPLES) == set(LIES) == set(MESSAGES)
    for kind in MESSAGES:
        assert isinstance(EXAMPLES[kind], kind)
        assert LIES[kind]
        assert all(isinstance(lie.message, kind) for lie in LIES[kind])


# The form.


@each_message
def test_a_message_that_is_cut_off_anywhere_is_malformed(kind: type) -> None:
    data = wire.encode(EXAMPLES[kind])
    assert wire.decode(data) == EXAMPLES[kind]

    for length in range(len(data)):
        with pytest.raises(wire.MalformedMessageError):
            wire.decode(data[:length])
    with pytest.raises(wire.MalformedMessageError):
        wire.decode(data + b"\x00")


@each_message
def test_a_field_of_another_type_or_range_is_malformed(kind: type) -> None:
    plain = msgspec.msgpack.decode(wire.encode(EXAMPLES[kind]))
    hostile = [-1, 2**64 - 1, 1.5, "x" * 5000, "", b"\xff", True, None, [], [[]], {}, {"a": {}}, [0] * 70_000]
    for field in msgspec.structs.fields(kind):
        refused = 0
        for value in hostile:
            data = msgspec.msgpack.encode({**plain, field.name: value})
            try:
                message = wire.decode(data)
            except (wire.MalformedMessageError, wire.OtherProtocolError):
                refused += 1
            else:
                assert wire.decode(wire.encode(message)) == message
        assert refused >= len(hostile) - 3, field.name


@each_message
def test_a_field_that_is_missing_is_malformed(kind: type) -> None:
    plain = msgspec.msgpack.decode(wire.encode(EXAMPLES[kind]))
    for field in msgspec.structs.fields(kind):
        rest = {name: value for name, value in plain.items() if name != field.name}
        if field.required:
            with pytest.raises(wire.MalformedMessageError):
                wire.decode(msgspec.msgpack.encode(rest))


@each_message
def test_a_field_that_nobody_knows_changes_nothing(kind: type) -> None:
    plain = msgspec.msgpack.decode(wire.encode(EXAMPLES[kind]))

    data = msgspec.msgpack.encode({"later": [1] * 1000, **plain, "news": {"a": 2**64 - 1}})

    assert wire.decode(data) == EXAMPLES[kind]


# The state. A good link is there before, and another one is made after.


class Liar(RawPeer):
    def hear(self) -> wire.Message:
        assert self.socket.poll(int(DEADLINE_S * 1000))
        return wire.decode(b"".join(self.socket.recv_multipart()))


class Server:
    def __init__(self, node: Callable[..., Node]) -> None:
        self.node = node(1, listens=True)
        self.node.register(1)
        self.node.register(2, remote_accessible=False)
        self.friend = node(3)
        assert link(self.friend, self.node) == OK
        self._late = node(4)

    def check(self, caplog: pytest.LogCaptureFixture) -> None:
        assert is_linked(self.friend, self.node)
        assert self.friend.links.sync(1, DEADLINE_S)
        assert link(self._late, self.node) == OK
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def joined(raw: Liar) -> None:
    assert isinstance(raw.ask(EXAMPLES[wire.Hello]), wire.Welcome)
    assert isinstance(raw.ask(EXAMPLES[wire.Join]), wire.Joined)


def is_open(raw: Liar) -> tuple[bool, str]:
    """Whether the server still has the link, and if not, why, in its words."""
    raw.send(wire.encode(wire.Sync(99)))
    while True:
        answer = raw.hear()
        if answer == wire.Synced(99):
            return True, ""
        if isinstance(answer, wire.Closed):
            return False, answer.reason


@each_message
def test_a_message_before_there_is_a_link_makes_none(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    server = Server(node)

    with Liar(server.node) as raw:
        for _ in range(3):
            raw.send(wire.encode(EXAMPLES[kind]))
        assert not is_open(raw)[0] or kind is wire.Hello

    assert len(server.node.native.open_links()) == 1
    server.check(caplog)


@each_message
def test_a_message_in_the_handshake_is_taken_in_its_place_only(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    server = Server(node)

    with Liar(server.node) as raw:
        assert isinstance(raw.ask(EXAMPLES[wire.Hello]), wire.Welcome)
        for _ in range(2):
            raw.send(wire.encode(EXAMPLES[kind]))
        if kind in (wire.Join, wire.Closed):
            assert is_open(raw)[0] == (kind is wire.Join)
        else:
            assert isinstance(raw.ask(EXAMPLES[wire.Join]), wire.Joined)
            assert is_open(raw)[0]

    server.check(caplog)


@pytest.mark.parametrize(
    "lie",
    [lie for lies in LIES.values() for lie in lies],
    ids=[f"{kind.__name__}-{i}" for kind, lies in LIES.items() for i in range(len(lies))],
)
def test_a_lie_ends_its_own_link_at_most(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture, lie: Lie
) -> None:
    server = Server(node)

    with Liar(server.node) as raw:
        joined(raw)
        for _ in range(2):
            raw.send(wire.encode(lie.message))
        still_open, why = is_open(raw)

    if lie.ends is not None:
        assert still_open == (not lie.ends)
        assert lie.ends in "".join(caplog.messages) + why
    server.check(caplog)
    if isinstance(lie.message, wire.Withdrawn):  # nobody else's memory is given back by it
        held = server.node.registry.held()
        assert not held
        assert server.node.native.released == []


@each_message
def test_a_message_twice_is_as_good_as_once(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    """An open link survives what it does not expect; what ends it ends it once."""
    server = Server(node)

    with Liar(server.node) as raw:
        joined(raw)
        for _ in range(2):
            raw.send(wire.encode(EXAMPLES[kind]))
        still_open, _ = is_open(raw)

    if LIES[kind][0].ends is not None:
        assert still_open == (kind not in (wire.Bye, wire.Closed, wire.Announce))
    server.check(caplog)


@each_message
def test_a_message_of_a_connection_whose_link_has_ended_reaches_no_later_link(
    node: Callable[..., Node],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
) -> None:
    """The same cluster, linked anew: what is still under way from before is of an old generation."""
    handled: list[bytes] = []
    handle = Control._on_router_message

    def watched(control: Control, router: Any, frames: list[Any]) -> None:
        handle(control, router, frames)
        handled.append(frames[-1].bytes)

    monkeypatch.setattr(Control, "_on_router_message", watched)
    server = Server(node)
    with Liar(server.node) as old, Liar(server.node) as new:
        joined(old)
        old.send(wire.encode(wire.Bye("it begins anew")))
        while not isinstance(old.hear(), wire.Closed):
            pass
        joined(new)
        (later,) = (end for end in server.node.native.open_links() if end.peer_cluster_id == 2)
        before, last = copy.deepcopy(later), wire.encode(wire.Sync(98))
        for _ in range(2):
            old.send(wire.encode(EXAMPLES[kind]))
        old.send(last)
        wait_until(lambda: last in handled)

        assert later == before
        assert is_open(new) == (True, "")
    server.check(caplog)


def test_withdrawn_by_one_peer_frees_nothing_that_another_may_touch(node: Callable[..., Node]) -> None:
    server = Server(node)
    with Liar(server.node) as raw:
        joined(raw)
        server.friend.native.links[next(iter(server.friend.native.links))].in_use.add(1)
        server.node.unregister(1)
        raw.send(wire.encode(wire.Withdrawn(1)))
        raw.send(wire.encode(wire.Withdrawn(1)))

        assert is_open(raw)[0]

        assert server.node.native.released == []
