"""The table of messages: each row names the value, what was expected, how things stand and what to do.

Those who raise with a row give it exactly the values that it names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_llm_datadist import LLMException, LLMStatusCode, _native, messages
from torch_llm_datadist.messages import Row, refusal, rows

ROOT = Path(__file__).parents[1]
# What a caller can be told of the link. Nothing else may stand in the table.
STATES = {
    "Nothing was sent; the link is still usable",
    "Nothing was sent; the link and the ticket are still usable",
    "Nothing was sent; the link and the other tasks are still usable",
    "Nothing was sent; this link is down, other links are not affected",
    "Nothing was sent; there is no link",
    "No link was made; other links are as they were",
    "Nothing was registered; links are as they were",
    "Nothing was changed; links are as they were",
    "The link is still usable",
    "What it had queued may still write; the link is still usable",
    "What has arrived is of no use; the link is still usable",
}
EXPECTED = (
    r"expected|has|serves|takes|sends|can$|fills|sent once|says|issued|closed|pull is from|desc|there is"
)
# Who asked, where it lies and why: no values that can be wrong.
CONTEXT = {"asked", "name", "peer", "cluster_id", "why", "how", "at", "type", "expected", "list", "where"}


def marked(row: Row) -> dict[str, str]:
    return {name: f"<{name}>" for name in row.values}


def rendered(row: Row) -> str:
    error = refusal(row.name, **marked(row))
    return str(error)


def check(row: Row) -> None:
    """What each row must have; raises AssertionError."""
    text = rendered(row)
    wrong = set(re.findall(r"{(\w+)}", row.what)) - CONTEXT
    assert wrong or row.kind == "LLM_NOT_YET_LINK", "no value that was wrong is named"
    for name in row.values:
        assert f"<{name}>" in text
    assert re.search(EXPECTED, row.expected), "nothing says what was expected"
    assert row.state in STATES
    assert len(row.next.split()) >= 2, "no next step"
    next_step = re.sub(r"{(\w+)}", r"<\1>", row.next)
    assert text.endswith(f"{row.state}: {next_step}.")
    assert "{" not in text


@pytest.mark.parametrize("name", rows())
def test_every_message_names_the_value_what_was_expected_the_link_and_the_next_step(name: str) -> None:
    check(rows()[name])


GOOD = Row("x", "LLM_PARAM_INVALID", "{asked}: {value}", "expected 1", "The link is still usable", "give 1")


@pytest.mark.parametrize(
    "broken",
    [
        GOOD._replace(what="{asked}: bad"),
        GOOD._replace(expected="bad"),
        GOOD._replace(state="Oops"),
        GOOD._replace(next=""),
    ],
)
def test_a_row_that_lacks_a_part_is_found(broken: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "rows", lambda: {"x": broken})

    with pytest.raises(AssertionError):
        check(broken)


@pytest.mark.parametrize("name", rows())
def test_the_exception_carries_the_code_of_its_row(name: str) -> None:
    row = rows()[name]

    error = refusal(name, **marked(row))

    if isinstance(error, LLMException):
        assert error.status_code == LLMStatusCode[row.kind]
    else:
        assert type(error).__name__ == row.kind


def test_the_core_has_the_same_table_and_says_it_in_the_same_words() -> None:
    native = _native.load()
    own = list(rows().values())

    assert [Row(*row) for row in native.message_rows()] == own
    for row in own:
        assert native.render_message(row.name, marked(row)) == rendered(row)


def calls_in_python() -> Iterator[tuple[str, str, set[str]]]:
    """Where, which row, which values."""
    for path in sorted((ROOT / "torch_llm_datadist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "refusal":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path.name}:{node.lineno}: the row is no constant"
                yield f"{path.name}:{node.lineno}", str(name.value), {k.arg or "**" for k in node.keywords}


def calls_in_the_core() -> Iterator[tuple[str, str, set[str]]]:
    for path in sorted((ROOT / "csrc").rglob("*.cpp")):
        text = path.read_text()
        for found in re.finditer(r"Message::(\w+),\s*\{", text):
            depth, end = 1, found.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            line = text.count("\n", 0, found.start()) + 1
            values = set(re.findall(r'\{"(\w+)",', text[found.end() - 1 : end]))
            yield f"{path.name}:{line}", found[1], values


def test_who_raises_gives_a_message_exactly_the_values_that_it_names() -> None:
    calls = [*calls_in_python(), *calls_in_the_core()]

    assert len(calls) > 60
    for where, name, values in calls:
        assert name in rows(), f"{where}: there is no row {name}"
        assert values == rows()[name].values, f"{where}: {name}"
    unused = rows().keys() - {name for _, name, _ in calls}
    assert not unused, f"nobody says {sorted(unused)}"
