"""The manager of the older API, as a thin adapter: the same calls under its names and its rules of roles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks
from .cache import Cache, CacheDesc
from .cache_manager import CacheManager
from .cache_task import CacheTask
from .cluster import LLMRole
from .keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .messages import refusal
from .transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig

_DECODER_ONLY = (LLMRole.DECODER, LLMRole.MIX)
_PROMPT_ONLY = (LLMRole.PROMPT, LLMRole.MIX)


class KvCacheManager:
    """The manager of the older API: ``LLMDataDist.kv_cache_manager`` while ``enable_cache_manager`` is off.

    Every method does what the one of that name does in ``CacheManager``, whose documentation holds. What is
    for one role only raises ``LLM_PARAM_INVALID`` in the other.

    Source: older manual page KvCacheManager.

    >>> config = LLMConfig()
    >>> config.device_id = 0
    >>> config.mem_pool_cfg = '{"memory_size": 1048576}'
    >>> older = LLMDataDist(llm_datadist.LLMRole.MIX, cluster_id=3)
    >>> older.init(config.generate_options())  # enable_cache_manager is off
    >>> cache = older.kv_cache_manager.allocate_cache(CacheDesc(2, [1, 64], DataType.DT_FLOAT16))
    >>> len(cache.per_device_tensor_addrs[0])
    2
    >>> older.finalize()
    """

    def __init__(self, manager: CacheManager, role: LLMRole) -> None:
        self._manager = manager
        self._role = role

    def is_initialized(self) -> bool:
        """False once the instance is finalized."""
        return not self._manager.is_closed

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Keys are for the PROMPT role."""
        if cache_keys:
            self._require("allocate_cache with cache_keys", _PROMPT_ONLY)
        return self._manager.allocate_cache(cache_desc, cache_keys)

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> Cache:
        """As ``CacheManager.allocate_blocks_cache``, in any role."""
        return self._manager.allocate_blocks_cache(cache_desc, blocks_cache_key)

    def deallocate_cache(self, cache: Cache) -> None:
        """As ``CacheManager.deallocate_cache``, in any role."""
        self._manager.deallocate_cache(cache)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """As ``CacheManager.deallocate_blocks_cache``, in any role."""
        self._manager.deallocate_blocks_cache(cache)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """For the PROMPT role."""
        self._require("remove_cache_key", _PROMPT_ONLY)
        self._manager.remove_cache_key(cache_key)

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        kv_cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_cache_offset: int | None = None,
        dst_cache_offset: int | None = None,
    ) -> None:
        """For the DECODER role. The offsets are of the older engine only: None or -1."""
        self._require("pull_cache", _DECODER_ONLY)
        for name, offset in (("src_cache_offset", src_cache_offset), ("dst_cache_offset", dst_cache_offset)):
            if offset is not None and checks.int64(f"pull_cache: {name}", offset) != -1:
                raise refusal("no_offsets", name=name, value=offset)
        self._manager.pull_cache(
            cache_key,
            kv_cache,
            batch_index,
            size,
            src_layer_range=src_layer_range,
            dst_layer_range=dst_layer_range,
        )

    def pull_blocks(
        self,
        prompt_cache_key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        decoder_kv_cache: Cache,
        prompt_blocks: Sequence[int] = (),
        decoder_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
    ) -> None:
        """For the DECODER role."""
        self._require("pull_blocks", _DECODER_ONLY)
        self._manager.pull_blocks(
            prompt_cache_key,
            decoder_kv_cache,
            prompt_blocks,
            decoder_blocks,
            src_layer_range=src_layer_range,
            dst_layer_range=dst_layer_range,
        )

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
        """As ``CacheManager.copy_cache``, in any role."""
        self._manager.copy_cache(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """As ``CacheManager.copy_blocks``, in any role."""
        self._manager.copy_blocks(cache, copy_block_info)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """As ``CacheManager.swap_blocks``, in any role."""
        self._manager.swap_blocks(src_cache, dst_cache, src_to_dst)

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
    ) -> None:
        """For the PROMPT role."""
        self._require("push_cache", _PROMPT_ONLY)
        self._manager.push_cache(
            dst_cache_key, src_cache, src_batch_index, src_layer_range, dst_layer_range, size
        )

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
    ) -> None:
        """For the PROMPT role."""
        self._require("push_blocks", _PROMPT_ONLY)
        self._manager.push_blocks(
            dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range
        )

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig | TransferWithCacheKeyConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """For the PROMPT role."""
        self._require("transfer_cache_async", _PROMPT_ONLY)
        return self._manager.transfer_cache_async(
            src_cache,
            layer_synchronizer,
            transfer_configs,
            src_block_indices,
            dst_block_indices,
            dst_block_memory_size,
        )

    def get_cache_tensors(self, cache: Cache, tensor_index: int = 0) -> list[torch.Tensor]:
        """The tensor with that index on each device of the instance, so one of them.

        Args:
            tensor_index: uint32, below ``num_tensors``.
        """
        asked = "get_cache_tensors"
        found = checks.instance(f"{asked}: cache", cache, Cache)
        index = checks.uint32(f"{asked}: tensor_index", tensor_index)
        if index >= len(found.tensors):
            raise refusal("tensor_outside", asked=asked, value=index, count=len(found.tensors))
        return [found.tensors[index]]

    def _require(self, asked: str, roles: tuple[LLMRole, ...]) -> None:
        if self._role not in roles:
            raise refusal("call_of_another_role", asked=asked, wanted=roles[0].name, value=self._role.name)
