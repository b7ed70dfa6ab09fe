"""One valid message of each kind, and plans of several shapes. ``write`` makes the files of corpus/ and
corpus_plans/ out of them."""

from __future__ import annotations

from pathlib import Path

from torch_llm_datadist import wire
from torch_llm_datadist.identity import Identity, own_identity

CORPUS = Path(__file__).parent / "corpus"
PLANS = Path(__file__).parent / "corpus_plans"


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
        wire.Join(1025, page, [], proofs=wire.SegmentRecord(b"proofs", 0, 12288)),
    ]


def corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]


def plans() -> dict[str, bytes]:
    """What ``planner.one_input`` reads; an id is a byte above the block that it names."""

    def plan(head: tuple[int, int, int, int], *pairs: tuple[int, int]) -> bytes:
        return bytes(head) + bytes(id_ + 1 for pair in pairs for id_ in pair)

    neighbours = [(i, 10 + i) for i in range(8)]
    return {
        "nothing": plan((0, 7, 7, 0)),
        "neighbours": plan((1, 15, 31, 0), *neighbours),
        "slab": plan((3 | 1 << 2, 31, 31, 0), *neighbours, (20, 3), (22, 5), (24, 7)),
        "every_second": plan((1 << 2, 40, 20, 1), *((2 * i, i) for i in range(18))),
        "scattered_slab": plan((2 | 2 << 2, 60, 60, 2), (50, 3), (7, 40), (31, 9), (8, 41), (0, 0)),
        "uneven": plan((3 | 3 << 2, 12, 12, 3), (1, 1), (3, 3), (5, 5)),
        "wide_rows": plan((1 | 1 << 2, 9, 9, 4), (0, 0), (1, 1), (3, 3), (4, 4)),
        "rows_as_wide_as_can_be": plan((3 | 1 << 2, 5, 5, 5), (2, 2), (0, 4)),
        "wider_than_a_row": plan((3 | 1 << 2, 5, 5, 6), (2, 2), (0, 4)),
        "padded": plan((1, 30, 30, 0), (3, 4), (-1, -1), (4, 5), (-1, -1)),
        "many": plan((0, 79, 79, 0), *((i * 37 % 79, i * 53 % 79) for i in range(79))),
        "listed_twice": plan((0, 20, 20, 0), (1, 2), (3, 2)),
        "outside": plan((0, 20, 20, 0), (1, 2), (21, 3)),
        "unequal": plan((0, 20, 20, 0), (1, 2)) + b"\x05",
        "hostile": plan((0, 20, 20, 0), (1, 2)) + bytes(range(248, 256)),
    }


def corpus_plans() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PLANS.glob("*.bin"))]


def write() -> None:
    CORPUS.mkdir(exist_ok=True)
    PLANS.mkdir(exist_ok=True)
    for name, data in plans().items():
        (PLANS / f"{name}.bin").write_bytes(data)
    nobody = Identity(
        cluster_id=2, instance=7, remote_accessible=True, authenticated=False, host="host", pid=1,
        start_time=1, device=1, package="0", torch="0", torch_npu="0", cann="0",
    )  # fmt: skip
    for number, message in enumerate(messages(2, 1, nobody)):
        name = f"{number:02}_{type(message).__name__.lower()}.bin"
        (CORPUS / name).write_bytes(wire.encode(message))
