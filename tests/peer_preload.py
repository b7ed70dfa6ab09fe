"""What every peer process has imported before it is forked: nothing in here touches a device."""

from torch_llm_datadist import emulator

if emulator.is_wanted() or (emulator.is_wanted() is None and not emulator.has_npu()):
    emulator.enable()

import pytest  # noqa: E402, F401
import torch  # noqa: E402
import torch_npu  # noqa: E402, F401

import torch_llm_datadist.binding  # noqa: E402
import torch_llm_datadist.datadist  # noqa: E402
import torch_llm_datadist.ops  # noqa: E402, F401
from tests import instances  # noqa: E402, F401

torch.set_num_threads(1)
