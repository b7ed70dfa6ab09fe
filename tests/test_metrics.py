"""What an instance counts of each link."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests import instances
from tests.links import status_of
from tests.peers import Peer

TENSORS, BLOCKS, BLOCK_BYTES = 4, 8, 512


def metrics(state: SimpleNamespace) -> list[dict[str, str | int]]:
    found: list[dict[str, str | int]] = state.datadist.metrics()
    return [{name: value for name, value in one.items() if name != "link"} for one in found]


def push(state: SimpleNamespace, src: list[int], dst: list[int]) -> str:
    return status_of(lambda: instances.push_blocks(state, 2, src, dst))


def push_in_a_hurry(state: SimpleNamespace, src: list[int], dst: list[int]) -> str:
    """Less than keep_alive: into a frozen peer it ends by its own deadline."""
    with instances.in_a_hurry(state, 500):
        return push(state, src, dst)


@pytest.mark.parametrize("transport", ["mapped", "loopback"])
def test_transfers_bytes_and_failures_are_counted_per_link(
    peers: Callable[[int], list[Peer]], transport: str
) -> None:
    a, b = peers(2)
    a.call(instances.start, 1, 0, {"transport": transport})
    port = b.call(instances.start, 2, 1, {"transport": transport})
    for cluster_id, peer in ((1, a), (2, b)):
        peer.call(instances.register, cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
    a.call(instances.link, 2, port)
    b.call(instances.wait_linked, 1)
    none = {
        "state": "linked",
        "transport": transport,
        "transfers": 0,
        "failures": 0,
        "bytes": 0,
        "in_doubt": 0,
    }
    assert a.call(metrics) == [{"cluster_id": 2, **none}]

    a.call(push, [0, 1], [2, 4])
    a.call(instances.pull_blocks, 2, [3], [3])

    moved = {"transfers": 2, "bytes": 3 * TENSORS * BLOCK_BYTES}
    assert a.call(metrics) == [{"cluster_id": 2, **none, **moved}]
    assert b.call(metrics) == [{"cluster_id": 1, **none}]  # those of the end that began them

    if transport == "mapped":  # whose copies a frozen peer does not hold up
        return
    b.freeze()
    assert a.call(push_in_a_hurry, [0], [0]).startswith("LLM_TIMEOUT")
    [of_lost] = a.call(metrics)
    b.thaw()
    assert (of_lost["transfers"], of_lost["failures"]) == (3, 1)
    assert of_lost["bytes"] == moved["bytes"]
