"""docs/emulator.md names what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from torch_llm_datadist import emulator

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "emulator.md").read_text()
VARIABLE = re.compile(r"TORCH_LLM_DATADIST_EMULATE(?:_[A-Z0-9]+)*(?![A-Z0-9_])")


def test_every_environment_variable_is_documented_and_read_somewhere() -> None:
    sources = [
        path
        for directory, pattern in (("csrc", "*.cpp"), ("csrc", "*.h"), ("torch_llm_datadist", "*.py"))
        for path in (ROOT / directory).rglob(pattern)
    ]
    read = {name for path in sources for name in VARIABLE.findall(path.read_text())}

    assert "TORCH_LLM_DATADIST_EMULATE_LAZY" in read
    assert set(VARIABLE.findall(PAGE)) == read


def test_every_name_of_the_package_is_documented() -> None:
    missing = [name for name in emulator.__all__ if not re.search(rf"`[^`]*\b{name}\b[^`]*`", PAGE)]

    assert not missing


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE + (ROOT / "README.md").read_text()):
        assert "://" in target or (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target
