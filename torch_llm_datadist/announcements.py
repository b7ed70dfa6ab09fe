"""Caches across links: told to peers, learned from peers, and withdrawn in two phases.

A withdrawn cache is dropped by each peer, which answers when none of its transfers touches it any more; only
then is the memory handed back. All of this runs on the control thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from . import _native, wire
from .errors import KvCacheNotExistError, LLMException
from .messages import refusal
from .peer import LinkState, Peer
from .registry import CacheRegistry, HeldCache, LocalCache

if TYPE_CHECKING:
    from . import _C

logger = logging.getLogger("torch_llm_datadist")

_DRAIN_POLL_S = 0.01
_HELD_POLL_S = 0.1
PRIVATE_HOST = 2  # kind of a segment: any peer reaches it by its address


def segment_record(segment: _C.Segment, peer: Peer) -> wire.SegmentRecord:
    is_in_this_process = peer.identity is not None and peer.identity.is_in_this_process()
    is_mapped = peer.transport in ("mapped", "fabric")
    shows_address = is_in_this_process or segment.kind == PRIVATE_HOST or not is_mapped
    return wire.SegmentRecord(
        segment.handle, segment.offset, segment.address if shows_address else 0, segment.kind
    )


def _admit(peer: Peer, record: wire.CacheRecord) -> int:
    """Raises where this end would have to keep too much of what the peer says; the bytes of the record."""
    count = len(peer.remote_caches) + (record.cache_id not in peer.remote_caches)
    size = wire.size_of(record)
    total = size + sum(peer.remote_bytes.values()) - peer.remote_bytes.get(record.cache_id, 0)
    for what, value, high in (
        ("caches", count, wire.MAX_ANNOUNCED_CACHES),
        ("bytes", total, wire.MAX_ANNOUNCED_BYTES),
    ):
        if value > high:
            raise refusal(
                "too_much_announced", peer=peer, cache_id=record.cache_id, value=value, what=what, high=high
            )
    return size


def _check_keys(peer: Peer, record: wire.CacheRecord, keys: Iterable[wire.KeyRecord]) -> None:
    for key in keys:
        if key.batch_index >= record.num_blocks:
            raise ValueError(
                f"{peer} announced a key of batch entry {key.batch_index} of cache {record.cache_id}, "
                f"which has {record.num_blocks} entries"
            )


class Announcements:
    """
    Args:
        make_segment: ``_C.Segment``.
    """

    def __init__(
        self,
        native: _C.Instance,
        make_segment: Callable[[bytes, int, int, int], _C.Segment],
        registry: CacheRegistry,
    ) -> None:
        self._native = native
        self._make_segment = make_segment
        self._registry = registry
        # Caches that peers have withdrawn and that transfers of ours may still touch.
        self._draining: list[tuple[Peer, int]] = []
        # Of ours, those that every peer has dropped. Hundreds may be held for dozens of peers, so all of them
        # are looked at now and then only.
        self._dropped: list[HeldCache] = []
        self._next_look_at_held = 0.0

    def segment(self, record: wire.SegmentRecord) -> _C.Segment:
        return self._make_segment(record.handle, record.offset, record.address, record.kind)

    # Ours, to a peer.

    def export_to(self, peer: Peer) -> list[wire.CacheRecord]:
        """The reachable caches, for the message that joins the peer; ``catch_up`` tells of those that do not
        fit into it."""
        records = []
        left = wire.MAX_JOINING_BYTES
        for local in self._registry.reachable():
            record = self._export(local, peer)
            if record is None:
                continue
            left -= wire.size_of(record)
            if left < 0:
                peer.announced.discard(record.cache_id)
                break
            records.append(record)
        return records

    def catch_up(self, peer: Peer) -> None:
        """Tells a peer that has just been linked what changed while it was joining, and what found no room in
        the message that joined it."""
        reachable = {local.cache.cache_id: local for local in self._registry.reachable()}
        for cache_id in sorted(peer.announced - reachable.keys()):
            peer.send(wire.Withdraw(cache_id))
        for cache_id in sorted(reachable.keys() & peer.announced):
            if reachable[cache_id].is_owned:
                self.announce_keys(cache_id, [peer])
        for cache_id in sorted(reachable.keys() - peer.announced):
            self.announce(reachable[cache_id], [peer])

    def announce(self, local: LocalCache, peers: Iterable[Peer]) -> None:
        for peer in peers:
            is_new = local.cache.cache_id not in peer.announced
            if peer.state == LinkState.LINKED and is_new and local.cache.remote_accessible:
                record = self._export(local, peer)
                if record is not None:
                    peer.send(wire.Announce(record))

    def announce_keys(self, cache_id: int, peers: Iterable[Peer]) -> None:
        keys = self._keys(cache_id)
        for peer in peers:
            if peer.state == LinkState.LINKED and cache_id in peer.announced:
                peer.send(wire.Keys(cache_id, keys))

    def withdraw(self, held: HeldCache, peers: Iterable[Peer]) -> None:
        self.hold([held], peers)
        for peer in held.waiting_for:
            if peer.is_open:
                peer.send(wire.Withdraw(held.local.cache.cache_id))

    def hold(self, all_held: Iterable[HeldCache], peers: Iterable[Peer]) -> None:
        """Until none of those who know it can touch it any more; nobody is asked to drop it."""
        writers = [peer for peer in peers if not peer.cannot_write()]
        for held in all_held:
            held.waiting_for += [peer for peer in writers if held.local.cache.cache_id in peer.announced]
            held.is_announced = True
            if not held.waiting_for:
                self._dropped.append(held)

    def on_withdrawn(self, peer: Peer, cache_id: int) -> None:
        peer.announced.discard(cache_id)
        held = self._registry.held_cache(cache_id)
        if held is not None and peer in held.waiting_for:
            held.waiting_for = [other for other in held.waiting_for if other is not peer]
            if not held.waiting_for:
                self._dropped.append(held)

    def _export(self, local: LocalCache, peer: Peer) -> wire.CacheRecord | None:
        """None for a cache that was unregistered meanwhile, or that this link cannot reach."""
        cache = local.cache
        try:
            segments = [segment_record(s, peer) for s in self._native.export_cache(cache.cache_id, peer.link)]
        except KvCacheNotExistError:
            return None
        except LLMException as error:
            if peer.transport != "fabric":
                raise
            logger.warning("cache %d cannot be reached by %s: %s", cache.cache_id, peer, error)
            return None
        peer.announced.add(cache.cache_id)
        return wire.CacheRecord(
            cache_id=cache.cache_id,
            model_id=local.model_id,
            is_blocks=cache.is_blocks_cache,
            num_blocks=cache.num_entries,
            tensor_bytes=list(local.tensor_bytes),
            is_owned=local.is_owned,
            receives=cache.receives,
            keys=self._keys(cache.cache_id),
            addresses=[] if peer.identity is None or peer.identity.remote_accessible else cache.tensor_addrs,
            segments=segments,
        )

    def _keys(self, cache_id: int) -> list[wire.KeyRecord]:
        return [wire.KeyRecord(*name, index) for name, index in self._registry.keys.of_cache(cache_id)]

    def on_taken(self, peer: Peer, message: wire.Taken) -> None:
        local = self._registry.get(message.cache_id)
        if local is None or message.cache_id not in peer.announced:
            return  # withdrawn meanwhile
        tensors = range(message.first_tensor, message.first_tensor + message.num_tensors)
        if message.batch_index >= local.cache.num_entries or tensors.stop > len(local.tensor_bytes):
            raise ValueError(
                f"{peer} says that it took tensors {tensors.start} to {tensors.stop - 1} of batch entry "
                f"{message.batch_index} of cache {message.cache_id}, which has "
                f"{len(local.tensor_bytes)} tensors and {local.cache.num_entries} entries"
            )
        self._registry.on_taken(message.cache_id, message.batch_index, tensors)

    # A peer's, to us.

    def learn(self, peer: Peer, record: wire.CacheRecord) -> None:
        if record.cache_id in peer.remote_caches:
            raise ValueError(f"{peer} announced cache {record.cache_id} twice")
        tensors, sizes, addresses = len(record.segments), len(record.tensor_bytes), len(record.addresses)
        if tensors != sizes or addresses not in (0, tensors):
            raise ValueError(
                f"{peer} announced cache {record.cache_id} with {tensors} segments, {sizes} sizes and "
                f"{addresses} addresses; one of each per tensor was expected, or no address"
            )
        _check_keys(peer, record, record.keys)
        size_bytes = _admit(peer, record)
        for size in record.tensor_bytes:
            if size % record.num_blocks:
                raise ValueError(
                    f"{peer} announced cache {record.cache_id} with a tensor of {size} bytes, which "
                    f"{record.num_blocks} blocks do not divide"
                )
        self._native.add_remote_cache(
            peer.link,
            record.cache_id,
            record.model_id,
            record.is_blocks,
            record.num_blocks,
            record.tensor_bytes,
            [self.segment(s) for s in record.segments],
            record.receives,
        )
        peer.remote_caches[record.cache_id] = record
        peer.remote_bytes[record.cache_id] = size_bytes

    def learn_staging(self, peer: Peer, message: wire.Staging) -> None:
        _native.load().learn_staging(peer.link, self.segment(message.memory), message.size_bytes)

    def learn_keys(self, peer: Peer, message: wire.Keys) -> None:
        record = peer.remote_caches.get(message.cache_id)
        if record is not None:
            _check_keys(peer, record, message.keys)
            changed = msgspec.structs.replace(record, keys=message.keys)
            peer.remote_bytes[message.cache_id] = _admit(peer, changed)
            peer.remote_caches[message.cache_id] = changed

    def on_withdraw(self, peer: Peer, cache_id: int) -> None:
        peer.remote_bytes.pop(cache_id, None)
        if peer.remote_caches.pop(cache_id, None) is not None:
            self._native.drop_remote_cache(peer.link, cache_id)
            self._draining.append((peer, cache_id))
        elif (peer, cache_id) not in self._draining:
            peer.send(wire.Withdrawn(cache_id))

    # Time.

    def tick(self) -> float | None:
        """Answers withdrawals that have ended, hands back memory; returns the seconds until the next look."""
        still_draining = []
        for peer, cache_id in self._draining:
            if not peer.is_open:
                continue  # its CLOSED message answers for all of its caches
            if self._native.is_remote_cache_in_use(peer.link, cache_id):
                still_draining.append((peer, cache_id))
            else:
                peer.send(wire.Withdrawn(cache_id))
        self._draining = still_draining
        self._dropped = self._registry.release_free(self._native, self._dropped)
        held = self._registry.held()
        now = time.monotonic()
        if held and now >= self._next_look_at_held:
            held = self._registry.release_free(self._native, held)
            self._next_look_at_held = now + _HELD_POLL_S
        if self._draining:
            return _DRAIN_POLL_S
        return self._next_look_at_held - now if held else None
