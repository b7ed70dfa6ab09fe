"""Asynchronous layer-by-layer transfers in the original's way. Only their names are there yet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NoReturn

from .errors import LLMStatusCode
from .keys import BlocksCacheKey, CacheKeyByIdAndIndex


class Memtype(Enum):
    """Kind of memory; numbered in the opposite order to ``Placement``. Source: manual page Memtype."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class RegisterMemStatus(Enum):
    """State of a two-sided link. Source: manual page RegisterMemStatus."""

    OK = 0
    PREPARING = 1
    FAILED = 2


class LayerSynchronizer(ABC):
    """Tells ``transfer_cache_async`` when a layer may be sent. Source: seed 001 transfer_cache_async."""

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Blocks until the layer is complete; False ends the transfer."""


def _not_there(name: str) -> NoReturn:
    raise NotImplementedError(f"{name} is not there yet; CacheManager.prepare_push sends layer by layer")


class TransferConfig:
    """Source: manual page TransferConfig."""

    def __init__(
        self,
        dst_cluster_id: int,
        dst_addrs: Sequence[int],
        src_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        _not_there("TransferConfig")


class TransferWithCacheKeyConfig:
    """Source: seed 000 TransferWithCacheKeyConfig."""

    def __init__(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        _not_there("TransferWithCacheKeyConfig")


class CacheTask:
    """Source: manual page CacheTask."""

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        _not_there("CacheTask.synchronize")

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        _not_there("CacheTask.get_results")


class MemInfo:
    """Source: manual page MemInfo."""

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        raise NotImplementedError("MemInfo is not there yet; register the memory again")
