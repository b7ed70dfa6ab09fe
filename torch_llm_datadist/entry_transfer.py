"""What a push or pull of batch entries moves, and the peer's cache behind a key."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import checks
from .key_table import KeyName, only_name_of
from .keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .link_table import Link
from .messages import refusal
from .registry import LocalCache
from .wire import CacheRecord


@dataclass(frozen=True)
class EntryTransfer:
    """
    Attributes:
        dst_blocks: CPU int64; the entry goes to these blocks, slice by slice. Empty: to an entry.
        cache_id: of the peer's cache.
        src_batch, dst_batch: the entries, where the cache is contiguous.
        size: bytes of each tensor; -1: the whole local entry.
        src_layer, dst_layer, num_layers, tensors_per_layer: as in a ``BlockTransfer``.
    """

    dst_blocks: torch.Tensor
    cache_id: int
    src_batch: int
    dst_batch: int
    size: int
    src_layer: int
    dst_layer: int
    num_layers: int
    tensors_per_layer: int


Key = CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey


def read_entry(asked: str, name: str, value: object, local: LocalCache) -> int:
    """A batch entry of the local cache."""
    entry = checks.uint32(f"{asked}: {name}", value)
    if entry >= local.cache.num_entries:
        cache, count = "the local cache", local.cache.num_entries
        raise refusal("entry_outside", asked=asked, name=name, value=entry, cache=cache, count=count)
    return entry


def find_remote(asked: str, link: Link, key: Key) -> tuple[CacheRecord, int] | None:
    """The cache, as its holder announced it, and the batch entry that the key names."""
    if isinstance(key, BlocksCacheKey):
        record = link.remote_cache(key.model_id)
        return (record, 0) if record else None
    if isinstance(key, CacheKeyByIdAndIndex):
        record = link.remote_caches.get(key.cache_id)
        return (record, key.batch_index) if record else None
    name = only_name_of(asked, key)
    for record in list(link.remote_caches.values()):
        for known in record.keys:
            if KeyName(known.is_prefix, known.number, known.model_id) == name:
                return record, known.batch_index
    return None


def no_such_cache(asked: str, link: Link, key: Key) -> Exception:
    caches = list(link.remote_caches.values())
    if isinstance(key, BlocksCacheKey):
        what = f"blocks cache with model_id {key.model_id}"
        there = sorted({str(c.model_id) for c in caches if c.is_blocks and c.model_id is not None})
    elif isinstance(key, CacheKeyByIdAndIndex):
        what = f"cache with cache_id {key.cache_id}"
        there = [str(c.cache_id) for c in caches]
    else:
        what = f"cache for {only_name_of(asked, key)}; the key was never there, or was removed or pulled"
        there = [str(KeyName(k.is_prefix, k.number, k.model_id)) for c in caches for k in c.keys][:10]
    return refusal(
        "no_such_remote_cache",
        asked=asked,
        cluster_id=link.cluster_id,
        peer=link.peer,
        value=what,
        known=", ".join(there) or "none",
    )
