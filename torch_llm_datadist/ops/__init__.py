"""The transfer ops, as functions. ``torch.ops.torch_llm_datadist.*`` are the same ops for graphs.

Every op orders itself on the caller's current torch_npu stream and returns at once; the bytes move on streams
of the link. ``status`` is an int32[1] NPU tensor that the caller makes once, outside any graph: 0 while all
is well, else an ``LLMStatusCode`` (``LLM_FAILED`` reads as -1). What can be checked is checked before
anything is queued and raises.

Models that compute on the CPU, with their caches in host memory, call the same ops with CPU tensors for
``status`` and for what orders a layer op. There is no stream then: what the calling thread computed is done,
and where a stream would wait the op blocks that thread, without the GIL and until the transfer's deadline.
"""

from __future__ import annotations

from .checksums import checksum_blocks
from .hidden_cache import read_layer, store_layer
from .layers import finish, push_layer, wait_layer
from .local_copies import copy_blocks, copy_cache, swap_blocks
from .transfers import publish, pull_blocks, pull_cache, push_blocks, push_cache

__all__ = [  # noqa: RUF022 (in the order of the documentation)
    "push_blocks",
    "pull_blocks",
    "push_cache",
    "pull_cache",
    "publish",
    "copy_cache",
    "copy_blocks",
    "swap_blocks",
    "checksum_blocks",
    "push_layer",
    "wait_layer",
    "finish",
    "store_layer",
    "read_layer",
]
