"""``local_comm_res``: what it says of this instance's own device, compared with what ``device_id`` says."""

from __future__ import annotations

import os
from typing import Any

from . import checks
from .messages import refusal
from .option_checks import load_object

VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
_WITH_DEVICE = ("1.0", "1.2")
_VERSIONS = (*_WITH_DEVICE, "1.3")  # from 1.3 on the rest may be left out


def check_comm_resource(name: str, text: str, device: int) -> None:
    """
    Args:
        text: JSON, or "": then the original makes it, and here nothing needs it.
        device: as this process counts.

    Raises:
        LLMException: ``LLM_PARAM_INVALID`` for another version, and where it names another device.
    """
    if not text:
        return
    resource = load_object(name, text)
    version = resource.get("version")
    if version not in _VERSIONS:
        known = f"one of {', '.join(_VERSIONS)}"
        raise refusal("bad_value", name=f"{name}: version", value=repr(version), expected=known)
    if "server_list" not in resource and version not in _WITH_DEVICE:
        return
    named = _only(
        f"{name}: server_list[0].device", _only(f"{name}: server_list", resource, "server_list"), "device"
    )
    given = str(named.get("device_id"))
    physical = physical_device(device)
    number = checks.number_in(given)
    if number is None:
        wanted = "a number, as a string"
        raise refusal("bad_value", name=f"{name}: device_id", value=checks.shown(given), expected=wanted)
    if physical is not None and number != physical:
        visible = os.environ.get(VISIBLE_DEVICES)
        since = "" if visible is None else f", since {VISIBLE_DEVICES} is {visible!r}"
        wanted = f"{physical}: that is the machine's number of device_id {device}{since}"
        raise refusal("bad_value", name=f"{name}: device_id", value=given, expected=wanted)


def physical_device(device: int) -> int | None:
    """The number on the machine of what this process counts as ``device``; None: nobody knows."""
    visible = os.environ.get(VISIBLE_DEVICES)
    if visible is None:
        return device
    numbers = visible.split(",")
    if not all(number.strip().isdigit() for number in numbers) or device >= len(numbers):
        return None
    return int(numbers[device])


def _only(name: str, holder: dict[str, Any], key: str) -> dict[str, Any]:
    found = holder.get(key)
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        wanted = "a list of one: this instance's own"
        raise refusal("bad_value", name=name, value=repr(found), expected=wanted)
    return found[0]
