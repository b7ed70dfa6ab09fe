"""The Python side: the interpreter's packages and the native parts."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from torch_llm_datadist import _native, emulator
from torch_llm_datadist.doctor.finding import Finding, broken, ok
from torch_llm_datadist.emulator import libraries

_NEEDED = ("torch", "torch_npu", "pyzmq", "msgspec")


def examine() -> Iterator[Finding]:
    for name in _NEEDED:
        try:
            yield ok(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield broken(name, "not installed", f"pip install {_requirement(name)}")
    yield _core()
    if emulator.is_enabled():
        try:
            libraries.check_built()
            yield ok("emulated runtime", str(libraries.runtime_path()))
        except (ImportError, ValueError) as error:
            yield broken("emulated runtime", str(error), "run `make build`")


def _core() -> Finding:
    name = "native core"
    try:
        _native.check_torch_npu()
    except ImportError as error:
        return broken(name, str(error), "build this package anew beside the torch_npu that you use")
    core = importlib.util.find_spec("torch_llm_datadist._C")
    if core is None or core.origin is None:
        return broken(name, "torch_llm_datadist._C is missing", "run `make build`")
    return ok(name, str(Path(core.origin)))


def _requirement(name: str) -> str:
    """With the version that this package wants, where it is installed itself and so can tell."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("torch_llm_datadist") or ():
            if requirement.startswith(f"{name}=="):
                return requirement
    return name
