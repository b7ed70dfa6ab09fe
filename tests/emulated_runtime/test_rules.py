"""docs/emulator_rules.md names tests that exist, for each rule."""

from __future__ import annotations

import re
import shlex

from tests.mutations.__main__ import ALL

from .acl_harness import ROOT, torch_npu_headers

PAGE = ROOT / "docs" / "emulator_rules.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("Rule", "Fault", "---")]


def test_each_row_names_tests_that_exist() -> None:
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for file in files for name in re.findall(r"^ *def (test_\w+)", file, re.MULTILINE)}

    assert len(rows()) > 100
    for rule, _code, tests in rows():
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, f"no test shows: {rule}"
        assert [name for name in named if name not in there] == [], rule


def test_codes_are_codes_of_the_runtime() -> None:
    defined = {
        code: name
        for header in (torch_npu_headers() / "third_party" / "acl").rglob("*.h")
        for name, code in re.findall(r"(ACL_\w+)\s*=?\s+(\d{6})\b", header.read_text(errors="replace"))
    }
    hixl = (ROOT / "csrc" / "hixl_abi" / "hixl.h").read_text()
    defined |= {code: name for name, code in re.findall(r"constexpr Status (\w+) = (\d{6});", hixl)}
    told = "".join(
        source.read_text()
        for directory in ("emulator", "emulator_hixl")
        for source in (ROOT / "csrc" / directory).rglob("*.cpp")
    )

    codes = {code for _rule, cell, _tests in rows() for code in re.findall(r"\d+", cell)}

    assert len(codes) > 30
    assert {code for code in codes if code not in defined} == set()
    assert {code for code in codes if code in defined and defined[code] not in told} == set()


def test_edits_that_break_guarantees_apply_and_name_tests_that_exist() -> None:
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}

    for mutant in ALL:
        mutant.edited((ROOT / mutant.path).read_text())  # raises, by name, when it no longer applies
        test, *options = shlex.split(mutant.tests)
        words = re.findall(r"\w+", options[1]) if options else []
        wanted = [word for word in words if word not in ("or", "and", "not")]
        names = [*re.findall(r"def (test_\w+)", tests[test]), tests[test]]
        missing = [word for word in wanted if not any(word in name for name in names)]
        assert missing == [], f"{mutant.breaks}: {test} has no test that is called so"
