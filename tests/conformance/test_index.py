"""That every numbered row of the API's description is named by a case, whichever file has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance import test_config, test_surprises, test_transfer_cache_async

TESTS = Path(__file__).parent.parent
TEXT = "\n".join(path.read_text() for path in sorted(TESTS.rglob("test_*.py")) if path != Path(__file__))


def rows_named(section: str) -> set[int]:
    """``2.8 row 5``, ``2.8 rows 2 and 7``, and of a function's name ``2_8_row_5``."""
    pattern = re.escape(section).replace(r"\.", "[._]") + r"[ _]rows?[ _](\d+(?:(?:, | and )\d+)*)"
    return {int(number) for found in re.findall(pattern, TEXT) for number in re.findall(r"\d+", found)}


def test_each_rule_of_the_table_of_combinations_is_named_by_a_case() -> None:
    assert set(range(1, 18)) <= rows_named("2.8")


def test_each_surprising_point_is_named_by_a_case() -> None:
    ids = [case.id for case in (*test_surprises.REFUSED, *test_surprises.ACCEPTED)]

    assert {int(name.split()[2]) for name in ids} == set(range(1, 25))


@pytest.mark.parametrize("step", range(1, 8))
def test_each_check_of_a_transfer_is_named_by_a_case(step: int) -> None:
    assert any(str(case.id).startswith(f"2.7.{step} ") for case in test_transfer_cache_async.ROWS)


@pytest.mark.parametrize("step", range(1, 10))
def test_each_step_of_init_is_named_by_a_case(step: int) -> None:
    steps = {step for step, *_ in test_config.INIT_ERRORS}

    assert step in steps or f"2.4 init {step}" in TEXT
