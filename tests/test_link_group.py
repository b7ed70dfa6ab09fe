"""link_group: all ranks of a tensor-parallel group, or none."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests import instances
from tests.conformance.case import INVALID, check_raises, row
from tests.nodes import unused_port
from tests.transfers import start
from torch_llm_datadist import LLMStatusCode


@pytest.fixture
def group() -> Iterator[list[SimpleNamespace]]:
    """The first is to be linked to the other three."""
    made = [start(1 + i, i) for i in range(4)]
    yield made
    for each in made:
        each.datadist.finalize()


def ranks(servers: list[SimpleNamespace]) -> dict[int, str]:
    return {server.cluster_id: f"127.0.0.1:{server.port}" for server in servers}


def linked(state: SimpleNamespace) -> set[int]:
    return {info.cluster_id for info in state.datadist.links()}


def test_link_group_links_to_every_rank(group: list[SimpleNamespace]) -> None:
    one, *others = group

    one.datadist.link_group(ranks(others))

    assert linked(one) == {2, 3, 4}
    for other in others:
        instances.push_blocks(one, other.cluster_id, [0], [0])
    one.datadist.link_group(ranks(others))  # linked already is as good


def test_link_group_leaves_nothing_behind_when_a_rank_is_missing(group: list[SimpleNamespace]) -> None:
    one, two, three, _ = group
    one.datadist.link_group(ranks([two]))
    missing = {**ranks([two, three]), 9: f"127.0.0.1:{unused_port()}"}

    said = check_raises(LLMStatusCode.LLM_LINK_FAILED, lambda: one.datadist.link_group(missing, timeout=300))

    assert "cluster 9 at 127.0.0.1:" in said
    assert linked(one) == {2}  # it was there before


def test_link_group_needs_the_secret_of_every_rank() -> None:
    """With another secret at one rank there is no link to any."""
    secrets = ["correct horse battery staple"] * 2 + ["another horse battery staple"]
    one, two, three = made = [start(1 + i, i, link_secret=secret) for i, secret in enumerate(secrets)]
    try:
        one.datadist.link_group(ranks([two]))
        said = check_raises(
            LLMStatusCode.LLM_LINK_FAILED, lambda: two.datadist.link_group(ranks([three]), timeout=20_000)
        )

        assert "cluster 3 at 127.0.0.1:" in said
        assert linked(one) == {2}
        assert linked(three) == set()
    finally:
        for each in made:
            each.datadist.finalize()


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        row("no dict", TypeError, ([],)),
        row("id is a str", TypeError, ({"2": "127.0.0.1:1"},)),
        row("address is a tuple", TypeError, ({2: ("127.0.0.1", 1)},)),
        row("address without a port", INVALID, ({2: "127.0.0.1"},)),
        row("port is no number", ValueError, ({2: "127.0.0.1:x"},)),
        row("empty", INVALID, ({},)),
        row("timeout 0", INVALID, ({2: "127.0.0.1:1"}, 0)),
    ],
)
def test_link_group_refuses_bad_arguments(
    group: list[SimpleNamespace], expected: Any, arguments: Any
) -> None:
    check_raises(expected, lambda: group[0].datadist.link_group(*arguments))
