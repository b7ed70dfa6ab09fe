"""From the raw addresses of a ``TransferConfig`` to tensors of caches that the peer has announced."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .link_table import Link
from .messages import refusal
from .wire import CacheRecord


@dataclass(frozen=True)
class RemotePlace:
    """
    Attributes:
        cache: of the peer.
        tensor: index in it.
        entry: the batch entry, or block, at which the address begins.
    """

    cache: CacheRecord
    tensor: int
    entry: int


def locate(name: str, link: Link, addresses: Sequence[int], *, in_blocks: bool) -> list[RemotePlace]:
    """Where each address lies; every one begins an entry or a block of a cache of that kind.

    The sender trusts no address: what lies in no cache that the peer announced is refused.
    """
    starts = sorted(
        (
            (base, base + length_bytes, record.cache_id, tensor)
            for record in list(link.remote_caches.values())
            if record.is_blocks == in_blocks
            for tensor, (base, length_bytes) in enumerate(
                zip(record.addresses, record.tensor_bytes, strict=False)
            )
        ),
        key=lambda span: span[0],
    )
    bases = [span[0] for span in starts]
    found = []
    for i, address in enumerate(addresses):
        # Caches may share memory; of several that hold the address the one that begins last is meant.
        at = bisect_right(bases, address) - 1
        while at >= 0 and starts[at][1] <= address:
            at -= 1
        kind = "blocks" if in_blocks else "contiguous"
        where = f"{name}: dst_addrs[{i}] = {address:#x}"
        if at < 0:
            raise refusal(
                "address_in_no_cache",
                value=where,
                kind=kind,
                cluster_id=link.cluster_id,
                peer=link.peer,
                count=len({span[2] for span in starts}),
            )
        base, _, cache_id, tensor = starts[at]
        record = link.remote_caches[cache_id]
        entry_bytes = record.tensor_bytes[tensor] // record.num_blocks
        if (address - base) % entry_bytes:
            raise refusal(
                "address_inside_an_entry",
                value=where,
                offset=address - base,
                tensor=tensor,
                cache=cache_id,
                each=entry_bytes,
                unit="blocks" if in_blocks else "batch entries",
            )
        found.append(RemotePlace(record, tensor, (address - base) // entry_bytes))
    return found


def first_layer_of(places: Sequence[RemotePlace], tensors_per_layer: int) -> int | None:
    """The layer of the one cache whose consecutive tensors these places are; None if they are not that."""
    first = places[0]
    if first.tensor % tensors_per_layer:
        return None
    is_one_run = all(
        place.cache is first.cache and place.tensor == first.tensor + i and place.entry == first.entry
        for i, place in enumerate(places)
    )
    return first.tensor // tensors_per_layer if is_one_run else None
