"""Checks of arguments. One rule for all entry points: a wrong type is a ``TypeError``, an integer that its C
type cannot hold a ``ValueError``, any other bad value an ``LLMException`` (``ParamInvalidError``).

``bool`` is not an integer here, ``None`` is no object, and numpy integers are not integers.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from .messages import refusal

T = TypeVar("T")

INT32_MAX = 2**31 - 1
LAYERS = 4096  # of a binding, which takes words of the device for each: far more than any model has
_DIGITS = 20  # of the largest uint64; int() itself refuses thousands with an error of its own


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, repr(value), value, "an int")
    if not low <= value <= high:
        raise refusal("outside_c_type", name=name, value=value, low=low, high=high)
    return int(value)


def uint16(name: str, value: object) -> int:
    return integer(name, value, 0, 2**16 - 1)


def uint32(name: str, value: object) -> int:
    return integer(name, value, 0, 2**32 - 1)


def uint64(name: str, value: object) -> int:
    return integer(name, value, 0, 2**64 - 1)


def int32(name: str, value: object) -> int:
    return integer(name, value, -(2**31), INT32_MAX)


def int64(name: str, value: object) -> int:
    return integer(name, value, -(2**63), 2**63 - 1)


def number_in(text: str) -> int | None:
    """The number that the text is, in ASCII digits; None for any other text."""
    is_one = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    return int(text) if is_one else None


def ticket(name: str, value: object) -> int:
    return integer(name, value, 1, 2**53 - 1)


def utf8(name: str, text: str) -> str:
    """What can be said to a peer: a str of Python may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal("text_is_no_utf8", name=name, value=ascii(text), why=error.reason) from None
    return text


def layers(name: str, value: object) -> list[int]:
    """Layer indices, from any iterable."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise _wrong_type(name, shown(value), value, "layer indices (ints)")
    found = list(islice(value, LAYERS + 1))
    if len(found) > LAYERS:
        raise refusal("too_many_layers", name=name, value=LAYERS)
    return [integer(f"{name}[{i}]", layer, 0, LAYERS - 1) for i, layer in enumerate(found)]


def seconds_as_ms(name: str, value: object) -> int:
    """A number of seconds above 0, as milliseconds that an int32 holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise refusal("not_a_number_of_seconds", name=name, value=repr(value))
    if not 0 < value <= INT32_MAX / 1000:
        raise refusal("seconds_out_of_range", name=name, value=value)
    return max(1, round(value * 1000))


def as_int64(number: int) -> int:
    """The same 64 bits with a sign: schemas of ops and the native core have signed integers only."""
    return number - 2**64 if number >= 2**63 else number


def instance(name: str, value: object, kind: type[T], *, what: str = "") -> T:
    if not isinstance(value, kind):
        raise _wrong_type(name, shown(value), value, what or kind.__name__)
    return value


def _wrong_type(name: str, shown_as: str, value: object, expected: str) -> Exception:
    return refusal("wrong_type", name=name, value=shown_as, type=type(value).__name__, expected=expected)


def shown(value: object) -> str:
    """A value for a message: a list of tensors would fill the screen."""
    return reprlib.repr(value) if isinstance(value, (int, str, float, bytes)) else f"a {type(value).__name__}"


def boolean(name: str, value: object) -> bool:
    return instance(name, value, bool, what="True or False")


def integers(name: str, value: Any, *, kinds: tuple[type, ...] = (list, tuple)) -> list[int]:
    """A list or tuple of ints, as a list; each in 0 … 2**63-1."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise refusal("wrong_list_type", name=name, value=type(value).__name__, expected=wanted)
    value = cast(Sequence[int], value)
    if not set(map(type, value)) <= {int}:
        for i, item in enumerate(value):
            if not is_integer(item):
                raise refusal("wrong_item_type", name=name, at=i, value=repr(item), type=type(item).__name__)
    if value and (min(value) < 0 or max(value) >= 2**63):
        i, item = next((i, v) for i, v in enumerate(value) if not 0 <= v < 2**63)
        raise refusal("item_outside_c_type", name=name, at=i, value=item, high=2**63 - 1)
    return list(value)


def layer_range(name: str, value: object) -> range:
    """A range of layers with step 1 that is not empty."""
    if not isinstance(value, range):
        raise _wrong_type(name, repr(value), value, "a range")
    if value.step != 1 or value.start < 0 or not value or value.stop > INT32_MAX:
        raise refusal("bad_layer_range", name=name, value=value)
    return value


def timeout_ms(name: str, value: object) -> int:
    """A time limit in milliseconds: an int > 0 that an int32 holds."""
    checked = int32(name, value)
    if checked <= 0:
        raise refusal("bad_timeout", name=name, value=checked)
    return checked


def same_length(asked: str, src: range, dst: range) -> None:
    if len(src) != len(dst):
        raise refusal(
            "layer_ranges_of_unequal_length",
            asked=asked,
            src=len(src),
            src_range=src,
            dst=len(dst),
            dst_range=dst,
        )
