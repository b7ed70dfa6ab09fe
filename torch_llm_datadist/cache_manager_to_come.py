"""The methods of ``CacheManager`` that are not there yet: signatures, and what to use meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from .cache import Cache, CacheDesc
from .keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .transfer import MemInfo

if TYPE_CHECKING:
    import torch


def not_there(method: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"CacheManager.{method} is not there yet; {instead}")


class CacheManagerToCome:
    """Source of each method: the manual page of its name."""

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        not_there("allocate_cache", "register_blocks_cache takes tensors of your own")

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> Cache:
        not_there("allocate_blocks_cache", "register_blocks_cache takes tensors of your own")

    def deallocate_cache(self, cache: Cache) -> None:
        not_there("deallocate_cache", "unregister_cache ends a registration")

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        not_there("deallocate_blocks_cache", "unregister_cache ends a registration")

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[torch.Tensor],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        not_there("register_cache", "register_blocks_cache serves blocks")

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        not_there("remove_cache_key", "unregister_cache ends a registration")

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        not_there("pull_cache", "pull_blocks moves blocks")

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> None:
        not_there("push_cache", "push_blocks moves blocks")

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        not_there("copy_cache", "copy the tensors with torch")

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        not_there("copy_blocks", "copy the blocks with torch")

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        not_there("swap_blocks", "copy the blocks with torch")

    def remap_registered_memory(self, mem_infos: MemInfo | list[MemInfo]) -> None:
        not_there("remap_registered_memory", "register the memory again")
