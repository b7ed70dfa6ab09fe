"""The C++ tests, as they are built from the objects of the package. Under sanitizers: ``make asan tsan``."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cpp.build import VARIANTS, build

ENDS_WITHIN_S = 240.0


@pytest.fixture(scope="module")
def programs() -> Path:
    return build(VARIANTS["plain"])


def run(program: Path, *arguments: str) -> str:
    ended = subprocess.run([program, *arguments], text=True, capture_output=True, timeout=ENDS_WITHIN_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("what", ["plan_", "slots_", "words_", "registry_", "link_", "allocations_", "pump_"])
def test_units(programs: Path, what: str) -> None:
    assert re.search(r"^\d+ tests, 0 failed$", run(programs / "units", what), re.MULTILINE)


@pytest.mark.parametrize(
    "what",
    [
        "emulator_handles",
        "emulator_words",
        "emulator_faults",
        "emulator_keys",
        "emulator_threads",
        "emulator_copy_engines",
        "emulator_locks",
    ],
)
def test_units_of_the_emulator(programs: Path, what: str) -> None:
    assert re.search(r"^\d+ tests, 0 failed$", run(programs / "emulator_units", what), re.MULTILINE)


def test_a_name_that_no_test_has_fails(programs: Path) -> None:
    assert subprocess.run([programs / "units", "no such test"], capture_output=True).returncode == 1


def test_processes_without_python_push_pull_publish_and_outlive_one_another(programs: Path) -> None:
    assert "3 members, 3 rounds, 0 failed" in run(programs / "smoke", "3", "3")


def test_random_plans_move_exactly_the_bytes_of_their_pairs(programs: Path) -> None:
    assert "none wrong" in run(programs / "fuzz_plan", "1000000", "20000")


def test_what_a_peer_could_say_through_an_engine_is_taken_for_what_it_is(programs: Path) -> None:
    assert "none taken amiss" in run(programs / "fuzz_messages", "1000000", "40")
