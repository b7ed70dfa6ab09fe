"""Tagged pushes: the receiver's wait_arrival returns when the bytes are there, or says why they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.conformance.case import check_raises, row
from tests.peers import Peer
from tests.transfers import BLOCKS, link, pattern, restore, start
from torch_llm_datadist import LLMStatusCode, arrivals
from torch_llm_datadist.arrivals import Arrivals

TIMEOUT = LLMStatusCode.LLM_TIMEOUT
INVALID = LLMStatusCode.LLM_PARAM_INVALID
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = start(1, 0), start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture
def pair(both: tuple[SimpleNamespace, SimpleNamespace]) -> tuple[SimpleNamespace, SimpleNamespace]:
    for each in both:
        restore(each)
    return both


@pytest.mark.parametrize("tag", ["request 7", 0, 2**64 - 1, "x" * 256])
def test_wait_arrival_returns_when_the_bytes_of_a_tagged_push_are_there(pair: Any, tag: Any) -> None:
    """Lifted: in the original a receiver is not told."""
    here, there = pair
    waiting = threading.Thread(target=instances.push_blocks, args=(here, 2, [1], [3]), kwargs={"tag": tag})
    waiting.start()

    there.manager.wait_arrival(1, tag, WAIT_MS)

    assert torch.equal(instances.content(there)[:, 3], pattern(1)[:, 1])
    waiting.join()


def test_a_tag_that_came_before_the_wait_is_kept_and_taken_once(pair: Any) -> None:
    here, there = pair
    for tag in ("a", "b"):
        instances.push_blocks(here, 2, [1], [3], tag=tag)

    there.manager.wait_arrival(1, "b", WAIT_MS)
    there.manager.wait_arrival(1, "a", WAIT_MS)

    check_raises(TIMEOUT, lambda: there.manager.wait_arrival(1, "a", 1))


def test_the_reverse_direction_has_tags_of_its_own(pair: Any) -> None:
    here, there = pair
    instances.push_blocks(there, 1, [0], [0], tag=5)

    check_raises(TIMEOUT, lambda: there.manager.wait_arrival(1, 5, 1))
    here.manager.wait_arrival(2, 5, WAIT_MS)


def test_a_tagged_push_that_fails_says_so_at_both_ends(pair: Any) -> None:
    here, there = pair

    said = check_raises(INVALID, lambda: instances.push_blocks(here, 2, [0], [BLOCKS], tag="bad"))

    assert said in check_raises(INVALID, lambda: there.manager.wait_arrival(1, "bad", WAIT_MS))


def test_an_untagged_push_tells_nobody(pair: Any) -> None:
    here, there = pair
    instances.push_blocks(here, 2, [1], [3])
    instances.push_blocks(here, 2, [1], [3], tag="mark")

    there.manager.wait_arrival(1, "mark", WAIT_MS)

    assert not there.manager._links.arrivals._unclaimed[1]


def test_wait_arrival_without_a_link_does_not_wait(pair: Any) -> None:
    said = check_raises(NOT_LINKED, lambda: pair[1].manager.wait_arrival(9, "x", WAIT_MS))

    assert "no link to cluster 9" in said


ROWS = [
    row("cluster is a str", TypeError, ("1", "x")),
    row("cluster is negative", ValueError, (-1, "x")),
    row("tag is None", TypeError, (1, None)),
    row("tag is a bool", TypeError, (1, True)),
    row("tag is bytes", TypeError, (1, b"x")),
    row("tag is empty", ValueError, (1, "")),
    row("tag is too long", ValueError, (1, "x" * 257)),
    row("tag is half a character", ValueError, (1, "\ud800")),
    row("tag is negative", ValueError, (1, -1)),
    row("tag is beyond uint64", ValueError, (1, 2**64)),
    row("timeout is 0", INVALID, (1, "x", 0)),
    row("timeout is None", TypeError, (1, "x", None)),
]


@pytest.mark.parametrize(("expected", "arguments"), ROWS)
def test_wait_arrival_refuses_bad_arguments(pair: Any, expected: Any, arguments: Any) -> None:
    check_raises(expected, lambda: pair[0].manager.wait_arrival(*arguments))


@pytest.mark.parametrize("tag", ["", -1, 1.0, True, pytest.param("\ud800", id="half a character")])
def test_a_bad_tag_is_refused_before_anything_is_sent(pair: Any, tag: Any) -> None:
    here, there = pair

    with pytest.raises((TypeError, ValueError), match="push_blocks: tag"):
        instances.push_blocks(here, 2, [1], [3], tag=tag)

    assert torch.equal(instances.content(there), pattern(2))


def test_tags_that_nobody_waits_for_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrivals, "MAX_UNCLAIMED", 3)
    found = Arrivals()
    found.linked(1)

    for tag in range(4):
        found.add(1, tag, 0, "")

    assert "forgetting tag 0" in caplog.text
    check_raises(TIMEOUT, lambda: found.wait(1, 0, 0.0))
    for tag in (1, 2, 3):
        found.wait(1, tag, 0.0)


def test_what_has_arrived_is_there_after_the_link_has_ended() -> None:
    found = Arrivals()
    found.linked(1)
    found.add(1, "x", 0, "")

    found.ended(1)

    found.wait(1, "x", 0.0)
    check_raises(NOT_LINKED, lambda: found.wait(1, "x", 10.0))


def test_a_new_link_knows_nothing_of_what_arrived_over_an_old_one() -> None:
    """An engine that uses its requests' ids again would read what the new peer has not pushed."""
    found = Arrivals()
    found.linked(1)
    found.add(1, "x", 0, "")
    found.ended(1)

    found.linked(1)

    check_raises(TIMEOUT, lambda: found.wait(1, "x", 0.0))


def begin(state: SimpleNamespace, cluster_id: int, device: int) -> int:
    instances.start(state, cluster_id, device, {"keep_alive_ms": 1000})
    instances.register(state, cluster_id, 2, 4, 256)
    return state.datadist.listen_port


def wait_arrival(state: SimpleNamespace, cluster_id: int, tag: str) -> tuple[str, float]:
    began = time.monotonic()
    try:
        state.datadist.cache_manager.wait_arrival(cluster_id, tag, 60_000)
    except datadist.LLMException as error:
        return error.status_code.name, time.monotonic() - began
    return "LLM_SUCCESS", time.monotonic() - began


def push(state: SimpleNamespace, cluster_id: int, tag: str) -> None:
    instances.push_blocks(state, cluster_id, [1], [2], tag=tag)


def test_a_sender_that_dies_ends_the_wait(peers: Callable[[int], list[Peer]]) -> None:
    sender, receiver = peers(2)
    port = receiver.call(begin, 2, 1)
    sender.call(begin, 1, 0)
    assert sender.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    sender.call(push, 2, "first")
    assert receiver.call(wait_arrival, 1, "first")[0] == "LLM_SUCCESS"
    receiver.send(wait_arrival, 1, "second")

    sender.kill()

    code, took_s = receiver.answer()
    assert code == "LLM_NOT_YET_LINK"
    assert took_s < 30
