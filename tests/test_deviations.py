"""docs/deviations.md: each row is whole, and its test exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "deviations.md").read_text().splitlines()
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in LINES
    if line.startswith("|") and not line.startswith(("| Subject", "|---"))
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_deviation_has_a_test(row: list[str]) -> None:
    subject, original, here, _, test = row
    assert subject
    assert original
    assert here
    path, _, name = test.strip("`").partition("::")
    tree = ast.parse((ROOT / path).read_text())

    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_no_deviation_is_listed_twice() -> None:
    assert len(ROWS) == len({row[0] for row in ROWS})
