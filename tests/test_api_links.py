"""Links between real processes on several devices: made, used by several threads, ended, made again."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from tests import instances
from tests.links import (
    Peers,
    linked_pair,
    pattern,
    push,
    start,
    unlink,
    wait_unlinked,
)


def test_blocks_move_both_ways_over_one_link(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)

    assert client.call(push, 2, [1, 2], [6, 3]) == "LLM_SUCCESS"
    assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"
    server.call(instances.pull_blocks, 1, [5], [1])

    ours, theirs = pattern(1), pattern(2)
    theirs[:, [6, 3]] = ours[:, [1, 2]]
    theirs[:, 1] = ours[:, 5]
    ours[:, 0] = theirs[:, 0]
    assert torch.equal(client.call(instances.content), ours)
    assert torch.equal(server.call(instances.content), theirs)


@pytest.mark.parametrize("force", [False, True])
def test_a_link_that_was_unlinked_can_be_made_again(peers: Peers, force: bool) -> None:
    client, server, port = linked_pair(peers)

    for _ in range(3):
        assert client.call(unlink, 2, port, 5000, force) == ["LLM_SUCCESS"]
        assert client.call(push, 2, [0], [0]).startswith("LLM_NOT_YET_LINK")
        assert server.call(wait_unlinked, 1, 10).startswith("LLM_NOT_YET_LINK")
        assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
        assert client.call(push, 2, [0], [1]) == "LLM_SUCCESS"
        assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"


def test_threads_push_over_several_links_at_the_same_time(peers: Peers) -> None:
    hub, *spokes = peers(4)
    hub.call(start, 1, 0, {})
    for i, spoke in enumerate(spokes):
        port = spoke.call(start, 10 + i, 1 + i, {})
        assert hub.call(instances.link, 10 + i, port) == ["LLM_SUCCESS"]

    assert hub.call(push_from_threads, [10, 11, 12], 20) == []

    for spoke in spokes:
        assert torch.equal(spoke.call(instances.content)[:, :4], pattern(1)[:, 4:])


def push_from_threads(state: SimpleNamespace, cluster_ids: list[int], times: int) -> list[str]:
    errors: list[str] = []

    def run(cluster_id: int, block: int) -> None:
        for _ in range(times):
            said = push(state, cluster_id, [4 + block], [block])
            if said != "LLM_SUCCESS":
                errors.append(said)

    threads = [threading.Thread(target=run, args=(c, b)) for c in cluster_ids for b in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
