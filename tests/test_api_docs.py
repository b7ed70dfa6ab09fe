"""docs/api: the pages are what the docstrings give, everything public is on them, and the examples run."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from typing import Any

import pytest

import torch_llm_datadist
from docs import api_pages

ENTRIES = api_pages.entries()
WITH_EXAMPLES = [entry for entry in ENTRIES if ">>>" in entry.doc]
# What a user of the package never makes or calls: it comes back from a call whose page shows it.
COMPANIONS = {"BlocksInDoubt", "TransferState", "HeldCacheInfo", "LinkInfo", "Finished", "FailedTransfer"}


def test_the_committed_pages_are_what_the_docstrings_give() -> None:
    wanted = api_pages.pages()
    committed = {path.name: path.read_text() for path in api_pages.PAGES.glob("*.md")}

    assert committed.keys() == wanted.keys(), "run `make api-docs`"
    for name, text in wanted.items():
        assert committed[name] == text, f"{name} is out of date: run `make api-docs`"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.name))
def test_everything_public_is_described(entry: api_pages.Entry) -> None:
    assert entry.doc.strip()
    assert not entry.doc.lstrip().startswith("Args:"), "the first line says what it does"


def test_every_public_name_is_on_a_page() -> None:
    text = "\n".join(api_pages.pages().values())

    for name in torch_llm_datadist.__all__:
        assert f"`{name}`" in text or f"# {name}\n" in text or f".{name}`" in text, name
    for entry in ENTRIES:
        assert f"# {entry.name}\n" in text or f"# `{entry.name.split('.')[-1]}`\n" in text, entry.name


def test_every_member_of_every_enumeration_is_on_its_page() -> None:
    import enum

    pages = api_pages.pages()
    for name in torch_llm_datadist.__all__:
        value = getattr(torch_llm_datadist, name)
        if isinstance(value, type) and issubclass(value, enum.Enum):
            for member in value:
                assert f"| `{member.name}` | {member.value} |" in pages[f"{name}.md"]


def test_every_class_and_every_op_has_an_example() -> None:
    documented = {entry.name for entry in WITH_EXAMPLES}
    wanted = {e.name for e in ENTRIES if "." not in e.name or e.name.startswith("ops.")} - COMPANIONS

    assert wanted <= documented, sorted(wanted - documented)


@pytest.mark.parametrize(
    ("doc", "markdown"),
    [
        ("One line with ``code``.", ["One line with `code`."]),
        ("A.\n\nArgs:\n    x, y: int32,\n        in ms.\n    z: ``None`` is none.",
         ["A.", "", "**Args:**", "", "* `x`, `y`: int32, in ms.", "* `z`: `None` is none."]),
        ("A.\n\nRaises: as ``b``; and\n    more.", ["A.", "", "**Raises:** as `b`; and", "more."]),
        ("A.\n\n>>> f()\n1", ["A.", "", "```python", ">>> f()", "1", "```"]),
    ],
)  # fmt: skip
def test_a_docstring_as_markdown(doc: str, markdown: list[str]) -> None:
    assert api_pages._markdown(doc)[:-1] == markdown


@pytest.fixture(scope="module")
def setup() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    exec(compile(api_pages.SETUP.read_text(), str(api_pages.SETUP), "exec"), names)
    yield names
    for instance in (names["prefill"], names["decode"]):
        instance.finalize()


@pytest.mark.parametrize("entry", WITH_EXAMPLES, ids=lambda entry: str(entry.name))
def test_the_example_runs(setup: dict[str, Any], entry: api_pages.Entry) -> None:
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(entry.doc, dict(setup), entry.name, None, None)

    failed, tried = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)

    assert tried > 0
    assert failed == 0, "".join(said)
