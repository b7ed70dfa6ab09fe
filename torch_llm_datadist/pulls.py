"""The part of ``CacheManager`` that pulls."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from . import checks, ops
from .block_transfer import (
    BlockTransfer,
    check_blocks_inside,
    check_remote_count,
    read_block_list,
    read_blocks,
    read_pull_layers,
)
from .cache import Cache
from .data_type import Placement
from .entry_transfer import EntryTransfer, Key, read_entry
from .key_table import only_name_of
from .keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .link_table import Link
from .messages import refusal
from .peer_caches import PeerCaches
from .publications import Publications
from .registry import LocalCache
from .wire import CacheRecord, Taken

logger = logging.getLogger("torch_llm_datadist")

_NO_BLOCKS = torch.empty(0, dtype=torch.int64)


class Pulls(Publications, PeerCaches):
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
        ticket: int | None = None,
    ) -> None:
        """Copies a batch entry of a peer's contiguous cache into an entry of a local one, in every tensor.

        The copies start when all earlier work of the current stream is done; the call returns when the bytes
        are here. With ``ticket`` they also wait until the peer's layers are ready; without it the caller
        makes sure that the peer has written them. While
        ``enable_remote_cache_accessible`` is off, a pull from a cache that its holder allocated removes the
        key of that entry there.

        Args:
            cache_key: the peer's cluster_id, and either the cache_id and the entry, or (while
                ``enable_remote_cache_accessible`` is off) a req_id or a prefix_id.
            cache: a contiguous cache of this instance.
            batch_index: uint32, the entry here.
            size: int64, bytes of each tensor from the start of the entry; -1 is the whole local entry.
            src_layer_range, dst_layer_range, tensor_num_per_layer, ticket: as ``pull_blocks``.

        Raises: as ``pull_blocks``; ``LLM_KV_CACHE_NOT_EXIST`` also for a key that was pulled before.

        Source: manual page pull_cache.

        >>> key = llm_datadist.CacheKeyByIdAndIndex(2, theirs.cache_id, batch_index=1)
        >>> prefill.cache_manager.pull_cache(key, ours, batch_index=0)
        """
        asked = "pull_cache"
        kinds = (
            (CacheKeyByIdAndIndex,) if self._options.remote_accessible else (CacheKey, CacheKeyByIdAndIndex)
        )
        if not isinstance(cache_key, kinds):
            raise refusal(
                "bad_type",
                name=f"{asked}: cache_key",
                value=f"a {type(cache_key).__name__}",
                expected=f"a {' or '.join(kind.__name__ for kind in kinds)}"
                + (" (enable_remote_cache_accessible is on)" if self._options.remote_accessible else ""),
            )
        _check_one_id(asked, cache_key)
        local = self._find_reachable(asked, "cache", cache, is_blocks=False)
        entry = read_entry(asked, "batch_index", batch_index, local)
        length = _read_size(asked, size, local)
        published = _read_ticket(asked, ticket)
        src_layers, dst_layers, per_layer = read_pull_layers(
            asked, len(local.tensor_bytes), src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        self._refuse_own(asked, cache_key.cluster_id)
        with self._links.table.using(cache_key.cluster_id, asked) as link:
            remote, remote_entry, layers = self._source(
                asked, link, cache_key, src_layers, dst_layers, per_layer
            )
            transfer = EntryTransfer(_NO_BLOCKS, remote.cache_id, remote_entry, entry, length, *layers)
            doubt = self._unfinished(link, cache.cache_id, [entry], is_at_peer=False)
            self._call.move_entry(asked, ops.pull_cache, cache, transfer, link, doubt, published)
            self._took(link, remote, transfer)

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
        ticket: int | None = None,
    ) -> None:
        """Copies blocks of a peer's cache into local blocks: ``src_blocks[i]`` to ``dst_blocks[i]``, in every
        tensor.

        The copies start when all earlier work of the current stream is done; the call returns when the bytes
        are here. With ``ticket`` they also wait until the peer's layers are ready, and the peer is told when
        they have ended, so that it may use its blocks again. Without it the original's contract holds: the
        caller makes sure that the peer has written the blocks, and leaves them alone until the call returns.

        Args:
            src_cache_key: a ``BlocksCacheKey``: the peer's cluster_id and the model_id of its cache. Or a key
                of a batch entry, as for ``pull_cache``: then block ``dst_blocks[i]`` gets slice i of the
                entry, as long as a local block. The entry's last slice may be shorter than the block.
            dst_cache: a blocks cache of this instance.
            src_blocks, dst_blocks: lists or tuples of block indices, equally long; without ``src_blocks`` for
                the key of an entry.
            src_layer_range, dst_layer_range: ranges of layers with step 1, equally long. A range that is not
                given means all layers of the cache on its side.
            tensor_num_per_layer: tensors that make a layer; only matters with a range.
            ticket: of the peer's ``publish`` for this instance. Not in the original.

        Raises: as ``push_blocks``. ``LLM_PARAM_INVALID`` for a ticket that is used up, or is not for what is
            pulled; ``LLM_TIMEOUT`` when the peer's layers were not ready within ``sync_kv_timeout``, and
            ``LLM_LINK_BUSY`` when the link has no stream to wait for them: the ticket is used up by the
            first and still good after the second.

        Source: manual page pull_blocks.

        >>> decode.cache_manager.pull_blocks(BlocksCacheKey(1), target, src_blocks=[0], dst_blocks=[7])
        """
        asked = "pull_blocks"
        if isinstance(src_cache_key, (CacheKey, CacheKeyByIdAndIndex)):
            _check_one_id(asked, src_cache_key)
        else:
            checks.instance(f"{asked}: src_cache_key", src_cache_key, BlocksCacheKey)
        local = self._find_reachable(asked, "dst_cache", dst_cache, is_blocks=True)
        if src_blocks is None:
            raise refusal(
                "bad_type", name=f"{asked}: src_blocks", value="None", expected="a list or tuple of ints"
            )
        is_entry = not isinstance(src_cache_key, BlocksCacheKey)
        published = _read_ticket(asked, ticket)
        src, dst = _read_pull_blocks(asked, src_blocks, dst_blocks, local, is_entry)
        src_layers, dst_layers, per_layer = read_pull_layers(
            asked, len(local.tensor_bytes), src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        self._refuse_own(asked, src_cache_key.cluster_id)
        with self._links.table.using(src_cache_key.cluster_id, asked) as link:
            remote, remote_entry, layers = self._source(
                asked, link, src_cache_key, src_layers, dst_layers, per_layer
            )
            doubt = self._unfinished(link, dst_cache.cache_id, dst, is_at_peer=False)
            if isinstance(src_cache_key, BlocksCacheKey):
                blocks = BlockTransfer(src, dst, *layers)
                model_id = src_cache_key.model_id
                self._call.move_blocks(
                    asked, ops.pull_blocks, dst_cache, blocks, link, model_id, doubt, published
                )
                return
            self._check_layouts(asked, remote, local)
            entry = EntryTransfer(dst, remote.cache_id, remote_entry, 0, -1, *layers)
            self._call.move_entry(asked, ops.pull_cache, dst_cache, entry, link, doubt, published)
            self._took(link, remote, entry)

    def _source(
        self,
        asked: str,
        link: Link,
        key: Key,
        src_layers: range | None,
        dst_layers: range,
        per_layer: int,
    ) -> tuple[CacheRecord, int, tuple[int, int, int, int]]:
        """The peer's cache, its entry, and the layers: the first ones there and here, how many, tensors of
        each. Without a range all of the cache there are meant.
        """
        remote, remote_entry = self._remote(asked, link, key)
        if src_layers is None:
            check_remote_count(asked, link, len(remote.segments), dst_layers, per_layer)
        first = 0 if src_layers is None else src_layers.start
        return remote, remote_entry, (first, dst_layers.start, len(dst_layers), per_layer)

    def _check_layouts(self, asked: str, remote: CacheRecord, local: LocalCache) -> None:
        """2.8: a host entry goes to device blocks only where remote access is on."""
        is_on_device = local.cache.cache_desc.placement == Placement.DEVICE
        if remote.is_on_host and is_on_device and not self._options.remote_accessible:
            raise refusal("host_layouts_differ", asked=asked, value=remote.cache_id)

    def _took(self, link: Link, remote: CacheRecord, transfer: EntryTransfer) -> None:
        """Tells the holder of an allocated cache what was pulled, so that the key goes; see ``KeyTable``."""
        if self._options.remote_accessible or not remote.is_owned:
            return
        taken = Taken(
            remote.cache_id,
            transfer.src_batch,
            transfer.src_layer * transfer.tensors_per_layer,
            transfer.num_layers * transfer.tensors_per_layer,
        )
        if not self._links.taken(link.cluster_id, taken, self._options.sync_kv_timeout_ms / 1000):
            logger.warning(
                "the pull of batch entry %d of cache %d has ended, and %s has not answered that it knows",
                transfer.src_batch, remote.cache_id, link.peer,
            )  # fmt: skip


def _read_ticket(asked: str, ticket: object) -> dict[str, int]:
    """What the op takes for it: nothing, where there is none."""
    if ticket is None:
        return {}
    return {"ticket": checks.integer(f"{asked}: ticket", ticket, 1, 2**53 - 1)}


def _check_one_id(asked: str, key: CacheKey | CacheKeyByIdAndIndex) -> None:
    if isinstance(key, CacheKey):
        only_name_of(asked, key)


def _read_size(asked: str, value: object, local: LocalCache) -> int:
    size = checks.int64(f"{asked}: size", value)
    entry_bytes = min(local.tensor_bytes) // local.cache.num_entries
    if size != -1 and not 0 < size <= entry_bytes:
        raise refusal("size_out_of_range", asked=asked, value=size, high=entry_bytes)
    return size


def _read_pull_blocks(
    asked: str, src_blocks: object, dst_blocks: object, local: LocalCache, is_entry: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    num_blocks = local.cache.num_blocks
    if not is_entry:
        return read_blocks(asked, src_blocks, dst_blocks, local="dst_blocks", num_blocks=num_blocks)
    given = checks.integers(f"{asked}: src_blocks", src_blocks)
    if given:
        raise refusal("list_is_not_empty", asked=asked, list="src_blocks", value=given[0])
    dst = read_block_list(asked, "dst_blocks", dst_blocks)
    check_blocks_inside(asked, "dst_blocks", dst, num_blocks)
    return _NO_BLOCKS, torch.tensor(dst, dtype=torch.int64)
