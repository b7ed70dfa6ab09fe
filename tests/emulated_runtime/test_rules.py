"""docs/emulator_rules.md names tests that exist, for each rule."""

from __future__ import annotations

import ast
import re

from .acl_harness import ROOT

PAGE = ROOT / "docs" / "emulator_rules.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("Rule", "Fault", "---")]


def test_each_row_names_tests_that_exist() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    there = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    assert len(rows()) > 100
    for rule, _code, tests in rows():
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, f"no test shows: {rule}"
        assert [name for name in named if name not in there] == [], rule


def test_codes_are_codes_of_the_runtime() -> None:
    codes = {code for _rule, cell, _tests in rows() for code in re.findall(r"\d+", cell)}

    assert {code for code in codes if len(code) != 6} == set()
