"""For tests that run once more over each engine.

What lives as long as a module must ask for ``engine``: pytest keeps it from one engine to the next otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from tests.test_engine_transports import needs_nixl
from torch_llm_datadist.transports import TRANSPORT_VARIABLE


@pytest.fixture(scope="module", autouse=True, params=["hixl", pytest.param("nixl", marks=needs_nixl)])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of instances of this process that name none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRANSPORT_VARIABLE, request.param)
        yield request.param


def require_links_over(engine: str, states: Sequence[SimpleNamespace]) -> None:
    for state in states:
        assert {info.transport for info in state.datadist.links()} == {engine}
