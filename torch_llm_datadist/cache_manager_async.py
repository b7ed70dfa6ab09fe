"""``CacheManager.transfer_cache_async``: from its arguments to one push by layers per config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from . import checks, stream_synchronizer, transfer_request
from .arrivals import Tag, read_tag
from .binding import Task
from .cache import Cache
from .cache_task import CacheTask
from .entry_transfer import Key
from .errors import ParamInvalidError
from .layer_push import LayerPush
from .layer_transfer import LayerSend, LayerTransfers, Pieces
from .link import LinkService
from .link_table import Link
from .options import Options
from .registry import LocalCache
from .stream_synchronizer import StreamLayerSynchronizer
from .transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from .transfer_request import TransferRequest, read_transfer
from .wire import CacheRecord

logger = logging.getLogger("torch_llm_datadist")


def layer_transfers(native: ModuleType, links: LinkService, options: Options) -> LayerTransfers:
    return LayerTransfers(
        native,
        options.device,
        options.sync_kv_timeout_ms,
        f"llm_datadist-{links.identity.cluster_id}-transfer",
        options.transfer_workers,
    )


class AsyncTransfers:
    """A part of ``CacheManager``, which has the rest."""

    _native: ModuleType
    _links: LinkService
    _options: Options
    _layer_transfers: LayerTransfers

    def _find_reachable(self, asked: str, name: str, cache: object, *, is_blocks: bool) -> LocalCache:
        raise NotImplementedError

    def _remote(self, asked: str, link: Link, key: Key) -> tuple[CacheRecord, int]:
        raise NotImplementedError

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

    def wait_arrival(self, cluster_id: int, tag: Tag, timeout: int = 3000) -> None:
        """Blocks until a push with that tag has landed here; its bytes are there for every stream.

        A tag is taken by the wait that returns, or raises what the push ended with, so it can be used again.
        It may have arrived before the call. Not in the original, whose receivers are not told.

        Args:
            cluster_id: uint64, the peer that pushes.
            tag: str of 1 to 256 characters or uint64, as given to ``push_blocks`` or ``push_cache``.
            timeout: int32, > 0, in milliseconds.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_TIMEOUT`` when it has not come in time, and may still; ``LLM_NOT_YET_LINK``
                when it has not come and there is no link by which it could; the code of a push that failed.

        >>> prefill.cache_manager.push_blocks(BlocksCacheKey(2), source, [0], [1], tag="request 7")
        >>> decode.cache_manager.wait_arrival(1, "request 7", timeout=10_000)  # at the receiver
        """
        asked = "wait_arrival"
        cluster = checks.uint64(f"{asked}: cluster_id", cluster_id)
        wanted = read_tag(asked, tag)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        self._links.arrivals.wait(cluster, wanted, timeout_ms / 1000)

    def _layer_send(self, request: TransferRequest, index: int) -> LayerSend:
        config = request.configs[index]
        name = f"transfer_configs[{index}] (cluster {config.dst_cluster_id})"
        return LayerSend(name, request.layers[index], partial(self._prepare_layers, name, request, index))

    def _prepare_layers(self, name: str, request: TransferRequest, index: int) -> Task | Pieces:
        """On a worker: takes one config's push at its link."""
        config = request.configs[index]
        asked = transfer_request.ASKED
        push = LayerPush(self._native, f"{asked}: {name}", request, config, request.layers[index])
        with self._links.table.using(config.dst_cluster_id, asked) as link:
            if isinstance(config, TransferWithCacheKeyConfig):
                record, _ = self._remote(asked, link, config.cache_key)
                return push.by_key(link, record)
            try:
                return push.by_addresses(link)
            except ParamInvalidError:  # perhaps the peer has not said yet what it registered just now
                self._links.sync(config.dst_cluster_id, self._options.sync_kv_timeout_ms / 1000)
                return push.by_addresses(link)
