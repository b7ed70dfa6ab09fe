"""What exists of an instance between ``init`` and ``finalize``."""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import TYPE_CHECKING

from . import _native, emulator, late_copies, transports
from .checks import as_int64
from .comm_resource import VISIBLE_DEVICES
from .data_type import Placement
from .each_end_links import EachEndLinks
from .identity import own_identity
from .link import LinkService
from .link_keys import derive_keys
from .memory_pool import MemoryPool
from .messages import refusal
from .options import Options, read_options
from .registry import CacheRegistry, forget_the_gone, leave_over, left_over_caches

if TYPE_CHECKING:
    from . import _C

logger = logging.getLogger("torch_llm_datadist")


class Running:
    """The native instance, its links and its caches.

    Args:
        options: of ``LLMDataDist.init``, not checked yet.
    """

    def __init__(self, cluster_id: int, options: object) -> None:
        self.options = read_options(options)
        native = self.native = _native.load()
        native.require_not_forked("init")
        from .cache_manager import CacheManager

        device = self.options.device
        _bring_up(device)
        left_over_caches()
        pools = _make_pools(native, self.options)
        self.registry = CacheRegistry()
        self.instance: _C.Instance = native.Instance(
            device,
            as_int64(cluster_id),
            keep_alive_ms=self.options.keep_alive_ms,
            transfer_timeout_ms=self.options.sync_kv_timeout_ms,
            max_in_flight=self.options.max_in_flight,
            packed_staging_bytes=self.options.packed_staging_bytes,
            streams_per_link=self.options.streams_per_link,
            stream_budget=self.options.stream_budget,
            stream_idle_ms=self.options.stream_idle_ms,
            close_timeout_ms=self.options.close_timeout_ms,
            staging_limit=self.options.staging_limit,
            verifies=self.options.verify_blocks,
            engine_chunk_bytes=self.options.engine_chunk_bytes,
            engine_chunks=self.options.engine_chunks,
            listen_ip=self.options.listen[0] if self.options.listen is not None else "",
            hixl_options=self.options.hixl_options,
        )
        secret = self.options.link_secret
        identity = own_identity(
            cluster_id,
            device,
            remote_accessible=self.options.remote_accessible,
            cann=_cann_version(native),
            authenticated=secret is not None,
            transports=transports.offered(
                native, self.options.transport, _why_no_fabric(native, self.options)
            ),
            super_pod=native.super_pod_of(device),
        )
        keys = derive_keys(secret) if secret is not None else None
        self.links = LinkService(self.instance, native.Segment, identity, self.registry, keys)
        self.cache_manager = CacheManager(
            native, self.instance, self.links, self.registry, self.options, pools
        )
        self.each_end_links = EachEndLinks() if self.options.is_hixl else None
        self.listen_port: int | None = None
        try:
            if self.options.listen is not None:
                self.listen_port = self.links.listen(*self.options.listen)
        except BaseException:
            self.close(0.0)
            raise

    def is_forked(self) -> bool:
        """This is a copy in the child of a fork: its threads are the parent's."""
        return bool(self.native.is_forked_child())

    def close(self, timeout_s: float) -> None:
        self.cache_manager.close(timeout_s / 2)
        self.links.close(timeout_s)
        held = self.registry.held()
        for cache in held:
            cache.is_announced = True  # nobody is left who could announce it
        forget_the_gone(held)
        held = [cache for cache in held if not cache.is_free()]
        if held:
            leave_over(held)
            logger.warning(
                "finalize: the memory of %d caches stays held, because peers may still write it: %s",
                len(held),
                "; ".join(sorted({name for cache in held for name in cache.info().waiting_for})),
            )
        self.instance.close()
        late_copies.let_go()


def _bring_up(device: int) -> None:
    """torch_npu starts the runtime and the device at their first use; the core needs both before."""
    import torch
    import torch_npu

    count = torch_npu.npu.device_count()
    if device >= count:
        visible = os.environ.get(VISIBLE_DEVICES)
        raise refusal(
            "no_such_device",
            value=device,
            count=count,
            range=f", 0 to {count - 1}" if count else "",
            why=f", since {VISIBLE_DEVICES} is {visible!r}" if visible is not None else "",
        )
    torch.empty(1, device=f"npu:{device}")


def _why_no_fabric(native: ModuleType, options: Options) -> str:
    if options.mem_pool is None:
        return "the instance has no mem_pool_cfg, whose memory alone can be exported by fabric handles"
    return str(native.why_no_fabric(options.device))


def _make_pools(native: ModuleType, options: Options) -> dict[Placement, MemoryPool]:
    import torch

    pools = {}
    if options.mem_pool is not None:
        size = options.mem_pool.memory_size
        try:
            if native.why_no_fabric(options.device):
                memory = torch.empty(size, dtype=torch.uint8, device=f"npu:{options.device}")
            else:
                memory = native.allocate_fabric(options.device, size)
        except RuntimeError as error:  # torch.OutOfMemoryError, or the runtime's refusal
            raise refusal("no_memory_for_pool", value=size, why=error) from None
        pools[Placement.DEVICE] = MemoryPool("mem_pool_cfg", options.mem_pool, memory)
    if options.host_mem_pool is not None:
        memory = native.allocate_shared_host(options.device, options.host_mem_pool.memory_size)
        pools[Placement.HOST] = MemoryPool("host_mem_pool_cfg", options.host_mem_pool, memory)
    return pools


def _cann_version(native: ModuleType) -> str:
    if emulator.is_enabled():
        return "emulated"
    version = getattr(native, "runtime_version", None)
    return str(version()) if version is not None else ""
