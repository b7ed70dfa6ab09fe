"""What moves bytes of the conformance suite, once more over each engine.

All of it, with the layer ops and the deadlines: ``make conformance TRANSPORT=hixl``, or ``nixl``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.test_combinations import *  # noqa: F403
from tests.conformance.test_concurrency import *  # noqa: F403
from tests.test_engine_transports import needs_nixl
from torch_llm_datadist.transports import TRANSPORT_VARIABLE


@pytest.fixture(scope="module", autouse=True, params=["hixl", pytest.param("nixl", marks=needs_nixl)])
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of instances of this process that name none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRANSPORT_VARIABLE, request.param)
        yield
