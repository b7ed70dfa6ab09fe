"""What moves bytes of the conformance suite, once more over each engine.

All of it: ``make conformance TRANSPORT=hixl``, or ``nixl``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import caches
from tests.conformance.test_combinations import *  # noqa: F403
from tests.conformance.test_combinations import Pair, linked_pair
from tests.conformance.test_concurrency import *  # noqa: F403
from tests.over_engines import engine as engine
from tests.over_engines import require_links_over


@pytest.fixture(scope="module", params=list(caches.MODES))
def pair(engine: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with linked_pair(request.param) as both:
        require_links_over(engine, both)
        yield both
