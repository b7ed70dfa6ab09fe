"""2.3: LLMClusterInfo, and addresses as options spell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.case import check_raises, row
from torch_llm_datadist.cluster import LLMClusterInfo, LLMRole, parse_endpoint
from torch_llm_datadist.errors import LLMStatusCode

INVALID = LLMStatusCode.LLM_PARAM_INVALID


def test_cluster_info_lists_little_endian_integers() -> None:
    info = LLMClusterInfo()
    info.remote_cluster_id = 2**64 - 1
    info.remote_role_type = LLMRole.PROMPT
    info.append_local_ip_info("1.2.3.4", 5)
    info.append_remote_ip_info(0x04030201, 65535)
    info.append_remote_ip_info("127.1", 1)
    info.append_remote_ip_info("::1", 1)

    assert info.remote_cluster_id == 2**64 - 1
    assert info.local_ip_info_list == [(0x04030201, 5)]
    assert info.remote_ip_info_list == [(0x04030201, 65535), (0x0100007F, 1), (1 << 120, 1)]
    assert info.remote_addresses == [("1.2.3.4", 65535), ("127.0.0.1", 1), ("::1", 1)]


CLUSTER_ERRORS = [
    row(
        "2.3 append_local_ip_info('1.2.3', 0) or append_local_ip_info('nowhere', 0)",
        INVALID,
        lambda i: i.append_local_ip_info("1.2.3", 0) or i.append_local_ip_info("nowhere", 0),
    ),
    row("2.3 append_local_ip_info('', 0)", INVALID, lambda i: i.append_local_ip_info("", 0)),
    row(
        "2.3 append_local_ip_info('1.2.3.4 x', 0)", INVALID, lambda i: i.append_local_ip_info("1.2.3.4 x", 0)
    ),
    row(
        "2.3 append_remote_ip_info('fe80::zz', 0)", INVALID, lambda i: i.append_remote_ip_info("fe80::zz", 0)
    ),
    row("2.3 append_remote_ip_info(None, 0)", TypeError, lambda i: i.append_remote_ip_info(None, 0)),  # type: ignore[arg-type]
    row("2.3 append_remote_ip_info(True, 0)", TypeError, lambda i: i.append_remote_ip_info(True, 0)),
    row("2.3 append_remote_ip_info(2**32, 0)", ValueError, lambda i: i.append_remote_ip_info(2**32, 0)),
    row(
        "2.3 append_remote_ip_info('1.2.3.4', 65536)",
        ValueError,
        lambda i: i.append_remote_ip_info("1.2.3.4", 65536),
    ),
    row(
        "2.3 append_remote_ip_info('1.2.3.4', '1')",
        TypeError,
        lambda i: i.append_remote_ip_info("1.2.3.4", "1"),
    ),  # type: ignore[arg-type]
    row(
        "2.3 setattr(i, 'remote_cluster_id', '1')", TypeError, lambda i: setattr(i, "remote_cluster_id", "1")
    ),
    row("2.3 setattr(i, 'remote_cluster_id', -1)", ValueError, lambda i: setattr(i, "remote_cluster_id", -1)),
    row("2.3 setattr(i, 'remote_role_type', 'P')", TypeError, lambda i: setattr(i, "remote_role_type", "P")),
]


@pytest.mark.parametrize(("expected", "call"), CLUSTER_ERRORS)
def test_bad_cluster_infos_are_refused(expected: Any, call: Callable[[LLMClusterInfo], object]) -> None:
    """Mended: what is no address is a plain RuntimeError in the original."""
    check_raises(expected, lambda: call(LLMClusterInfo()))


@pytest.mark.parametrize(
    ("text", "found"),
    [("10.0.0.4:26000", ("10.0.0.4", 26000)), ("[::1]:0", ("::1", 0)), ("[FE80::1]:9", ("fe80::1", 9))],
)
def test_endpoints_are_read(text: str, found: tuple[str, int]) -> None:
    assert parse_endpoint("listen_ip_info", text) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.4", INVALID), (":26000", INVALID), ("::1:26000", INVALID), ("", INVALID),
        ("nowhere:1", INVALID),
        ("10.0.0.4:x", ValueError), ("10.0.0.4:", ValueError), ("10.0.0.4:65536", ValueError),
        ('{"a":1}:{', INVALID), ("{a", INVALID), (26000, TypeError),
    ],
)  # fmt: skip
def test_bad_endpoints_are_refused(text: Any, expected: Any) -> None:
    """Mended: braces are a KeyError in the original."""
    check_raises(expected, lambda: parse_endpoint("listen_ip_info", text))
