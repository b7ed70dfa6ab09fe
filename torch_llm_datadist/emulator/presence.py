"""Whether this machine has an Ascend device, and the choice that follows from it."""

from __future__ import annotations

import argparse
import glob
import sys

from torch_llm_datadist.emulator import switch


def has_npu() -> bool:
    """Whether the Ascend driver shows a device to this process."""
    return bool(glob.glob("/dev/davinci[0-9]*"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--emulate`` and ``--no-emulate``; what was asked for is ``emulate``, which `choose` takes."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--emulate", dest="emulate", action="store_true", help="on emulated NPUs")
    where.add_argument("--no-emulate", dest="emulate", action="store_false", help="on real ones only")
    where.set_defaults(emulate=None)


def choose(emulate: bool | None = None) -> bool:
    """Decides where a command runs, says so in one line on stderr, and returns whether it is emulated.

    ``emulate`` is what the user asked for; None leaves it to the environment variable, then to what the
    machine has. Without being asked for by name, emulation stays off where an NPU is.
    """
    wanted = switch.is_wanted() if emulate is None else emulate
    emulated = not has_npu() if wanted is None else wanted
    if emulated:
        switch.enable()
        reason = "no Ascend device here" if wanted is None else "as asked"
        _say(f"{reason}: running on an emulated NPU (plain CPU)")
        return True
    switch.disable()
    if wanted is None:
        _say("Ascend device found: running on it; emulation stays off unless asked for with --emulate")
    else:
        _say("emulation is off, as asked: running on the Ascend device, if there is one")
    return False


def _say(line: str) -> None:
    print(f"torch_llm_datadist: {line}", file=sys.stderr)
