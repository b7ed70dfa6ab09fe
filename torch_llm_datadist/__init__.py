"""Moves the KV cache of language models between processes on Ascend NPUs, as torch ops on torch_npu streams.

``import torch_llm_datadist`` imports neither torch nor torch_npu; a name is loaded when it is first used, so
that ``torch_llm_datadist.emulator.enable()`` can still come before them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_llm_datadist import emulator as emulator
    from torch_llm_datadist import errors as errors
    from torch_llm_datadist import ops as ops
    from torch_llm_datadist.binding import Binding as Binding
    from torch_llm_datadist.binding import Publication as Publication
    from torch_llm_datadist.binding import Task as Task
    from torch_llm_datadist.binding import discard as discard
    from torch_llm_datadist.binding import ticket_state as ticket_state
    from torch_llm_datadist.cache import Cache as Cache
    from torch_llm_datadist.cache import CacheDesc as CacheDesc
    from torch_llm_datadist.cache import KvCache as KvCache
    from torch_llm_datadist.cache_manager import CacheManager as CacheManager
    from torch_llm_datadist.cache_task import CacheTask as CacheTask
    from torch_llm_datadist.cluster import LLMClusterInfo as LLMClusterInfo
    from torch_llm_datadist.cluster import LLMRole as LLMRole
    from torch_llm_datadist.config import LLMConfig as LLMConfig
    from torch_llm_datadist.config import LlmConfig as LlmConfig
    from torch_llm_datadist.data_type import DataType as DataType
    from torch_llm_datadist.data_type import Placement as Placement
    from torch_llm_datadist.datadist import LLMDataDist as LLMDataDist
    from torch_llm_datadist.errors import LLMException as LLMException
    from torch_llm_datadist.errors import LLMStatusCode as LLMStatusCode
    from torch_llm_datadist.errors import Status as Status
    from torch_llm_datadist.keys import BlocksCacheKey as BlocksCacheKey
    from torch_llm_datadist.keys import CacheKey as CacheKey
    from torch_llm_datadist.keys import CacheKeyByIdAndIndex as CacheKeyByIdAndIndex
    from torch_llm_datadist.kv_cache_manager import KvCacheManager as KvCacheManager
    from torch_llm_datadist.stream_synchronizer import StreamLayerSynchronizer as StreamLayerSynchronizer
    from torch_llm_datadist.transfer import LayerSynchronizer as LayerSynchronizer
    from torch_llm_datadist.transfer import MemInfo as MemInfo
    from torch_llm_datadist.transfer import Memtype as Memtype
    from torch_llm_datadist.transfer import RegisterMemStatus as RegisterMemStatus
    from torch_llm_datadist.transfer import TransferConfig as TransferConfig
    from torch_llm_datadist.transfer import TransferWithCacheKeyConfig as TransferWithCacheKeyConfig
    from torch_llm_datadist.transfer_watch import TransferWatch as TransferWatch

# Public name: the module that defines it.
_HOMES = {
    "Binding": "binding",
    "BlocksCacheKey": "keys",
    "Cache": "cache",
    "CacheDesc": "cache",
    "CacheKey": "keys",
    "CacheKeyByIdAndIndex": "keys",
    "CacheManager": "cache_manager",
    "CacheTask": "cache_task",
    "DataType": "data_type",
    "KvCache": "cache",
    "KvCacheManager": "kv_cache_manager",
    "LLMClusterInfo": "cluster",
    "LLMConfig": "config",
    "LLMDataDist": "datadist",
    "LLMException": "errors",
    "LLMRole": "cluster",
    "LLMStatusCode": "errors",
    "LayerSynchronizer": "transfer",
    "LlmConfig": "config",
    "MemInfo": "transfer",
    "Memtype": "transfer",
    "Placement": "data_type",
    "Publication": "binding",
    "RegisterMemStatus": "transfer",
    "Status": "errors",
    "StreamLayerSynchronizer": "stream_synchronizer",
    "Task": "binding",
    "TransferConfig": "transfer",
    "TransferWatch": "transfer_watch",
    "TransferWithCacheKeyConfig": "transfer",
    "discard": "binding",
    "ticket_state": "binding",
}
_SUBMODULES = ("emulator", "errors", "ops")

__all__ = [*_HOMES, *_SUBMODULES]


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
