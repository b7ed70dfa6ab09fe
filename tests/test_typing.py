"""The public surface as a user's type checker sees it: right code passes in strict mode, mistakes do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch_llm_datadist

HERE = Path(__file__).parent / "typing"
PACKAGE = Path(torch_llm_datadist.__file__).parent


def test_a_users_code_is_checked_strictly(tmp_path: Path) -> None:
    files = [HERE / "user.py", HERE / "mistakes.py"]
    # As for an installed package: what is in it is used, not reported.
    command = ["-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", "--config-file="]

    done = subprocess.run(
        [sys.executable, *command, f"--cache-dir={tmp_path}", *map(str, files)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )

    said = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = {int(line.split(":")[1]) for line in said if "mistakes.py:" in line}
    lines = files[1].read_text().splitlines()
    assert not [line for line in said if "mistakes.py:" not in line], done.stdout
    assert found == {i for i, line in enumerate(lines, 1) if "# mistake" in line}, done.stdout


def test_the_package_says_that_it_has_types() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_C.pyi").exists()
