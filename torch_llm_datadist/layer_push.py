"""One config of ``transfer_cache_async`` at its link: which native push serves it."""

from __future__ import annotations

import logging
from types import ModuleType

import torch

from .address_map import RemotePlace, first_layer_of, locate
from .binding import Task
from .blocks_in_doubt import BlocksInDoubt, Doubts
from .cache import Cache
from .checks import as_int64
from .keys import BlocksCacheKey
from .layer_transfer import Piece, Pieces
from .link_table import Link
from .messages import refusal
from .transfer import TransferConfig, TransferWithCacheKeyConfig
from .transfer_request import TENSORS_PER_LAYER, TransferRequest
from .wire import CacheRecord

logger = logging.getLogger("torch_llm_datadist")


class LayerPush:
    """
    Args:
        name: for messages: "transfer_cache_async: transfer_configs[0] (cluster 2)".
        layers: of the source.
        doubts: knows the tasks, and what they may still write when they fail.
    """

    def __init__(
        self,
        native: ModuleType,
        name: str,
        request: TransferRequest,
        config: TransferConfig | TransferWithCacheKeyConfig,
        layers: range,
        doubts: Doubts,
    ) -> None:
        self._native = native
        self._doubts = doubts
        self._name = name
        self._request = request
        self._cache: Cache = request.cache
        self._config = config
        self._layers = layers
        self._src, self._dst = self._blocks()

    def _blocks(self) -> tuple[list[int], list[int]]:
        src, dst = self._request.src_blocks, self._request.dst_blocks
        if self._cache.is_blocks_cache and not dst:
            logger.warning("%s: no block indices, so only block 0 is sent", self._name)
            return [0], [0]
        if self._cache.is_blocks_cache and not src:
            raise refusal("src_blocks_are_missing", asked=self._name, value="a blocks cache")
        if src and not self._cache.is_blocks_cache:
            raise refusal("src_blocks_are_too_many", asked=self._name, value="a contiguous cache")
        return src, dst

    def check_block_bytes(self, record: CacheRecord, first_tensor: int) -> None:
        """``dst_block_memory_size`` is that of the destination, and blocks go to blocks of their size."""
        wanted = self._request.dst_block_bytes
        if not wanted:
            return
        last = first_tensor + len(self._layers) * TENSORS_PER_LAYER
        for tensor in range(first_tensor, min(last, len(record.tensor_bytes))):
            found = record.tensor_bytes[tensor] // record.num_blocks
            if found != wanted:
                raise refusal(
                    "other_block_bytes_than_said",
                    asked=self._name,
                    value=wanted,
                    cache=record.cache_id,
                    found=found,
                )

    def by_key(self, link: Link, record: CacheRecord) -> Task:
        config = self._config
        assert isinstance(config, TransferWithCacheKeyConfig)
        key = config.cache_key
        start = config.dst_layer_range.start
        self.check_block_bytes(record, start * TENSORS_PER_LAYER)
        if isinstance(key, BlocksCacheKey):
            return self._prepare(
                link, self._layers, start, TENSORS_PER_LAYER, record.cache_id, model_id=key.model_id
            )
        if self._dst and key.batch_index:
            raise refusal(
                "batch_index_with_blocks",
                asked=self._name,
                name="batch_index of the key",
                value=key.batch_index,
                what="blocks",
            )
        return self._prepare(
            link, self._layers, start, TENSORS_PER_LAYER, key.cache_id, entry=key.batch_index
        )

    def by_addresses(self, link: Link) -> Task | Pieces:
        config = self._config
        assert isinstance(config, TransferConfig)
        places = locate(self._name, link, config.dst_addrs, in_blocks=bool(self._dst))
        for place in places:
            self.check_block_bytes(place.cache, place.tensor)
        start = first_layer_of(places, TENSORS_PER_LAYER)
        if start is not None:
            where = places[0]
            return self._prepare(
                link,
                self._layers,
                start,
                TENSORS_PER_LAYER,
                where.cache.cache_id,
                entry=where.entry,
            )

        def pieces(layer: int) -> list[Piece]:
            """The tensors of one layer, each where it belongs."""
            at = (layer - self._layers.start) * TENSORS_PER_LAYER
            tensors = range(layer * TENSORS_PER_LAYER, (layer + 1) * TENSORS_PER_LAYER)
            return [
                Piece(tensor, self._piece(link, tensor, place))
                for tensor, place in zip(tensors, places[at : at + TENSORS_PER_LAYER], strict=True)
            ]

        return pieces

    def _piece(self, link: Link, tensor: int, place: RemotePlace) -> Task:
        return self._prepare(
            link,
            range(tensor, tensor + 1),
            place.tensor,
            1,
            place.cache.cache_id,
            entry=place.entry,
        )

    def _prepare(
        self,
        link: Link,
        layers: range,
        dst_layer: int,
        tensors_per_layer: int,
        cache_id: int,
        *,
        model_id: int | None = None,
        entry: int = 0,
    ) -> Task:
        """
        Args:
            model_id: the native call finds the destination by it, where there is one, else by its id.
            entry: where the destination begins: a batch entry, or the block that counts as the first.
        """
        dst = [block + entry for block in self._dst]
        number = self._native.prepare_push(
            link.handle,
            as_int64(model_id or 0),
            self._cache.tensors,
            torch.tensor(self._src, dtype=torch.int64),
            torch.tensor(dst, dtype=torch.int64),
            layers.start,
            dst_layer,
            len(layers),
            tensors_per_layer,
            0,
            cache_id=cache_id if model_id is None else None,
            src_batch=self._config.src_batch_index,
            dst_batch=0 if dst else entry,
            has_ticket=False,
        )
        written = BlocksInDoubt(
            cache_id, tuple(dst) or (entry,), link.cluster_id, link.handle, None, "", is_at_peer=True
        )
        return self._doubts.task(number, written)
