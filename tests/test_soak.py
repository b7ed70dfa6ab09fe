"""The soak itself, briefly: it finds nothing, its seed says what happens, and it finds what is broken on
purpose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import islice

import pytest

from tests.soak.schedule import WEIGHTS, steps

ENDS_WITHIN_S = 240.0
RACES = pytest.mark.races_on_purpose("looks at whole tensors while peers write other blocks of them")


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "tests.soak", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=ENDS_WITHIN_S)


def test_the_seed_decides_every_step() -> None:
    first, again, other = (list(islice(steps(seed, 6), 1000)) for seed in (7, 7, 8))

    assert first == again
    assert first != other
    assert {step.kind for step in first} == WEIGHTS.keys()


@RACES
def test_a_short_soak_finds_nothing() -> None:
    ended = soak("--seconds", "8", "--procs", "4", "--seed", "20", "--calm-every", "4")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " done" in ended.stdout


@RACES
@pytest.mark.parametrize(
    ("sabotage", "steps_of", "found"),
    [
        ("flip", ["PUSH"], "blocks that have arrived: block"),
        ("early", ["LAYERS"], "blocks that have arrived: block"),
        ("reuse", ["STALL", "LOOK"], "expected write"),
    ],
)
def test_what_is_broken_on_purpose_is_found(sabotage: str, steps_of: list[str], found: str) -> None:
    ended = soak(
        "--seconds", "90", "--procs", "3", "--seed", "5", "--sabotage", sabotage, "--only", *steps_of
    )

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert found in ended.stdout


def test_memory_that_is_kept_on_purpose_is_found() -> None:
    ended = soak(
        *("--seconds", "90", "--calm-every", "0.5", "--procs", "2", "--seed", "5"),
        *("--sabotage", "leak", "--only", "WRITE"),
    )

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(r"member 1, pid \d+: device grew by \d{8,} between", ended.stdout)


def test_what_is_never_answered_on_purpose_is_found() -> None:
    """And the rest of the soak goes on to its end."""
    ended = soak(
        *("--seconds", "90", "--procs", "2", "--seed", "5", "--hangs-after", "10"),
        *("--sabotage", "hang", "--only", "LOOK"),
    )

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "has not answered never_answer within 10.0 s; its stacks follow" in ended.stdout
    assert "in never_answer" in ended.stderr  # the stacks
    assert "\n  hangs " in ended.stdout
