"""What is said when a call is refused or fails: the rows of ``messages.inc``, which the C++ core has, too."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).with_name("messages.inc")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_MACRO = re.compile(r"^#define (\w+) (.*)$", re.MULTILINE)
_ROW = re.compile(r"^MESSAGE\((\w+), (\w+),(.*?)\)$", re.MULTILINE | re.DOTALL)
_PART = re.compile(r'(?:\s*"(?:[^"\\]|\\.)*"|\s*[A-Z_]+)+')


class Row(NamedTuple):
    """
    Attributes:
        kind: a code of ``LLMStatusCode``, ``TypeError`` or ``ValueError``.
        what: was asked, and which value was wrong.
        expected: what would have been right.
        state: what became of the transfer, the link, the registration.
        next: what to do.
    """

    name: str
    kind: str
    what: str
    expected: str
    state: str
    next: str

    @property
    def text(self) -> str:
        """With its values still in braces."""
        return f"{self.what}, {self.expected}. {self.state}: {self.next}."

    @property
    def values(self) -> set[str]:
        """The names of its values."""
        return set(re.findall(r"{(\w+)}", self.text))


@cache
def rows() -> dict[str, Row]:
    """The table."""
    source = _TABLE.read_text()
    macros = dict(_MACRO.findall(source))
    found = {}
    for name, kind, rest in _ROW.findall(source):
        parts = [_text_of(part, macros) for part in _PART.findall(rest)]
        found[name] = Row(name, kind, *parts)
    return found


def _text_of(part: str, macros: dict[str, str]) -> str:
    part = part.strip()
    return "".join(ast.literal_eval(text) for text in _STRINGS.findall(macros.get(part, part)))


def refusal(which: str, /, **values: object) -> Exception:
    """The exception of a row, to be raised: ``raise refusal("list_is_empty", asked=asked, list=name)``."""
    from . import errors

    row = rows()[which]
    message = row.text.format(**values)
    if row.kind == "TypeError":
        return TypeError(message)
    if row.kind == "ValueError":
        return ValueError(message)
    return errors.class_for_code(errors.LLMStatusCode[row.kind])(message)
