"""Options as text of any size: numbers of thousands of digits, and JSON that is nested as deep, are refused
as any other bad value is, and are not quoted in full."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.case import INVALID, check_raises
from torch_llm_datadist import LLMConfig, LLMDataDist, LLMRole
from torch_llm_datadist.cluster import parse_endpoint

DIGITS = "1" * 5000
DEEP = "[" * 100_000
LONGEST = 1000


def init(**options: str) -> Callable[[], object]:
    return lambda: LLMDataDist(LLMRole.MIX, 7).init({"llm.EnableCacheManager": "1", **options})


def configured(name: str, value: str) -> Callable[[], object]:
    return lambda: setattr(LLMConfig(), name, value)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(init(**{"llm.MemPoolConfig": DEEP}), id="a pool, nested"),
        pytest.param(init(**{"llm.MemPoolConfig": '{"memory_size": ' + DIGITS + "}"}), id="a pool, digits"),
        pytest.param(init(**{"llm.SyncKvCacheWaitTime": DIGITS}), id="a time"),
        pytest.param(init(**{"torch_llm_datadist.MaxInFlight": DIGITS}), id="a number"),
        pytest.param(init(**{"ge.flowGraphMemMaxSize": DIGITS}), id="bytes of the older API"),
        pytest.param(configured("cluster_info", DEEP), id="cluster_info"),
        pytest.param(configured("buf_pool_cfg", DEEP), id="buf_pool_cfg"),
        pytest.param(configured("sync_kv_timeout", DIGITS), id="sync_kv_timeout"),
    ],
)
def test_text_of_any_size_is_refused_in_a_few_words(call: Callable[[], object]) -> None:
    assert len(check_raises(INVALID, call)) < LONGEST


def test_a_port_of_thousands_of_digits_is_no_number() -> None:
    said = check_raises(ValueError, lambda: parse_endpoint("init: llm.listenIpInfo", f"127.0.0.1:{DIGITS}"))

    assert "is not a number" in said
    assert len(said) < LONGEST
