"""On and off. The state is where the effect is: a finder on ``sys.meta_path``, the children's environment."""

from __future__ import annotations

import os
import sys

from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.emulator.import_hook import TorchNpuFinder, installed

VARIABLE = "TORCH_LLM_DATADIST_EMULATE"
# Each tensor an allocation of its own, freed when the tensor is: the emulated runtime then sees a use after
# free or past the end that torch_npu's caching allocator would hide inside a segment.
POISON = "TORCH_LLM_DATADIST_EMULATE_POISON"
NO_CACHING = "PYTORCH_NO_NPU_MEMORY_CACHING"
# A trace takes note of what transfers do; the plugin tells it only to who asks.
TRACE = "TORCH_LLM_DATADIST_EMULATE_TRACE"
SPANS = "TORCH_LLM_DATADIST_SPANS"

_TOO_LATE = (
    "torch was imported before emulation was switched on, so torch_npu looked for a real Ascend runtime. "
    f"Either set {VARIABLE}=1 in the environment (then any import order works), or call "
    "torch_llm_datadist.emulator.enable() before the first `import torch`, or start with "
    "`python -m torch_llm_datadist run --emulate script.py`."
)


def is_wanted() -> bool | None:
    """What the environment says: True, False, or None when it says nothing."""
    value = os.environ.get(VARIABLE)
    return None if value in (None, "") else value != "0"


def is_enabled() -> bool:
    """Whether torch_npu of this process is, or will be, imported on the emulated runtime."""
    return installed() is not None


def enable() -> None:
    """Makes torch_npu of this process, and of processes that it starts, run on the emulated runtime.

    Does nothing when it is on already. Raises RuntimeError when torch is imported already, ImportError when
    the emulator is not built.
    """
    if not is_enabled():
        if "torch" in sys.modules or "torch_npu" in sys.modules:
            raise RuntimeError(_TOO_LATE)
        libraries.check_built()
        sys.meta_path.insert(0, TorchNpuFinder())
    if os.environ.get(POISON, "0") not in ("", "0"):
        os.environ[NO_CACHING] = "1"
    if os.environ.get(TRACE):
        os.environ.setdefault(SPANS, "1")
    os.environ[VARIABLE] = "1"


def disable() -> None:
    """Undoes enable(), as long as torch_npu is not imported."""
    finder = installed()
    if finder is not None:
        if "torch_npu" in sys.modules:
            raise RuntimeError("emulation cannot be switched off any more: torch_npu runs on it already")
        sys.meta_path.remove(finder)
    os.environ[VARIABLE] = "0"
