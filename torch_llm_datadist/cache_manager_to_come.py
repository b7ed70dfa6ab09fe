"""The methods of ``CacheManager`` that are not there yet: signatures, and what to use meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from .cache import Cache
from .cache_task import CacheTask
from .transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig

if TYPE_CHECKING:
    pass


def not_there(method: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"CacheManager.{method} is not there yet; {instead}")


class CacheManagerToCome:
    """Source of each method: the manual page of its name."""

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig | TransferWithCacheKeyConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        not_there("transfer_cache_async", "prepare_push sends layer by layer")
