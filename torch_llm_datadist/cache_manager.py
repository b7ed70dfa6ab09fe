"""``CacheManager``: registers caches and moves their blocks to and from linked peers.

Every blocking transfer is one op call: the arguments are checked here, the op orders the transfer after the
current stream, and the caller's thread waits for its end with the deadline of ``sync_kv_timeout``. No stream
ever waits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from . import checks, ops
from .binding import Task
from .block_transfer import (
    BlockTransfer,
    addresses,
    check_remote_count,
    read_blocks,
    read_pull_layers,
    read_push_layers,
)
from .blocking_call import BlockingCall
from .cache import Cache, CacheDesc
from .cache_manager_async import AsyncTransfers, layer_transfers
from .cache_manager_to_come import CacheManagerToCome, not_there
from .checks import as_int64
from .errors import EngineFailedError, KvCacheNotExistError, ParamInvalidError
from .keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .link import LinkService
from .link_table import Link
from .options import Options
from .registration import read_tensors
from .registry import CacheRegistry, HeldCacheInfo, LocalCache
from .wire import CacheRecord

if TYPE_CHECKING:
    from . import _C


class CacheManager(AsyncTransfers, CacheManagerToCome):
    """The caches of one ``LLMDataDist``; obtained from ``LLMDataDist.cache_manager``.

    Thread-safe. Transfers over different links do not wait for each other.
    """

    def __init__(
        self,
        native: ModuleType,
        instance: _C.Instance,
        links: LinkService,
        registry: CacheRegistry,
        options: Options,
    ) -> None:
        self._native = native
        self._instance = instance
        self._links = links
        self._registry = registry
        self._options = options
        self._call = BlockingCall(native, options)
        self._registering = threading.Lock()
        self._layer_transfers = layer_transfers(native, links, options)
        self._is_closed = False

    # Caches.

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[torch.Tensor],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache:
        """Makes tensors of the caller known as a cache of blocks, here and to all linked peers.

        Tensors are kept alive until the cache is unregistered and nobody can touch them any more; with
        addresses that is the caller's duty.

        Args:
            cache_desc: shape[0] is the number of blocks; a block is the rest of the shape.
            addrs: num_tensors device tensors (list or tuple) or device addresses (list). Each is contiguous,
                on the instance's device, of desc's dtype and size in bytes.
            blocks_cache_key: its ``model_id`` is the name by which peers find the cache; one registered later
                with the same name hides this one. None: peers cannot name it.
            remote_accessible: False keeps it local: peers do not learn of it. None means True for device
                memory.

        Raises:
            TypeError, ValueError: wrong types; an address outside its range.
            LLMException: ``LLM_PARAM_INVALID`` for tensors that do not fit the desc.

        Source: manual page register_blocks_cache; tensors, and reaching peers that are already linked, are
            additions.
        """
        asked = "register_blocks_cache"
        if self._is_closed:
            raise EngineFailedError(f"{asked}: the instance is finalized")
        desc = checks.instance(f"{asked}: cache_desc", cache_desc, CacheDesc)
        if blocks_cache_key is not None:
            checks.instance(f"{asked}: blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        if remote_accessible is not None:
            checks.boolean(f"{asked}: remote_accessible", remote_accessible)
        tensors = read_tensors(asked, self._native, self._options.device, desc, addrs)
        model_id = blocks_cache_key.model_id if blocks_cache_key else None
        with self._registering:  # peers learn of caches in the order of their ids
            return self._register(desc, tensors, model_id, remote_accessible is not False)

    def unregister_cache(self, cache_id: int) -> None:
        """Ends a registration; returns at once.

        New transfers do not find the cache any more. Its tensors are held until every linked peer has
        confirmed that it dropped the cache, or is gone, and until the transfers of this instance that use it
        have ended; ``held_caches`` lists what is still held.

        Args:
            cache_id: int64; an unknown one is no error.

        Source: manual page unregister_cache.
        """
        checks.int64("unregister_cache: cache_id", cache_id)
        if self._is_closed:
            raise EngineFailedError("unregister_cache: the instance is finalized")
        self._withdraw(cache_id)

    def held_caches(self) -> list[HeldCacheInfo]:
        """The unregistered caches whose memory is still held, and for whom. Not in the original."""
        return [held.info() for held in self._registry.held()]

    # Transfers.

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] | None = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Copies local blocks into blocks of a peer's cache: ``src_blocks[i]`` to ``dst_blocks[i]``, in every
        tensor.

        The copies start when all earlier work of the current stream is done; the call returns when they have
        ended. The receiver is not told. Needs ``enable_remote_cache_accessible``.

        Args:
            dst_cache_key: the peer's cluster_id and the model_id of its cache.
            src_cache: a cache registered here.
            src_blocks, dst_blocks: lists or tuples of block indices, equally long; no destination twice.
            src_layer_range, dst_layer_range: ranges of layers with step 1, equally long; None means all
                layers of the source. They need not be the same.
            tensor_num_per_layer: tensors that make a layer; divides the number of tensors of the cache.

        Raises:
            TypeError, ValueError: wrong types; a negative block.
            LLMException: ``LLM_PARAM_INVALID`` for values that do not fit the caches, ``LLM_NOT_YET_LINK``
                without a link, ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there: nothing was sent.
                ``LLM_TIMEOUT`` when ``sync_kv_timeout`` has passed: some of the destination blocks may have
                been written, or still be; the link and its other transfers go on.

        Source: seed 003 push_blocks.
        """
        asked = "push_blocks"
        key, transfer = self._read_push(
            asked, dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range,
            tensor_num_per_layer,
        )  # fmt: skip
        with self._links.table.using(key.cluster_id, asked) as link:
            self._remote_record(asked, link, key)
            self._call.run(asked, ops.push_blocks, src_cache, transfer, link, key.model_id)

    def pull_blocks(
        self,
        src_cache_key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Copies blocks of a peer's cache into local blocks: ``src_blocks[i]`` to ``dst_blocks[i]``, in every
        tensor.

        The copies start when all earlier work of the current stream is done; the call returns when the bytes
        are here. The caller makes sure that the peer has written them.

        Args:
            src_cache_key: a ``BlocksCacheKey``: the peer's cluster_id and the model_id of its cache. Keys of
                contiguous caches are not served yet.
            dst_cache: a cache registered here.
            src_blocks, dst_blocks: lists or tuples of block indices, equally long.
            src_layer_range, dst_layer_range: ranges of layers with step 1, equally long. A range that is not
                given means all layers of the cache on its side.
            tensor_num_per_layer: tensors that make a layer; only matters with a range.

        Raises: as ``push_blocks``.

        Source: manual page pull_blocks.
        """
        asked = "pull_blocks"
        if isinstance(src_cache_key, (CacheKey, CacheKeyByIdAndIndex)):
            not_there("pull_blocks with a key of a contiguous cache", "pull from a BlocksCacheKey")
        key = checks.instance(f"{asked}: src_cache_key", src_cache_key, BlocksCacheKey)
        local = self._find(asked, "dst_cache", dst_cache)
        if src_blocks is None:
            raise TypeError(f"{asked}: src_blocks is None, expected a list or tuple of ints")
        src, dst = read_blocks(
            asked, src_blocks, dst_blocks, local="dst_blocks", num_blocks=local.cache.num_blocks
        )
        src_layers, dst_layers, per_layer = read_pull_layers(
            asked, len(local.cache.tensors), src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        if key.cluster_id == self._links.identity.cluster_id:
            raise ParamInvalidError(
                f"{asked}: cluster {key.cluster_id} is this instance itself, expected a peer"
            )
        with self._links.table.using(key.cluster_id, asked) as link:
            remote = self._remote_record(asked, link, key)
            if src_layers is None:
                check_remote_count(asked, link, len(remote.segments), dst_layers, per_layer)
            first = src_layers.start if src_layers is not None else 0
            transfer = BlockTransfer(src, dst, first, dst_layers.start, len(dst_layers), per_layer)
            self._call.run(asked, ops.pull_blocks, dst_cache, transfer, link, key.model_id)

    def prepare_push(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        timeout_s: float | None = None,
    ) -> Task:
        """Takes a ticket for a push whose layers are sent one by one, each as soon as the forward has written
        it.

        Nothing moves until a ``Binding`` joins the task to a forward that calls ``ops.push_layer``. The
        receiver waits for the layers with ``task.ticket``.

        Args: as ``push_blocks``, and
            timeout_s: seconds from ``Binding.bind`` to the last byte; None leaves it to the binding.

        Raises: as ``push_blocks``; ``LLM_LINK_BUSY`` when the link has no ticket left.

        Not in the original.
        """
        asked = "prepare_push"
        key, transfer = self._read_push(
            asked, dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range,
            tensor_num_per_layer,
        )  # fmt: skip
        timeout_ms = self._timeout_ms(timeout_s)
        with self._links.table.using(key.cluster_id, asked) as link:
            self._remote_record(asked, link, key)
            task = self._native.prepare_push(
                link.handle,
                as_int64(key.model_id),
                src_cache.tensors,
                transfer.src_blocks,
                transfer.dst_blocks,
                transfer.src_layer,
                transfer.dst_layer,
                transfer.num_layers,
                transfer.tensors_per_layer,
                timeout_ms,
            )
        return Task(task)

    # Inside.

    def close(self, timeout_s: float = 0.0) -> None:
        """Ends layer transfers, withdraws every cache; calls fail from here on. For ``finalize``."""
        self._is_closed = True
        self._layer_transfers.close(timeout_s)
        for cache_id in self._registry.ids():
            self._withdraw(cache_id)

    def _register(
        self, desc: CacheDesc, tensors: list[torch.Tensor], model_id: int | None, is_reachable: bool
    ) -> Cache:
        cache_id = self._instance.register_cache(tensors, desc.shape[0])
        cache = Cache(
            cache_id, desc, addresses(tensors), True, tensors=tensors, remote_accessible=is_reachable
        )
        local = LocalCache(cache, model_id, desc.size)
        self._registry.add(local)
        self._links.announce(local)
        return cache

    def _withdraw(self, cache_id: int) -> None:
        held = self._registry.withdraw(cache_id)
        if held is not None:
            self._instance.withdraw_cache(cache_id)
            self._links.withdraw(held)

    def _read_push(
        self,
        asked: str,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] | None,
        dst_blocks: Sequence[int],
        src_layer_range: range | None,
        dst_layer_range: range | None,
        tensor_num_per_layer: int,
    ) -> tuple[BlocksCacheKey, BlockTransfer]:
        if not self._options.remote_accessible:
            raise ParamInvalidError(
                f"{asked}: enable_remote_cache_accessible is off here; pushing needs it at both ends"
            )
        key = checks.instance(f"{asked}: dst_cache_key", dst_cache_key, BlocksCacheKey)
        local = self._find(asked, "src_cache", src_cache)
        src, dst = read_blocks(
            asked, src_blocks, dst_blocks, local="src_blocks", num_blocks=local.cache.num_blocks
        )
        src_layers, dst_layers, per_layer = read_push_layers(
            asked, len(local.cache.tensors), src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        return key, BlockTransfer(src, dst, src_layers.start, dst_layers.start, len(src_layers), per_layer)

    def _find(self, asked: str, name: str, cache: object) -> LocalCache:
        found = checks.instance(f"{asked}: {name}", cache, Cache)
        if self._is_closed:
            raise ParamInvalidError(f"{asked}: the instance is finalized")
        if not found.is_blocks_cache:
            raise ParamInvalidError(f"{asked}: {name} is a contiguous cache, expected a blocks cache")
        local = self._registry.find(found)
        if local is None:
            raise KvCacheNotExistError(
                f"{asked}: {name} (cache_id {found.cache_id}) is not registered at this instance, or not any "
                "more. Nothing was sent."
            )
        if self._options.remote_accessible and not found.remote_accessible:
            raise ParamInvalidError(
                f"{asked}: {name} (cache_id {found.cache_id}) was registered with remote_accessible=False"
            )
        return local

    def _remote_record(self, asked: str, link: Link, key: BlocksCacheKey) -> CacheRecord:
        """What the peer said of the cache; asks it once when it has not said anything yet."""
        record = link.remote_cache(key.model_id)
        if record is None:
            self._links.sync(key.cluster_id, self._options.sync_kv_timeout_ms / 1000)
            record = link.remote_cache(key.model_id)
        if record is None:
            there = sorted(
                {str(c.model_id) for c in list(link.remote_caches.values()) if c.model_id is not None}
            )
            raise KvCacheNotExistError(
                f"{asked}: cluster {key.cluster_id} ({link.peer}) has no blocks cache with model_id "
                f"{key.model_id}; it has {', '.join(there) or 'none'}. Nothing was sent; the link is "
                "still usable."
            )
        return record

    def _timeout_ms(self, timeout_s: Any) -> int:
        if timeout_s is None:
            return 0  # what the binding says
        if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool):
            raise TypeError(f"prepare_push: timeout_s is {timeout_s!r}, expected a number of seconds or None")
        if not 0 < timeout_s <= checks.INT32_MAX / 1000:
            raise ValueError(
                f"prepare_push: timeout_s is {timeout_s}, expected more than 0 and at most 2**31 ms"
            )
        return max(1, round(timeout_s * 1000))
