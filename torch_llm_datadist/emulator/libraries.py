"""The emulator's shared libraries: where they are, and how they get in front of torch_npu's loader."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
CANN_VARIABLE = "TORCH_LLM_DATADIST_EMULATE_CANN"
CANN_LEVELS = (
    "8.5",
    "9.0",
    "9.1",
)  # of the emulated machine; the last one unless the variable says otherwise
RUNTIME = "libascendcl.so"
COMPANIONS = (
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libmsprofiler.so",
    "libmspti.so",
    "libascend_hal.so",
    "libms_tools_ext.so",
)
OPERATORS = "libopapi.so"  # two kernels; loaded by the plugin when it first needs them
HIXL = "libcann_hixl.so"  # one per CANN level; loaded by the plugin where it needs it
ATEN = DIRECTORY / "_aten.so"


def runtime_path() -> Path:
    """The libascendcl.so of the CANN level that the environment names, with the functions of that level."""
    level = os.environ.get(CANN_VARIABLE) or CANN_LEVELS[-1]
    if level not in CANN_LEVELS:
        raise ValueError(f"{CANN_VARIABLE} = {level!r}, expected one of {', '.join(CANN_LEVELS)}")
    return DIRECTORY / "lib" / ("" if level == CANN_LEVELS[-1] else f"cann-{level}") / RUNTIME


def hixl_path() -> Path:
    """The libcann_hixl.so of the same level."""
    return runtime_path().parent / HIXL


def _path(name: str) -> Path:
    return runtime_path() if name == RUNTIME else DIRECTORY / "lib" / name


def check_built() -> None:
    """Raises ImportError naming what is missing and the command that builds it."""
    needed = (*map(_path, (RUNTIME, *COMPANIONS, OPERATORS)), hixl_path(), ATEN)
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        raise ImportError(
            f"the emulated Ascend runtime is not built: {', '.join(missing)} missing in {DIRECTORY}; "
            "run `make build`"
        )


def preload() -> None:
    """Loads what libtorch_npu.so asks for by name: a library that is loaded is not searched for again."""
    for name in (RUNTIME, *COMPANIONS):
        ctypes.CDLL(str(_path(name)), mode=ctypes.RTLD_GLOBAL)


def runtime() -> ctypes.CDLL:
    """The emulated libascendcl.so of this process."""
    return ctypes.CDLL(str(_path(RUNTIME)))


def loaded_runtime() -> ctypes.CDLL | None:
    """The same if this process has loaded it already."""
    try:
        return ctypes.CDLL(str(_path(RUNTIME)), mode=os.RTLD_NOLOAD)
    except OSError:
        return None


def install_aten() -> None:
    """Makes aten ops compute on emulated device memory. torch_npu must have been imported."""
    import torch

    torch.ops.load_library(str(ATEN))
    install = ctypes.CDLL(str(ATEN)).emuAtenInstall
    install.restype = ctypes.c_char_p
    problem = install()
    if problem:
        raise ImportError(f"aten ops for the emulated NPU could not be installed: {problem.decode()}")
