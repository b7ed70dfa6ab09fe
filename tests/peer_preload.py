"""What every peer process has imported before it is forked: nothing in here touches a device."""

from torch_llm_datadist import emulator

if emulator.is_wanted() or (emulator.is_wanted() is None and not emulator.has_npu()):
    emulator.enable()

import pytest  # noqa: F401
import torch
import torch_npu  # noqa: F401

import torch_llm_datadist.binding
import torch_llm_datadist.datadist
import torch_llm_datadist.ops  # noqa: F401
from tests import instances  # noqa: F401

torch.set_num_threads(1)
