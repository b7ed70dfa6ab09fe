"""Any bytes are a message, or one of two errors; and what was read can be written and read again."""

from __future__ import annotations

import typing

from torch_llm_datadist import wire

KINDS = typing.get_args(wire.Message)


def one_input(data: bytes) -> bool:
    """Whether it was a message. Raises for anything that must not happen."""
    try:
        message = wire.decode(data)
    except (wire.MalformedMessageError, wire.OtherProtocolError):
        return False
    assert type(message) in KINDS, message
    again = wire.encode(message)
    # Unknown fields are left out and numbers get their shortest form, so it never grows much.
    assert len(again) <= len(data) + 256, (len(data), len(again))
    assert wire.encode(wire.decode(again)) == again, message
    return True
