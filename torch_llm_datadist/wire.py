"""The control messages between two instances: msgpack, at most 1 MiB, in frames of at most 64 KiB.

    client                     server
    HELLO(identity)      ->
                         <-    WELCOME(identity)  or  REFUSED(code, reason)
    JOIN(page, caches)   ->                        memory is exported from here on
                         <-    JOINED(page, caches)

and then, either way, in any order:

    ANNOUNCE(cache)             one more cache can be reached
    WITHDRAW(cache_id)          stop using it …
    WITHDRAWN(cache_id)         … done: nothing of mine touches it any more
    KEYS(cache_id, keys)        the keys of that cache are these now
    TAKEN(cache_id, …)          I have pulled that much of one of its batch entries
    SYNC(serial), SYNCED        asks whether all announcements up to now have been sent
    PUSHED(tag, code, detail)   a tagged push has ended
    STAGING(memory, bytes)      packed transfers to me land there
    BYE(reason)                 please close your end
    CLOSED(reason)              my end is closed: nothing of mine is in flight any more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
import zmq
from msgspec import Meta

from .identity import PROTOCOL_VERSION, Identity, Name, Natural
from .messages import refusal

MAX_MESSAGE_BYTES = 2**20
MAX_FRAME_BYTES = 2**16  # what a connection can make its other end hold before it has shown its key
# What one end of a link makes the other keep: its caches, and the bytes of the messages that told of them.
MAX_ANNOUNCED_CACHES = 4096
MAX_ANNOUNCED_BYTES = 16 * 2**20
# Of the caches in a message that joins; what else is in it takes less. The rest is announced after it.
MAX_JOINING_BYTES = MAX_MESSAGE_BYTES - 2**16
MAX_QUEUED = 2 * MAX_ANNOUNCED_CACHES  # messages on a connection: every cache may be announced at once
MAX_FRAME_BYTES_ON_THE_WAY = MAX_FRAME_BYTES + 256  # encryption adds to it

Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Signed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
LinkNumber: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # the upper half of a ticket
Text: TypeAlias = Annotated[str, Meta(max_length=4096)]


class SegmentRecord(msgspec.Struct, array_like=True, frozen=True):
    """Where memory lies for a peer.

    Attributes:
        kind: 0 device memory, 1 host memory that peers can map, 2 other host memory of the process.
        address: for a peer in the same process, and of kind 2 for any; else 0.
    """

    handle: Annotated[bytes, Meta(max_length=4096)]
    offset: Signed
    address: Natural
    kind: Annotated[int, Meta(ge=0, le=2)] = 0


class KeyRecord(msgspec.Struct, array_like=True, frozen=True):
    """A key of a contiguous cache: a request id or a prefix id, its model, and the batch entry it names."""

    is_prefix: bool
    number: Natural
    model_id: Natural
    batch_index: Natural


KeyRecords: TypeAlias = Annotated[list[KeyRecord], Meta(max_length=65536)]


class CacheRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        num_blocks: of a contiguous cache, its batch entries.
        tensor_bytes: of each tensor.
        is_owned: allocated from a pool of the peer: keys go with the pull that used them.
        receives: transfers may write into it.
        addresses: of the tensors, as the peer's process sees them; without remote-accessible mode only.
    """

    cache_id: Positive
    model_id: Natural | None
    is_blocks: bool = True
    num_blocks: Positive
    tensor_bytes: Annotated[list[Positive], Meta(min_length=1, max_length=65536)]
    is_owned: bool = False
    receives: bool = True
    keys: KeyRecords = []
    addresses: Annotated[list[Natural], Meta(max_length=65536)] = []
    segments: Annotated[list[SegmentRecord], Meta(min_length=1, max_length=65536)]

    @property
    def is_on_host(self) -> bool:
        return self.segments[0].kind != 0


class _Message(msgspec.Struct, frozen=True, tag=str.lower, tag_field="type"):
    pass


class CommRecord(msgspec.Struct, frozen=True):
    """A two-sided link: its name and its members, (cluster_id, rank) in the order of the cluster ids."""

    name: Annotated[str, Meta(min_length=1, max_length=127)]
    members: Annotated[list[tuple[Natural, Natural]], Meta(min_length=2, max_length=4)]


# Of ``process_token``; empty: not shown.
Token: TypeAlias = Annotated[bytes, Meta(max_length=32)]


class Hello(_Message, frozen=True, kw_only=True):
    protocol: int = PROTOCOL_VERSION
    wanted_cluster_id: Natural
    identity: Identity
    comm: CommRecord | None = None
    token: Token = b""
    fenced: bool = False


class Welcome(_Message, frozen=True, kw_only=True):
    protocol: int = PROTOCOL_VERSION
    identity: Identity
    token: Token = b""


class Refused(_Message, frozen=True):
    code: int
    reason: Text


class Join(_Message, frozen=True):
    """
    Attributes:
        transport: name of the transport that both ends found.
        address: what the other end of that transport needs; b"" where that is nothing.
        proofs: of an end that verifies: where the other may say what it sent.
    """

    link: LinkNumber
    page: SegmentRecord
    caches: Annotated[list[CacheRecord], Meta(max_length=65536)]
    transport: Name = "mapped"
    address: Annotated[bytes, Meta(max_length=8192)] = b""
    proofs: SegmentRecord | None = None


class Joined(_Message, frozen=True):
    link: LinkNumber
    page: SegmentRecord
    caches: Annotated[list[CacheRecord], Meta(max_length=65536)]
    transport: Name = "mapped"
    address: Annotated[bytes, Meta(max_length=8192)] = b""
    proofs: SegmentRecord | None = None


class Announce(_Message, frozen=True):
    cache: CacheRecord


class Withdraw(_Message, frozen=True):
    cache_id: Positive


class Withdrawn(_Message, frozen=True):
    cache_id: Positive


class Keys(_Message, frozen=True):
    cache_id: Positive
    keys: KeyRecords


class Taken(_Message, frozen=True):
    cache_id: Positive
    batch_index: Natural
    first_tensor: Natural
    num_tensors: Positive


class Sync(_Message, frozen=True):
    serial: Natural


class Synced(_Message, frozen=True):
    serial: Natural


class Pushed(_Message, frozen=True):
    """A push with that tag has ended: 0, its bytes are there; or why not."""

    tag: Annotated[str, Meta(min_length=1, max_length=256)] | Natural
    code: int
    detail: Text


class Staging(_Message, frozen=True):
    memory: SegmentRecord
    size_bytes: Positive


class Bye(_Message, frozen=True):
    reason: Text


class Closed(_Message, frozen=True):
    reason: Text


Message: TypeAlias = (
    Hello
    | Welcome
    | Refused
    | Join
    | Joined
    | Announce
    | Withdraw
    | Withdrawn
    | Keys
    | Taken
    | Sync
    | Synced
    | Pushed
    | Staging
    | Bye
    | Closed
)


class _Greeting(msgspec.Struct):
    """The part of a HELLO or WELCOME that every version of the protocol has."""

    type: str
    protocol: int


class MalformedMessageError(ValueError):
    """The bytes are no message of this protocol."""


class OtherProtocolError(ValueError):
    """A greeting of another version of the protocol."""

    def __init__(self, version: int) -> None:
        super().__init__(f"protocol version {version}")
        self.version = version


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_greeting_decoder = msgspec.msgpack.Decoder(_Greeting)


def encode(message: Message) -> bytes:
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise refusal(
            "message_is_too_long", kind=type(message).__name__, value=len(data), high=MAX_MESSAGE_BYTES
        )
    return data


def foreseen_bytes(tensors: int, keys: int) -> int:
    """Of the message that tells a peer of a cache, at most, before there is a peer: 256 for each tensor,
    whose handle is of less than 200 bytes on every transport, unless it lies in many pieces.
    """
    return 256 * (1 + tensors) + 32 * keys


def size_of(record: CacheRecord) -> int:
    """Bytes, as it was sent."""
    return len(_encoder.encode(record))


def split(data: bytes) -> list[bytes]:
    """The frames of a message."""
    return [data[at : at + MAX_FRAME_BYTES] for at in range(0, len(data), MAX_FRAME_BYTES)] or [data]


def join(frames: Sequence[zmq.Frame]) -> bytes:
    """The message of some frames. ``MalformedMessageError`` where it is too long."""
    length = sum(map(len, frames))
    if length > MAX_MESSAGE_BYTES:
        raise MalformedMessageError(f"{length} bytes, expected at most {MAX_MESSAGE_BYTES}")
    return b"".join(frame.bytes for frame in frames)


def decode(data: bytes) -> Message:
    """Raises ``OtherProtocolError`` or ``MalformedMessageError``, and nothing else."""
    try:
        message: Message = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        version = _greeting_version(data)
        if version is not None and version != PROTOCOL_VERSION:
            raise OtherProtocolError(version) from None
        raise MalformedMessageError(str(error)) from None
    if isinstance(message, (Hello, Welcome)) and message.protocol != PROTOCOL_VERSION:
        raise OtherProtocolError(message.protocol)
    return message


def _greeting_version(data: bytes) -> int | None:
    try:
        return _greeting_decoder.decode(data).protocol
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
