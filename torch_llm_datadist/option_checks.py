"""What the options of ``LLMConfig`` accept: a check takes (name, value) and returns the value or raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from . import checks
from .cluster import as_little_endian, parse_ip
from .messages import refusal


def in_range(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not checks.is_integer(value):
            raise refusal(
                "wrong_type", name=name, value=repr(value), type=type(value).__name__, expected="an int"
            )
        if not low <= value <= high:
            raise refusal("bad_value", name=name, value=value, expected=f"{low} to {high}")
        return int(value)

    return check


def string(name: str, value: Any) -> str:
    return checks.instance(name, value, str)


def json_text(name: str, value: Any) -> str:
    text = string(name, value)
    if text:
        load_object(name, text)
    return text


def load_object(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter for what is nested thousands deep
        raise refusal("no_json", name=name, value=checks.shown(text), why=error) from None
    if not isinstance(found, dict):
        raise refusal("bad_value", name=name, value=f"a JSON {type(found).__name__}", expected="an object")
    return found


def not_negative_int32(name: str, value: Any) -> int:
    checked = checks.int32(name, value)
    if checked < 0:
        raise refusal("bad_value", name=name, value=checked, expected="0 or more")
    return checked


def device_id(name: str, value: Any) -> int | list[int] | tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        return not_negative_int32(name, value)
    if not value:
        raise refusal("bad_value", name=name, value="empty", expected="one device")
    for i, item in enumerate(value):
        not_negative_int32(f"{name}[{i}]", item)
    return value


def positive_ms(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        number = checks.number_in(value)
        if number is None:
            expected = "a number of milliseconds"
            raise refusal("bad_value", name=name, value=checks.shown(value), expected=expected)
        checks.timeout_ms(name, number)
        return value
    return checks.timeout_ms(name, value)


def positive(name: str, value: Any) -> int:
    return in_range(1, checks.INT32_MAX)(name, value)


def fraction(name: str, value: Any) -> float:
    checked = checks.instance(name, value, float)
    if not 0.0 <= checked <= 1.0:
        raise refusal("bad_value", name=name, value=checked, expected="0.0 to 1.0")
    return checked


def text_map(name: str, value: Any) -> dict[str, str]:
    for key, text in checks.instance(name, value, dict).items():
        checks.instance(f"{name}: key", key, str)
        checks.instance(f"{name}[{key!r}]", text, str)
    return dict(value)


def buffer_pools(name: str, value: Any) -> str:
    text = json_text(name, value)
    pools = load_object(name, text).get("buf_cfg") if text else []
    if not isinstance(pools, list):
        raise refusal("no_such_list", name=name, value="buf_cfg")
    largest = 0
    for i, pool in enumerate(pools):
        where = f"{name}: buf_cfg[{i}]"
        try:
            total, block, buffer = (pool[key] for key in ("total_size", "blk_size", "max_buf_size"))
        except (KeyError, TypeError):
            raise refusal(
                "bad_value", name=where, value=pool, expected="total_size, blk_size and max_buf_size"
            ) from None
        if not all(checks.is_integer(size) and size > 0 for size in (total, block, buffer)):
            raise refusal("bad_value", name=where, value=pool, expected="sizes that are positive ints")
        mib2 = 2 * 2**20
        if total > 0xFFFFFFFF or total % mib2 or total % block:
            raise refusal(
                "bad_value",
                name=f"{where}: total_size",
                value=total,
                expected="a multiple of 2 MiB and of blk_size below 4 GiB",
            )
        if block & (block - 1) or block > mib2 or block > buffer:
            raise refusal(
                "bad_value",
                name=f"{where}: blk_size",
                value=block,
                expected="a power of two, at most 2 MiB and max_buf_size",
            )
        if not largest < buffer < total:
            raise refusal(
                "bad_value",
                name=f"{where}: max_buf_size",
                value=buffer,
                expected="more than in the entry before and less than total_size",
            )
        largest = buffer
    return text


def spell_bool(value: bool) -> str:
    return "1" if value else "0"


def spell_cluster_info(text: str) -> str:
    info = json.loads(text)
    for entry in info.get("listen_ip_info", ()):
        if isinstance(entry, dict) and isinstance(entry.get("ip"), str):
            entry["ip"] = as_little_endian(parse_ip("LLMConfig: cluster_info: ip", entry["ip"]))
    return json.dumps(info)
