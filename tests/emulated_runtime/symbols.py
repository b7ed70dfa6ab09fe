"""What a shared library shows and asks for."""

from __future__ import annotations

import subprocess
from pathlib import Path


def symbols(path: Path, *flags: str) -> set[str]:
    listing = subprocess.run(["nm", "-D", *flags, path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}
