"""One valid message of each kind. ``write`` makes the files of corpus/ out of them."""

from __future__ import annotations

from pathlib import Path

from torch_llm_datadist import wire
from torch_llm_datadist.identity import Identity, own_identity

CORPUS = Path(__file__).parent / "corpus"


def identity(cluster_id: int) -> Identity:
    """Of this process, so that it is taken for a possible peer."""
    return own_identity(cluster_id, 1, remote_accessible=True, cann="test")


def cache(cache_id: int) -> wire.CacheRecord:
    segments = [wire.SegmentRecord(b"handle", 64 * i, 4096 + i) for i in range(2)]
    keys = [wire.KeyRecord(False, 7, 0, 1)]
    return wire.CacheRecord(
        cache_id=cache_id, model_id=0, num_blocks=4, tensor_bytes=[64, 64], keys=keys, segments=segments
    )


def messages(cluster_id: int, wanted: int, me: Identity | None = None) -> list[wire.Message]:
    me, page = me or identity(cluster_id), wire.SegmentRecord(b"page", 0, 4096)
    comm = wire.CommRecord("kv", [(1, 0), (2, 1)])
    return [
        wire.Hello(wanted_cluster_id=wanted, identity=me),
        wire.Hello(wanted_cluster_id=wanted, identity=me, comm=comm),
        wire.Welcome(identity=me),
        wire.Refused(1343270917, "no"),
        wire.Join(1025, page, [cache(1)]),
        wire.Joined(1025, page, [cache(1), cache(2)]),
        wire.Announce(cache(3)),
        wire.Withdraw(1),
        wire.Withdrawn(1),
        wire.Keys(1, [wire.KeyRecord(True, 2**64 - 1, 0, 3)]),
        wire.Taken(1, 0, 0, 2),
        wire.Sync(5),
        wire.Synced(5),
        wire.Pushed("request 7", 0, ""),
        wire.Pushed(7, 1343270938, "late"),
        wire.Staging(wire.SegmentRecord(b"staging", 0, 8192), 4096),
        wire.Bye("unlinked"),
        wire.Closed("unlinked"),
    ]


def corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]


def write() -> None:
    CORPUS.mkdir(exist_ok=True)
    nobody = Identity(
        cluster_id=2, instance=7, remote_accessible=True, authenticated=False, host="host", pid=1,
        start_time=1, device=1, package="0", torch="0", torch_npu="0", cann="0",
    )  # fmt: skip
    for number, message in enumerate(messages(2, 1, nobody)):
        name = f"{number:02}_{type(message).__name__.lower()}.bin"
        (CORPUS / name).write_bytes(wire.encode(message))
