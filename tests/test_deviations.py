"""docs/deviations.md, in both directions: each row has tests that say they show a deviation, and each test
that says so is of a row.

A test says it with the word "mended" or "lifted": in its name, its docstring, or the id of one of its cases.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "deviations.md").read_text().splitlines()
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in LINES
    if line.startswith("|") and not line.startswith(("| Subject", "|---"))
]
SUBJECTS = {row[0] for row in ROWS}
SAYS_SO = re.compile(r"(?<![a-z])(mended|lifted)(?![a-z])", re.IGNORECASE)

# Cases that deviate, by what is in their ids: the row that each of them is of.
CASES = {
    r"= True|\[True|True\]|\(True\)|is a bool|3.2 row 1 ": "Arguments: `bool` where an integer is meant",
    r"(is|=) None|\(None\) \(|row 24 None": "Arguments: `None` where an object is meant",
    r"BlocksCacheKey\((None|-1)\)": "`BlocksCacheKey` with `None`, a negative or an oversized id",
    r"cache_key = None|layer_range = None": "`TransferWithCacheKeyConfig`: setters",
    r"cache_id (0|-1)": "`CacheKeyByIdAndIndex` with `cache_id` 0 or less",
    r"row 18 more tensors per layer|tn = 5 of 4": "`push_*` with more tensors per layer than the cache has",
    r"2.7.3 size 0": "`transfer_cache_async`: size 0 for blocks from a contiguous source",
    r"row (3|4|11) .*(past the end)": "Batch indices, layers and blocks of the peer",
    r"row (4|11) .*is a blocks cache": "A key of one kind of cache for the other kind",
    r"row 16 more slices": "`pull_blocks` from an entry",
    r"row 14 in the dictionary": '`init` with `{"llm.EnableCacheManager": 1}`',
    r"row 16 equal ranks": "`link` with equal ranks",
    r"row 23 listen at": "`listen_ip_info` with braces",
    r"row 5 an? ?empty range|row 5 empty range": "`pull_*`: an empty layer range",
    r"the same twice|overlapping": "Tensors of one cache that overlap, or are one",
    r"^strings": "A cache of `DT_STRING`",
    r"row 9 ": "Unknown keyword of `pull_cache`, `pull_blocks`",
}


def functions_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, what it says): of each test function, its docstring, the ids and the values of its cases."""
    tree = ast.parse(path.read_text())
    lists: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                lists[target.id] = texts_in(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            said = [node.name, ast.get_docstring(node) or ""]
            for decorator in node.decorator_list:
                said += texts_in(decorator)
                for name in (n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)):
                    said += lists.get(name, [])
            yield node.name, said


def texts_in(tree: ast.AST) -> list[str]:
    """Its strings; of an f-string what is written in it."""
    inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
    ]
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    return found + [
        "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values) for node in joined
    ]


TESTS = {
    f"{path.relative_to(ROOT)}::{name}": said
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if path.name not in (Path(__file__).name, "test_seeds.py", "test_tables.py")  # which name those of others
    for name, said in functions_of(path)
}
DEVIATING = {
    test for test, said in TESTS.items() if any(SAYS_SO.search(text.replace("_", " ")) for text in said)
}
CASE_IDS = {text for said in TESTS.values() for text in said[2:] if re.search(r"\((mended|lifted)[:)]", text)}


def named_by(row: list[str]) -> list[str]:
    return [test.strip(" `") for test in row[4].split(",")]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_deviation_has_tests_that_say_so(row: list[str]) -> None:
    assert all(row[:3]), "a subject, what the original does, what is done here"

    for test in named_by(row):
        assert test in TESTS, f"no such test: {test}"
        assert test in DEVIATING, f"{test} does not say that it shows something mended or lifted"


@pytest.mark.parametrize("test", sorted(DEVIATING))
def test_each_test_of_a_deviation_is_in_a_row(test: str) -> None:
    assert any(test in named_by(row) for row in ROWS)


@pytest.mark.parametrize("case", sorted(CASE_IDS))
def test_each_case_that_deviates_is_of_a_row(case: str) -> None:
    rows = {subject for pattern, subject in CASES.items() if re.search(pattern, case)}

    assert rows, "add the row to docs/deviations.md, and what its cases have in their ids to CASES"
    assert rows <= SUBJECTS


@pytest.mark.parametrize("pattern", CASES)
def test_each_pattern_is_of_a_case(pattern: str) -> None:
    assert any(re.search(pattern, case) for case in CASE_IDS)


def test_no_deviation_is_listed_twice() -> None:
    assert len(ROWS) == len(SUBJECTS)
