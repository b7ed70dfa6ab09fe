"""Other bytes out of valid ones: damaged on the way, or well-formed with values that nobody expects."""

from __future__ import annotations

import random
from typing import Any

import msgspec

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5,
    float("inf"), float("nan"), "", "x" * 300, "x" * 5000, b"", b"\xff" * 100, [], {}, [[]], [None] * 3,
    {"type": "hello"}, [0] * 70_000, "\ud7ff\x00",
]  # fmt: skip
# Headers of msgpack that claim more than follows: 2**32 - 1 bytes, items, pairs; nesting.
CLAIMS = [b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
CLAIMS += [b"\x91" * 3000, b"\x81\xa1a" * 1000, b"\xc1", b"\xd4\x01\x00"]


def mutate(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = chance.choice(seeds)
    if chance.random() < 0.4:
        data = change_value(chance, data)
    return damage(chance, data, seeds)


def damage(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        data = change_bytes(chance, data, seeds)
    return data


def change_bytes(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
        case 3:
            return data[:at] + data[at + chance.randrange(1, 9) :]
        case 4:
            return data[:at] + data[chance.randrange(len(data) + 1) :]
        case 5:
            other = chance.choice(seeds)
            return data[:at] + other[chance.randrange(len(other)) :]
        case _:
            return data[:at] + chance.choice(CLAIMS) + data[at:]


def change_value(chance: random.Random, data: bytes) -> bytes:
    """One value, wherever it is, becomes another one, or goes, or comes twice."""
    try:
        value = msgspec.msgpack.decode(data)
        return msgspec.msgpack.encode(_changed(chance, value))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
        return data


def _changed(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _changed(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        if chance.random() < 0.2:
            return value[:at] + value[at + 1 :]
        if chance.random() < 0.2:
            return value + value[at:]
        return [*value[:at], _changed(chance, value[at]), *value[at + 1 :]]
    return chance.choice(HOSTILE)
