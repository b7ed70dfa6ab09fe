"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    OK = "ok"
    NOTE = "note"  # works, with a restriction that may matter
    BROKEN = "broken"  # transfers fail until it is mended


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        name: what was looked at.
        found: what is there, with the value.
        advice: what to do; empty where nothing needs doing.
    """

    state: State
    name: str
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(State.OK, name, found)


def note(name: str, found: str, advice: str = "") -> Finding:
    return Finding(State.NOTE, name, found, advice)


def broken(name: str, found: str, advice: str) -> Finding:
    return Finding(State.BROKEN, name, found, advice)
