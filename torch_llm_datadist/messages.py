"""What is said when a call is refused or fails: the rows of ``messages.inc``, which the C++ core has, too."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .errors import LLMException, LLMStatusCode

_TABLE = Path(__file__).with_name("messages.inc")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_MACRO = re.compile(r"^#define (\w+) (.*)$", re.MULTILINE)
_ROW = re.compile(r"^MESSAGE\((\w+), (\w+),(.*?)\)$", re.MULTILINE | re.DOTALL)
_PART = re.compile(r'(?:\s*"(?:[^"\\]|\\.)*"|\s*[A-Z_]+)+')

_OF_PYTHON = {kind.__name__: kind for kind in (TypeError, ValueError, NotImplementedError)}


class Row(NamedTuple):
    """
    Attributes:
        kind: a code of ``LLMStatusCode``, or an exception of Python.
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
    if row.kind in _OF_PYTHON:
        return _OF_PYTHON[row.kind](message)
    return errors.class_for_code(errors.LLMStatusCode[row.kind])(message)


def failure(code: int, which: str, /, **values: object) -> LLMException:
    """The same with a code that somebody else has given, in place of the row's."""
    from . import errors

    return errors.class_for_code(code)(rows()[which].text.format(**values))


def coded(which: str, /, **values: object) -> tuple[LLMStatusCode, str]:
    """A row's code and text, for what is returned, logged or told to a peer."""
    from . import errors

    row = rows()[which]
    return errors.LLMStatusCode[row.kind], row.text.format(**values)
