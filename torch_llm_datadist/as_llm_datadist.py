"""``import llm_datadist`` and its submodules resolve to this package, for one process and its children.

Switched on by ``python -m torch_llm_datadist run --as-llm-datadist``, never by importing anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "TORCH_LLM_DATADIST_AS_LLM_DATADIST"
_NAME = "llm_datadist"
_OWN = "torch_llm_datadist"

# Module of the original: where its names are here. The first has all that the top level exports.
_HOMES: dict[str, tuple[str, ...]] = {
    "": ("",),
    "configs": ("config", "cluster"),
    "data_type": ("data_type",),
    "status": ("errors",),
    "utils": (),  # of the original's own use; imported, they say by name what they do not have
    "utils.utils": (),
    "v2": (),
    "v2.cache_manager": ("cache_manager",),
    "v2.config": ("config",),
    "v2.llm_datadist": ("datadist", "cluster"),
    "v2.llm_types": ("cache", "keys", "transfer", "cache_task", "data_type"),
    "v2.llm_utils": ("cache_task",),
}


class _Alias(ModuleType):
    """A module of the original, whose names are looked up here when they are first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        alias = self.__name__.partition(".")[2]
        for home in _HOMES[alias]:
            module = importlib.import_module(f"{_OWN}.{home}".rstrip("."))
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}; it is {_OWN} under the original's name "
            "(run --as-llm-datadist)"
        )

    def __dir__(self) -> list[str]:
        names = set(super().__dir__())
        for home in _HOMES[self.__name__.partition(".")[2]]:
            names.update(dir(importlib.import_module(f"{_OWN}.{home}".rstrip("."))))
        return sorted(names)


class _AliasLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        own = importlib.import_module(_OWN)
        module.__doc__ = own.__doc__
        if module.__name__ == _NAME:
            module.__all__ = [name for name in own.__all__ if name not in ("emulator", "ops")]  # type: ignore[attr-defined]


class AliasFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, _, alias = fullname.partition(".")
        if top != _NAME or alias not in _HOMES:
            return None
        is_package = any(other.startswith(f"{alias}.") for other in _HOMES) if alias else True
        return importlib.util.spec_from_loader(fullname, _AliasLoader(), is_package=is_package)


def install() -> None:
    """For this process, and by the environment for those that it starts."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
            raise RuntimeError(f"{name} was imported already; it cannot be replaced any more")
        sys.meta_path.insert(0, AliasFinder())
    os.environ[VARIABLE] = "1"
