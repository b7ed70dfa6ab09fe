"""The part of ``CacheManager`` that allocates: caches in memory of the instance's pools, and their keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import checks
from .cache import Cache, CacheDesc
from .cache_store import CacheStore
from .data_type import Placement
from .errors import OutOfMemoryError
from .key_table import names_of
from .keys import BlocksCacheKey, CacheKey
from .messages import refusal
from .registration import read_blocks_key, read_desc, read_keys, total_bytes

if TYPE_CHECKING:
    import torch

_POOL_POLL_S = 0.005


class AllocatedCaches(CacheStore):
    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Takes a contiguous cache from the pool of its placement; contents undefined.

        The memory goes back to the pool when the cache was deallocated and all its keys are gone. While
        ``enable_remote_cache_accessible`` is off, a pull by a peer that succeeded removes the key of its
        entry, once all tensors were pulled; prefix keys stay.

        Args:
            cache_desc: shape[0] is the batch.
            cache_keys: list or tuple; key i names batch entry i, a placeholder (``req_id = 2**64-1``) skips
                one.

        Raises:
            TypeError: wrong types.
            LLMException: ``LLM_PARAM_INVALID`` without a pool, for a shape that no tensor has, more keys than
                entries, or a key that is bound or listed twice; ``LLM_OUT_OF_MEMORY``, also when what was
                deallocated is not free within ``sync_kv_timeout`` because peers still touch it.

        Source: manual page allocate_cache.
        """
        asked = "allocate_cache"
        self._require_open(asked)
        desc = checks.instance(f"{asked}: cache_desc", cache_desc, CacheDesc)
        total_bytes(asked, desc)
        keys = read_keys(asked, desc, cache_keys)
        self._registry.keys.check_free(asked, keys)
        tensors, release = self._take(asked, desc)
        with self._changing:
            try:
                self._registry.keys.check_free(asked, keys)
            except BaseException:
                release()
                raise
            cache = self._add(asked, desc, tensors, False, None, True, keys=keys, release=release)
        self._settle_names(asked, cache, has_name=bool(keys))
        return cache

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> Cache:
        """Takes a cache of blocks from the pool of its placement; contents undefined.

        Args:
            cache_desc: shape[0] is the number of blocks.
            blocks_cache_key: as for ``register_blocks_cache``.

        Raises: as ``allocate_cache``.

        Source: manual page allocate_blocks_cache.

        >>> cache = prefill.cache_manager.allocate_blocks_cache(CacheDesc(2, [4, 64], DataType.DT_FLOAT16))
        >>> cache.tensors[0].shape
        torch.Size([4, 64])
        >>> prefill.cache_manager.deallocate_blocks_cache(cache)
        """
        asked = "allocate_blocks_cache"
        self._require_open(asked)
        desc = checks.instance(f"{asked}: cache_desc", cache_desc, CacheDesc)
        model_id = read_blocks_key(asked, blocks_cache_key)
        total_bytes(asked, desc)
        tensors, release = self._take(asked, desc)
        with self._changing:
            cache = self._add(asked, desc, tensors, True, model_id, True, release=release)
        self._settle_names(asked, cache, has_name=model_id is not None)
        return cache

    def deallocate_cache(self, cache: Cache) -> None:
        """Gives a contiguous cache up. Peers reach it by its keys until the last of them is gone.

        Deallocating twice is no error, and for a registered cache nothing happens.

        Raises:
            TypeError: not a ``Cache``.
            LLMException: ``LLM_PARAM_INVALID`` for a blocks cache, ``LLM_FEATURE_NOT_ENABLED`` without any
                pool.

        Source: manual page deallocate_cache.
        """
        self._deallocate("deallocate_cache", cache, is_blocks=False)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Gives a blocks cache up, with its key. Its memory is free when no peer touches it any more.

        Raises: as ``deallocate_cache``, the kinds exchanged.

        Source: manual page deallocate_blocks_cache.
        """
        self._deallocate("deallocate_blocks_cache", cache, is_blocks=True)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Removes a key of an allocated cache; an unknown one, or one of a registered cache, is no error.

        Returns when all linked peers know, at the latest after ``sync_kv_timeout``.

        Raises:
            TypeError: not a ``CacheKey``.
            LLMException: ``LLM_FEATURE_NOT_ENABLED`` without any pool.

        Source: manual page remove_cache_key.
        """
        asked = "remove_cache_key"
        key = checks.instance(f"{asked}: cache_key", cache_key, CacheKey)
        self._require_usable(asked)
        self._require_pools(asked)
        with self._changing:
            for name in names_of(key):
                cache_id = self._registry.keys.cache_of(name)
                local = self._registry.get(cache_id) if cache_id is not None else None
                if local is not None and local.is_owned:
                    self._registry.keys.remove([name])
                    self._keys_changed(local)
        self._settle(asked)

    # Inside.

    def _require_pools(self, asked: str) -> None:
        if not self._pools:
            raise refusal("no_memory_pool", asked=asked, value="no memory pool")

    def _take(self, asked: str, desc: CacheDesc) -> tuple[list[torch.Tensor], Callable[[], None]]:
        """Tensors from the pool, and what gives them back."""
        pool = self._pools.get(desc.placement)
        if pool is None:
            option = "mem_pool_cfg" if desc.placement == Placement.DEVICE else "host_mem_pool_cfg"
            raise refusal("no_pool_of_placement", asked=asked, value=desc.placement.name, option=option)
        try:
            pool.require_room(desc.num_tensors, total_bytes(asked, desc))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(f"{asked}: {error}") from None
        wanted = read_desc(asked, desc)
        deadline = time.monotonic() + self._options.sync_kv_timeout_ms / 1000
        while True:
            is_more_to_come = any(held.local.is_owned for held in self._registry.held())
            try:
                pieces = pool.allocate([size for _, _, size in wanted])
                break
            except OutOfMemoryError as error:
                # What was deallocated is free once the peers have dropped it.
                if not is_more_to_come or time.monotonic() > deadline:
                    raise OutOfMemoryError(f"{asked}: {error}") from None
                time.sleep(_POOL_POLL_S)
        tensors = [
            piece.view(dtype).view(shape) for piece, (shape, dtype, _) in zip(pieces, wanted, strict=True)
        ]
        return tensors, lambda: pool.free(pieces)

    def _deallocate(self, asked: str, cache: Cache, *, is_blocks: bool) -> None:
        found = checks.instance(f"{asked}: cache", cache, Cache)
        self._require_usable(asked)
        self._require_pools(asked)
        if found.is_blocks_cache != is_blocks:
            raise refusal(
                "other_kind_to_release",
                asked=asked,
                value=found.cache_id,
                found="contiguous" if is_blocks else "blocks",
                wanted="blocks" if is_blocks else "contiguous",
            )
        with self._changing:
            local = self._registry.find(found)
            if local is None or not local.is_owned:
                return
            local.is_open = False
            found.close()
            self._keys_changed(local)
        self._settle(asked)
