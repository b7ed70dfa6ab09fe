"""One row of the API's description as a test case.

The source of a case is the section and row of the description of the original API that it shows ("2.5
BlocksCacheKey"), or a document of the mission ("seed 003"). A case marked ``mended`` is a row of
docs/deviations.md: the original does something else there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from torch_llm_datadist.errors import LLMException, LLMStatusCode

INVALID = LLMStatusCode.LLM_PARAM_INVALID


def check_raises(expected: type[Exception] | LLMStatusCode, call: Callable[[], object]) -> str:
    """The call raises exactly that class, or an ``LLMException`` with that code; returns what it says."""
    kind = LLMException if isinstance(expected, LLMStatusCode) else expected
    with pytest.raises(kind) as raised:
        call()
    if isinstance(expected, LLMStatusCode):
        assert raised.value.status_code == expected  # type: ignore[attr-defined]
    else:
        assert type(raised.value) is expected
    return str(raised.value)


def row(source: str, expected: Any, *values: Any) -> Any:
    """A parameter set (expected, *values) whose id names its source."""
    return pytest.param(expected, *values, id=source)
