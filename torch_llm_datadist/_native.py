"""Loads the native core, and refuses politely where loading it would crash."""

from __future__ import annotations

import atexit
import functools
import importlib
from importlib import metadata
from types import ModuleType


def check_torch_npu() -> None:
    """Raises ImportError unless the core is built, for the torch_npu that is installed; loads neither."""
    try:
        built_for = importlib.import_module("torch_llm_datadist._built_for").TORCH_NPU
    except ModuleNotFoundError as error:
        raise ImportError("the native core of torch_llm_datadist is not built; run `make build`") from error
    try:
        found = metadata.version("torch_npu")
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"torch_llm_datadist needs torch_npu {built_for}, and no torch_npu is installed; "
            f"pip install torch_npu=={built_for}"
        ) from error
    # torch_npu's allocator is a C++ vtable: with another release the core would call the wrong functions.
    if found != built_for:
        raise ImportError(
            f"torch_llm_datadist was built for torch_npu {built_for}, and torch_npu {found} is installed; "
            f"pip install torch_npu=={built_for}, or build again with `make build`"
        )


@functools.cache
def load() -> ModuleType:
    """Imports torch, torch_npu and then the core, ``torch_llm_datadist._C``, which it returns.

    Raises ImportError when the core is not built, or built for another torch_npu (naming both versions).
    """
    check_torch_npu()
    importlib.import_module("torch")
    importlib.import_module("torch_npu")
    core = importlib.import_module("torch_llm_datadist._C")
    # Registered after torch_npu's own exit hook, so run before it: threads must not outlive the runtime.
    atexit.register(core.stop_all)
    return core
