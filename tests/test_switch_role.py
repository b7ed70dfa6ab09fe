"""switch_role: a label changes, and with it where an instance listens. Two instances of one process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.conformance.case import INVALID, check_raises, row
from tests.nodes import unused_port
from tests.transfers import link, pattern, restore, start
from torch_llm_datadist import LLMClusterInfo, LLMRole, LLMStatusCode

OK = LLMStatusCode.LLM_SUCCESS
LISTEN = "llm.listenIpInfo"


@pytest.fixture
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """The first does not listen, the second does; they are not linked."""
    made = start(1, 0, listen_ip_info=None), start(2, 1)
    yield made
    for each in made:
        each.datadist.finalize()


def link_to(client: SimpleNamespace, server: SimpleNamespace, timeout: int = 5000) -> LLMStatusCode:
    info = instances.cluster(server.cluster_id, server.port)
    return client.datadist.link_clusters([info], timeout=timeout)[0]  # type: ignore[no-any-return]


def unlink(client: SimpleNamespace, server: SimpleNamespace) -> None:
    info: LLMClusterInfo = instances.cluster(server.cluster_id, server.port)
    assert client.datadist.unlink_clusters([info])[0] == OK


def switch(state: SimpleNamespace, role: LLMRole, *options: Any) -> None:
    state.datadist.switch_role(role, *options)
    state.port = state.datadist.listen_port


def test_two_instances_exchange_their_roles(pair: Any) -> None:
    one, two = pair
    link(one, two)
    unlink(one, two)
    old_port = two.port

    switch(two, LLMRole.DECODER)
    switch(one, LLMRole.PROMPT, {LISTEN: "127.0.0.1:0"})

    assert two.datadist.listen_port is None
    assert link_to(one, SimpleNamespace(cluster_id=2, port=old_port), 200) == LLMStatusCode.LLM_LINK_FAILED
    assert link_to(two, one) == OK
    restore(one), restore(two)
    instances.push_blocks(one, 2, [1], [0])  # the server pushes over the link that the client made
    instances.push_blocks(two, 1, [1], [0])
    assert torch.equal(instances.content(two)[:, 0], pattern(1)[:, 1])
    assert torch.equal(instances.content(one)[:, 0], pattern(2)[:, 1])


def test_the_listener_moves_to_another_port(pair: Any) -> None:
    one, two = pair
    old, new = two.port, unused_port()

    switch(two, LLMRole.MIX, {LISTEN: f"127.0.0.1:{new}"})

    assert two.port == new
    assert link_to(one, SimpleNamespace(cluster_id=2, port=old), 200) == LLMStatusCode.LLM_LINK_FAILED
    assert link_to(one, two) == OK


def test_the_listener_moves_to_another_address_at_the_same_port(pair: Any) -> None:
    """Mended: in the original a changed address with the same port is ignored."""
    one, two = pair
    port = two.port

    switch(two, LLMRole.MIX, {LISTEN: f"[::1]:{port}"})

    assert link_to(one, SimpleNamespace(cluster_id=2, port=port), 200) == LLMStatusCode.LLM_LINK_FAILED
    info = LLMClusterInfo()
    info.remote_cluster_id = 2
    info.append_local_ip_info("::1", 0)
    info.append_remote_ip_info("::1", port)
    assert one.datadist.link_clusters([info])[0] == OK


def test_the_same_role_and_address_change_nothing(pair: Any) -> None:
    one, two = pair

    switch(two, LLMRole.MIX, {LISTEN: f"127.0.0.1:{two.port}", "other": "1"})
    switch(one, LLMRole.MIX)

    assert link_to(one, two) == OK


def test_live_links_forbid_it(pair: Any) -> None:
    one, two = pair
    link(one, two)

    for each in pair:
        check_raises(LLMStatusCode.LLM_EXIST_LINK, lambda each=each: switch(each, LLMRole.DECODER))

    assert two.datadist.listen_port == two.port


def test_a_taken_address_is_named_and_the_old_one_stays(pair: Any) -> None:
    one, two = pair
    taken = start(3, 2)
    try:
        said = check_raises(
            LLMStatusCode.LLM_FAILED,
            lambda: switch(two, LLMRole.PROMPT, {LISTEN: f"127.0.0.1:{taken.port}"}),
        )
    finally:
        taken.datadist.finalize()

    assert f"127.0.0.1:{taken.port}" in said
    assert link_to(one, two) == OK


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        row("2.4 role is an int", TypeError, (1,)),
        row("2.4 role = None (mended)", TypeError, (None,)),
        row("2.4 options are a list", TypeError, (LLMRole.MIX, [])),
        row("2.4 an option is an int", TypeError, (LLMRole.MIX, {LISTEN: 1})),
        row("2.4 an address without a port", INVALID, (LLMRole.MIX, {LISTEN: "127.0.0.1"})),
        row("2.4 a port that is no number", ValueError, (LLMRole.MIX, {LISTEN: "127.0.0.1:x"})),
    ],
)
def test_bad_arguments_are_refused(pair: Any, expected: Any, arguments: Any) -> None:
    check_raises(expected, lambda: pair[1].datadist.switch_role(*arguments))
    assert link_to(*pair) == OK
