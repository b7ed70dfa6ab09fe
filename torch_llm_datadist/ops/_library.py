"""The native library's ops; loading it defines them."""

from __future__ import annotations

import torch

from .. import _native

_native.load()
ops = torch.ops.torch_llm_datadist
