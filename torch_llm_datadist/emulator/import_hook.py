"""Gets the emulator in around the import of torch_npu, whoever imports it: torch itself, or the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.emulator.quiet import quiet_import, quiet_warnings


class TorchNpuFinder(MetaPathFinder):
    """Finds nothing itself: lets the others find torch_npu, and wraps what their loader will execute."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch_npu":
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                setattr(spec.loader, "exec_module", _emulated(spec.loader.exec_module))  # noqa: B010
                return spec
        return None


def _emulated(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def execute_emulated(module: ModuleType) -> None:
        libraries.preload()
        quiet_warnings()
        with quiet_import():
            execute(module)
        libraries.install_aten()

    return execute_emulated


def installed() -> TorchNpuFinder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, TorchNpuFinder)), None)
