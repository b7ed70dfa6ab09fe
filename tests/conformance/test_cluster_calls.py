"""2.4: ``link_clusters`` and ``unlink_clusters`` with what they do not take, and what they say of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests import instances
from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import start
from torch_llm_datadist import LLMClusterInfo, LLMStatusCode

OK = LLMStatusCode.LLM_SUCCESS
CALLS = ["link_clusters", "unlink_clusters"]


@pytest.fixture(scope="module")
def datadist() -> Iterator[Any]:
    state: SimpleNamespace = start(1, 0)
    yield state.datadist
    state.datadist.finalize()


def good() -> LLMClusterInfo:
    return instances.cluster(2, 1)


def without_id() -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.append_local_ip_info("127.0.0.1", 0)
    return info


def without_local() -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = 2
    return info


BOTH = [
    row("2.4 clusters = None", TypeError, (None,)),
    row("2.4 clusters is a single one", TypeError, (good(),)),
    row("2.4 clusters holds None", TypeError, ([None],)),
    row("2.4 clusters holds an int", TypeError, ([good(), 3],)),
    row("2.4 clusters is a str", TypeError, ("x",)),
    row("2.3 remote_cluster_id is not set", TypeError, ([without_id()],)),
    row("2.4 timeout = None", TypeError, ([good()], None)),
    row("2.4 timeout = 1.5", TypeError, ([good()], 1.5)),
    row("2.4 timeout is a str", TypeError, ([good()], "3000")),
    row("3.2 row 1 timeout = True (mended)", TypeError, ([good()], True)),
    row("2.4 timeout = 2**31", ValueError, ([good()], 2**31)),
    row("2.4 timeout = -1", INVALID, ([good()], -1)),
    row("3.2 row 18 timeout = 0", INVALID, ([good()], 0)),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("expected", "arguments"), BOTH)
def test_bad_arguments_are_refused(datadist: Any, name: str, expected: Any, arguments: Any) -> None:
    check_raises(expected, lambda: getattr(datadist, name)(*arguments))


ONE_OF_THEM = [
    row("2.4 no local address, and it is needed", INVALID, "link_clusters", ([without_local()],)),
    row("2.4 force = 1", TypeError, "unlink_clusters", ([good()], 3000, 1)),
    row("2.4 force is a str", TypeError, "unlink_clusters", ([good()], 3000, "x")),
    row("2.4 force = None (mended)", TypeError, "unlink_clusters", ([good()], 3000, None)),
]


@pytest.mark.parametrize(("expected", "name", "arguments"), ONE_OF_THEM)
def test_bad_arguments_of_one_of_them_are_refused(
    datadist: Any, expected: Any, name: str, arguments: Any
) -> None:
    """Mended: force=None is False in the original."""
    check_raises(expected, lambda: getattr(datadist, name)(*arguments))


@pytest.mark.parametrize("name", CALLS)
def test_no_clusters_are_a_status(datadist: Any, name: str) -> None:
    """3.2 row 13."""
    assert getattr(datadist, name)([]) == (INVALID, [])


@pytest.mark.parametrize("name", CALLS)
def test_two_addresses_of_one_server_are_a_status(datadist: Any, name: str) -> None:
    info = good()
    info.append_remote_ip_info("127.0.0.1", 2)

    assert getattr(datadist, name)([info]) == (INVALID, [INVALID])


def test_unlinking_what_is_not_linked_is_a_success_with_and_without_an_address(datadist: Any) -> None:
    assert datadist.unlink_clusters([without_local()], force=True) == (OK, [OK])
    assert datadist.unlink_clusters([good()]) == (OK, [OK])


def test_addresses_are_read_back_as_little_endian_numbers() -> None:
    info = LLMClusterInfo()
    info.append_local_ip_info("1.2.3.4", 5)
    info.append_remote_ip_info(0x0403_0201, 6)

    assert info.local_ip_info_list == [(0x04030201, 5)]
    assert info.remote_ip_info_list == [(0x04030201, 6)]
