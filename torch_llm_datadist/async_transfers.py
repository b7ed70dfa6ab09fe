"""``CacheManager.transfer_cache_async``: from its arguments to one push by layers per config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from . import stream_synchronizer, transfer_request
from .binding import Task
from .cache import Cache
from .cache_task import CacheTask
from .data_type import Placement
from .doubtful_blocks import DoubtfulBlocks
from .errors import ParamInvalidError
from .layer_push import LayerPush
from .layer_transfer import LayerSend, LayerTransfers, Pieces
from .link import LinkService
from .memory_pool import MemoryPool
from .options import Options
from .peer_caches import PeerCaches
from .registry import CacheRegistry
from .stream_synchronizer import StreamLayerSynchronizer
from .transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from .transfer_request import TransferRequest, read_transfer

if TYPE_CHECKING:
    from . import _C


class AsyncTransfers(DoubtfulBlocks, PeerCaches):
    def __init__(
        self,
        native: ModuleType,
        instance: _C.Instance,
        links: LinkService,
        registry: CacheRegistry,
        options: Options,
        pools: dict[Placement, MemoryPool],
    ) -> None:
        super().__init__(native, instance, links, registry, options, pools)
        self._layer_transfers = LayerTransfers(
            native,
            options.device,
            options.sync_kv_timeout_ms,
            f"llm_datadist-{links.identity.cluster_id}-transfer",
            options.transfer_workers,
        )

    def close(self, timeout_s: float = 0.0) -> None:
        """Ends layer transfers, withdraws every cache; calls fail from here on. For ``LLMDataDist.finalize``.
        The child of a fork leaves them to its parent."""
        if self._native.is_forked_child():
            return
        self._is_closed = True
        self._layer_transfers.close(timeout_s)
        super().close()

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig | TransferWithCacheKeyConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Sends a cache to one or several peers layer by layer, each layer as soon as it is ready; returns at
        once.

        A worker thread of the instance calls ``layer_synchronizer`` once for each layer that a config
        carries, in order; when it returns True, the layer's two tensors leave for every config that carries
        the layer. The configs do not wait for one another, and one that fails stops neither the synchronizer
        nor the others. A receiver is not told.

        Args:
            src_cache: a cache of this instance in device memory with an even number of tensors, K and V of
                each layer: of blocks or contiguous.
            layer_synchronizer: says when a layer may be sent. With a ``StreamLayerSynchronizer`` the forward
                says it on its stream: there is no worker thread, and the deadline is the synchronizer's.
            transfer_configs: list or tuple; ``TransferWithCacheKeyConfig`` in remote-accessible mode,
                ``TransferConfig`` otherwise. An empty one is a success.
            src_block_indices: blocks of a paged source. Without any, a paged source sends its block 0, as
                with the original; a warning is logged.
            dst_block_indices: blocks of a paged destination: as many as of the source; or those that a batch
                entry of a contiguous source is cut into, slice by slice. Without them the entry goes to one.
            dst_block_memory_size: bytes of one destination block, required for a contiguous source; None or
                0: as the source's blocks.

        Returns:
            The handle. Whatever goes wrong from here on is in its results: ``LLM_NOT_YET_LINK`` without a
            link, ``LLM_KV_CACHE_NOT_EXIST`` for a destination that is not there, ``LLM_PARAM_INVALID`` where
            the two ends do not fit or the synchronizer returned a falsy value, ``LLM_FAILED`` when it raised,
            ``LLM_TIMEOUT`` when the layers took longer than ``sync_kv_timeout`` each from when they were
            ready, ``LLM_ENGINE_FINALIZED`` when the instance was finalized meanwhile.

        Raises:
            TypeError, ValueError, LLMException: bad arguments; nothing was begun.

        Source: seed 001 transfer_cache_async.
        """
        request = read_transfer(
            src_cache,
            layer_synchronizer,
            transfer_configs,
            src_block_indices,
            dst_block_indices,
            dst_block_memory_size,
            remote_accessible=self._options.remote_accessible,
        )
        is_blocks = request.cache.is_blocks_cache
        self._find_reachable(transfer_request.ASKED, "src_cache", src_cache, is_blocks=is_blocks)
        wanted = [self._layer_send(request, i) for i in range(len(request.configs))]
        if isinstance(request.synchronizer, StreamLayerSynchronizer):
            return stream_synchronizer.begin(
                request.synchronizer, [each.name for each in wanted], [each.prepare for each in wanted]
            )
        return self._layer_transfers.begin(request.synchronizer, wanted)

    def _layer_send(self, request: TransferRequest, index: int) -> LayerSend:
        config = request.configs[index]
        name = f"transfer_configs[{index}] (cluster {config.dst_cluster_id})"
        return LayerSend(name, request.layers[index], partial(self._prepare_layers, name, request, index))

    def _prepare_layers(self, name: str, request: TransferRequest, index: int) -> Task | Pieces:
        """On a worker: takes one config's push at its link."""
        config = request.configs[index]
        asked = transfer_request.ASKED
        layers = request.layers[index]
        push = LayerPush(self._native, f"{asked}: {name}", request, config, layers, self._doubts)
        with self._links.table.using(config.dst_cluster_id, asked) as link:
            if isinstance(config, TransferWithCacheKeyConfig):
                record, _ = self._remote(asked, link, config.cache_key)
                return push.by_key(link, record)
            try:
                return push.by_addresses(link)
            except ParamInvalidError:  # perhaps the peer has not said yet what it registered just now
                self._links.sync(config.dst_cluster_id, self._options.sync_kv_timeout_ms / 1000)
                return push.by_addresses(link)
