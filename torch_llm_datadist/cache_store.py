"""The part of ``CacheManager`` that keeps caches, here those in memory of the caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from . import checks
from .blocking_call import BlockingCall, has_come_here
from .cache import Cache, CacheDesc
from .data_type import Placement
from .errors import (
    LLMException,
)
from .keys import BlocksCacheKey, CacheKey
from .link import LinkService
from .link_table import LinkInfo
from .memory_pool import MemoryPool
from .messages import refusal
from .options import Options
from .registration import addresses_of, await_kernels, read_blocks_key, read_keys, read_tensors
from .registry import CacheRegistry, HeldCache, HeldCacheInfo, LocalCache, nobody_cares
from .transfer import MemInfo, Memtype

if TYPE_CHECKING:
    import torch

    from . import _C

logger = logging.getLogger("torch_llm_datadist")


class CacheStore:
    """
    Args:
        pools: by the placement of what is allocated from them.
    """

    def __init__(
        self,
        native: ModuleType,
        instance: _C.Instance,
        links: LinkService,
        registry: CacheRegistry,
        options: Options,
        pools: dict[Placement, MemoryPool],
    ) -> None:
        self._native = native
        self._instance = instance
        self._links = links
        self._registry = registry
        self._options = options
        self._pools = pools
        self._call = BlockingCall(native, options)
        self._changing = threading.Lock()  # caches and keys; peers learn of caches in the order of their ids
        self._is_closed = False
        registry.on_taken = self._on_taken

    # Memory of the caller.

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[torch.Tensor],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
        *,
        receives: bool = True,
    ) -> Cache:
        """Makes tensors of the caller known as a contiguous cache: dimension 0 is the batch.

        Args:
            cache_desc, addrs, remote_accessible, receives: as ``register_blocks_cache``.
            cache_keys: list or tuple; key i names batch entry i. A key that is bound keeps its old cache. A
                key with ``req_id = 2**64-1`` and no prefix_id names nothing and skips an index.

        Raises: as ``register_blocks_cache``; ``LLM_PARAM_INVALID`` for more keys than the batch has entries.

        Where a linked peer may still know an earlier cache by one of the names, the call returns when it has
        learned of this one, at most after ``sync_kv_timeout``.

        Source: manual page register_cache.
        """
        asked = "register_cache"
        self._require_open(asked)
        desc = checks.instance(f"{asked}: cache_desc", cache_desc, CacheDesc)
        tensors = read_tensors(asked, self._native, self._options.device, desc, addrs)
        keys = read_keys(asked, desc, cache_keys)
        is_reachable = self._is_reachable(asked, desc, remote_accessible)
        checks.boolean(f"{asked}: receives", receives)
        self._wait_until_written(asked, tensors)
        with self._changing:
            cache = self._add(asked, desc, tensors, False, None, is_reachable, keys=keys, receives=receives)
        self._settle_names(asked, cache, has_name=bool(keys))
        return cache

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[torch.Tensor],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
        *,
        receives: bool = True,
    ) -> Cache:
        """Makes tensors of the caller known as a cache of blocks, here and to all linked peers.

        Tensors are kept alive until the cache is unregistered and nobody can touch them any more; with
        addresses that is the caller's duty.

        Returns when all that was queued on the current stream is done, outside of captures: peers read and
        write from then on, and a kernel that only then zeroed the tensors would undo it. What another stream
        writes is the caller's to order.

        Args:
            cache_desc: shape[0] is the number of blocks; a block is the rest of the shape.
            addrs: num_tensors tensors (list or tuple) or addresses (list). Each is contiguous, of desc's
                dtype and size in bytes, on the instance's device, or with ``Placement.HOST`` on the CPU.
            blocks_cache_key: its ``model_id`` is the name by which peers find the cache; one registered later
                with the same name hides this one; the call returns when linked peers know, at most after
                ``sync_kv_timeout``. None: peers cannot name it.
            remote_accessible: False keeps it local: peers do not learn of it. None means True for device
                memory, and for host memory True unless ``enable_remote_cache_accessible`` is on. Peers reach
                host memory of the caller only if they may trace this process; memory from ``allocate_*`` they
                reach always.
            receives: False if nothing is to be written into it: a peer's push and a pull from here are
                refused, and so is expecting a packed transfer. ``ops.push_blocks`` and ``ops.push_cache`` may
                then be handed a copy that a compiler made of the tensors (aot_eager, or inductor where the
                graph writes them); see docs/graphs.md. Not in the original.

        Raises:
            TypeError, ValueError: wrong types; an address outside its range.
            LLMException: ``LLM_PARAM_INVALID`` for tensors that do not fit the desc, and for device memory
                that is not of torch's allocator where links on one host are to reach it; ``LLM_TIMEOUT`` when
                what is queued on the current stream is not done within ``LLMConfig.register_timeout``; the
                code of the runtime, or of the engine of a link, that does not take the memory. Nothing was
                registered. ``LLM_OUT_OF_MEMORY`` for more reachable caches than a peer takes in: 4096, and
                16 MiB about them, at 256 bytes a tensor, 256 a cache and 32 a key.

        Source: manual page register_blocks_cache; tensors, and reaching peers that are already linked, are
            additions.

        >>> tensors = [torch.zeros([BLOCKS, 64], device="npu:0") for _ in range(4)]
        >>> desc = CacheDesc(4, [BLOCKS, 64], DataType.DT_FLOAT)
        >>> cache = prefill.cache_manager.register_blocks_cache(desc, tensors, BlocksCacheKey(1, model_id=5))
        >>> prefill.cache_manager.unregister_cache(cache.cache_id)
        """
        asked = "register_blocks_cache"
        self._require_open(asked)
        desc = checks.instance(f"{asked}: cache_desc", cache_desc, CacheDesc)
        model_id = read_blocks_key(asked, blocks_cache_key)
        is_reachable = self._is_reachable(asked, desc, remote_accessible)
        checks.boolean(f"{asked}: receives", receives)
        tensors = read_tensors(asked, self._native, self._options.device, desc, addrs)
        self._wait_until_written(asked, tensors)
        with self._changing:
            cache = self._add(asked, desc, tensors, True, model_id, is_reachable, receives=receives)
        self._settle_names(asked, cache, has_name=model_id is not None)
        return cache

    def unregister_cache(self, cache_id: int) -> None:
        """Ends a registration; returns at once.

        New transfers do not find the cache any more, by its keys neither. Its tensors are held until every
        linked peer has confirmed that it dropped the cache, or is gone, and until the transfers and copies of
        this instance that use it have ended; ``held_caches`` lists what is still held.

        Args:
            cache_id: int64; an unknown one is no error.

        Source: manual page unregister_cache.
        """
        checks.int64("unregister_cache: cache_id", cache_id)
        self._require_open("unregister_cache")
        with self._changing:
            self._withdraw(cache_id)

    def held_caches(self) -> list[HeldCacheInfo]:
        """The unregistered caches whose memory is still held, and for whom. Not in the original."""
        self._native.require_not_forked("held_caches")
        return [held.info() for held in self._registry.held()]

    def remap_registered_memory(self, mem_infos: MemInfo | list[MemInfo]) -> None:
        """Reserved, as in the original: the arguments are checked, and then it raises.

        Raises:
            LLMException: ``LLM_PARAM_INVALID`` for anything but a ``MemInfo`` or a list of them that is not
                empty, for host memory, and for an empty range; ``LLM_NOT_YET_LINK`` without a link; else
                ``LLM_FEATURE_NOT_ENABLED``.

        Source: manual page remap_registered_memory.
        """
        asked = "remap_registered_memory"
        self._require_usable(asked)
        infos = [mem_infos] if isinstance(mem_infos, MemInfo) else mem_infos
        if not isinstance(infos, list) or not infos or not all(isinstance(i, MemInfo) for i in infos):
            raise refusal(
                "bad_value",
                name=f"{asked}: mem_infos",
                value=repr(mem_infos),
                expected="a MemInfo or a list of them",
            )
        for i, info in enumerate(infos):
            if info.mem_type != Memtype.MEM_TYPE_DEVICE or info.addr == 0 or info.size <= 0:
                raise refusal(
                    "bad_value",
                    name=f"{asked}: mem_infos[{i}]",
                    value=repr(info),
                    expected="device memory at an address other than 0, of more than 0 bytes",
                )
        if not self._links.table.infos():
            raise refusal("no_link_at_all", asked=asked)
        raise refusal("remap_is_reserved", asked=asked, value="reserved")

    # Inside.

    def _wait_until_written(self, asked: str, tensors: Sequence[torch.Tensor]) -> None:
        """A kernel that is queued may still initialise the tensors, and the first pull may come at once."""
        if any(tensor.device.type == "npu" for tensor in tensors):
            device, timeout_ms = self._options.device, self._options.register_timeout_ms
            if not has_come_here(self._native, device, timeout_ms, asked):
                raise refusal("stream_is_late", asked=asked, device=device, value=timeout_ms)
            await_kernels(tensors)  # it is through by now; what torch_npu still owes the stream ends here

    def close(self, timeout_s: float = 0.0) -> None:
        """Withdraws every cache; calls fail from here on."""
        self._is_closed = True
        self._registry.on_taken = nobody_cares  # else the two would keep each other, and memory, alive
        with self._changing:
            held = [self._take_out(cache_id) for cache_id in self._registry.ids()]
            self._links.hold([each for each in held if each is not None])

    @property
    def is_closed(self) -> bool:
        """The instance is finalized."""
        return self._is_closed

    def _require_open(self, asked: str) -> None:
        self._native.require_not_forked(asked)
        if self._is_closed:
            raise refusal("instance_was_finalized", asked=asked, value="finalized")

    def _require_usable(self, asked: str) -> None:
        self._native.require_not_forked(asked)
        if self._is_closed:
            raise refusal("instance_is_finalized", asked=asked, value="finalized")

    def _is_reachable(self, asked: str, desc: CacheDesc, remote_accessible: bool | None) -> bool:
        if remote_accessible is not None:
            return checks.boolean(f"{asked}: remote_accessible", remote_accessible)
        return desc.placement == Placement.DEVICE or not self._options.remote_accessible

    def _add(
        self,
        asked: str,
        desc: CacheDesc,
        tensors: list[torch.Tensor],
        is_blocks: bool,
        model_id: int | None,
        is_reachable: bool,
        *,
        keys: Sequence[CacheKey] = (),
        release: Callable[[], None] | None = None,
        receives: bool = True,
    ) -> Cache:
        cache_id = handle = 0
        try:
            if is_reachable:
                self._registry.require_room(asked, len(tensors), len(keys))
            cache_id = self._instance.register_cache(
                tensors, desc.shape[0], is_blocks, receives, is_reachable
            )
            if is_reachable:
                self._try_to_export(asked, cache_id)
            handle = self._native.paged_open(tensors) if is_blocks else 0
            cache = Cache(
                cache_id,
                desc,
                addresses_of(tensors),
                is_blocks,
                tensors=tensors,
                remote_accessible=is_reachable,
                receives=receives,
                handle=handle,
            )
            local = LocalCache(cache, model_id, tuple(tensor.nbytes for tensor in tensors), release)
            self._registry.add(local)
            self._registry.keys.bind(cache_id, keys, is_owned=local.is_owned)
            self._links.announce(local)
        except BaseException:
            self._take_back(cache_id, handle, release)
            raise
        return cache

    def _try_to_export(self, asked: str, cache_id: int) -> None:
        """Memory that a transport refuses is refused here, not when a peer links or is told of the cache."""
        try:
            if self._links.identity.transports.get("mapped") == "":
                self._instance.try_export_cache(cache_id)
            for link in self._links.table.infos():
                if link.transport not in ("mapped", "fabric"):
                    self._try_to_export_over(link, cache_id)
        except LLMException as error:
            raise type(error)(
                f"{asked}: {error}. Nothing was registered; with remote_accessible=False no peer "
                "needs to reach the memory",
                status_code=error.status_code,
            ) from None

    def _try_to_export_over(self, link: LinkInfo, cache_id: int) -> None:
        try:
            self._instance.export_cache(cache_id, link.link)
        except LLMException:
            if self._is_alive(link):
                raise

    def _is_alive(self, link: LinkInfo) -> bool:
        try:
            return self._instance.link_status(link.link)[0]
        except LLMException:  # it has just been closed
            return False

    def _take_back(self, cache_id: int, handle: int, release: Callable[[], None] | None) -> None:
        """What ``_add`` did before it failed. A peer that is joining may know the cache: its memory waits."""
        self._native.paged_close(handle)
        if self._registry.get(cache_id) is not None:
            self._withdraw(cache_id)
            return
        if cache_id:
            self._instance.withdraw_cache(cache_id)
            self._instance.release_cache(cache_id)
        if release is not None:
            release()

    def _withdraw(self, cache_id: int) -> None:
        held = self._take_out(cache_id)
        if held is not None:
            self._links.withdraw(held)

    def _take_out(self, cache_id: int) -> HeldCache | None:
        held = self._registry.withdraw(cache_id)
        if held is not None:
            self._registry.keys.drop_cache(cache_id)
            self._native.paged_close(held.local.cache.handle)
            self._instance.withdraw_cache(cache_id)
        return held

    def _settle(self, asked: str) -> None:
        if not self._links.settle(self._options.sync_kv_timeout_ms / 1000):
            logger.warning("%s: not all linked peers have answered that they know", asked)

    def _settle_names(self, asked: str, cache: Cache, *, has_name: bool) -> None:
        """Once it is back, no peer finds an earlier cache by the name of the new one."""
        if has_name and cache.remote_accessible and self._registry.has_earlier_names(cache.cache_id):
            self._settle(asked)

    def _keys_changed(self, local: LocalCache) -> None:
        """Gives an allocated cache back when nothing refers to it any more, else tells the peers its keys."""
        cache_id = local.cache.cache_id
        if local.is_open or self._registry.keys.of_cache(cache_id):
            self._links.announce_keys(cache_id)
        else:
            self._withdraw(cache_id)

    def _on_taken(self, cache_id: int, batch_index: int, tensors: range) -> None:
        with self._changing:
            local = self._registry.get(cache_id)
            if local is not None and self._registry.keys.taken(
                cache_id, batch_index, tensors, len(local.tensor_bytes)
            ):
                self._keys_changed(local)

    def _find(self, asked: str, name: str, cache: object, *, is_blocks: bool) -> LocalCache:
        """The registered cache behind a handle, of that kind, for a transfer."""
        found = checks.instance(f"{asked}: {name}", cache, Cache)
        self._require_usable(asked)
        if found.is_blocks_cache != is_blocks:
            kinds = ("contiguous cache", "blocks cache")
            raise refusal(
                "other_kind_of_cache",
                asked=asked,
                cache=name,
                found=kinds[not is_blocks],
                wanted=kinds[is_blocks],
            )
        local = self._registry.find(found)
        if local is None:
            raise refusal("cache_not_registered", asked=asked, name=name, value=found.cache_id)
        return local

    def _find_reachable(self, asked: str, name: str, cache: object, *, is_blocks: bool) -> LocalCache:
        local = self._find(asked, name, cache, is_blocks=is_blocks)
        if self._options.remote_accessible and not local.cache.remote_accessible:
            is_default = local.cache.cache_desc.placement == Placement.HOST
            raise refusal(
                "cache_not_reachable",
                asked=asked,
                name=name,
                value=local.cache.cache_id,
                why=", the default of host memory" if is_default else "",
            )
        return local
