"""The caches that an instance has registered, and those it has withdrawn but must still hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import late_copies, wire
from .cache import Cache
from .key_table import KeyTable
from .messages import refusal
from .peer import Peer

if TYPE_CHECKING:
    from . import _C

logger = logging.getLogger("torch_llm_datadist")


@dataclass(eq=False)
class LocalCache:
    """A cache of this instance that peers may reach.

    Attributes:
        model_id: of its ``BlocksCacheKey``; None without one.
        tensor_bytes: of each tensor.
        release: gives its memory back to the pool it came from; None for memory of the caller.
        is_open: its handle is good; a deallocated cache lives on as long as it has keys.
    """

    cache: Cache
    model_id: int | None
    tensor_bytes: Sequence[int]
    release: Callable[[], None] | None = None
    is_open: bool = True

    @property
    def is_owned(self) -> bool:
        return self.release is not None


@dataclass(frozen=True)
class HeldCacheInfo:
    """A cache that was unregistered and whose memory is still held.

    Attributes:
        length_bytes: of all its tensors.
        waiting_for: the peers that may still touch it, in words.
    """

    cache_id: int
    length_bytes: int
    waiting_for: tuple[str, ...]


@dataclass(eq=False)
class HeldCache:
    """Keeps the tensors of a withdrawn cache alive until nobody can touch them any more.

    Attributes:
        waiting_for: peers that were announced the cache and have not confirmed that they dropped it.
        is_announced: ``waiting_for`` is complete; the control thread fills it in.
    """

    local: LocalCache
    waiting_for: list[Peer] = field(default_factory=list)
    is_announced: bool = False

    def is_free(self) -> bool:
        """No peer can touch it any more, as ``forget_the_gone`` has found."""
        return self.is_announced and not self.waiting_for

    def may_be_known(self) -> bool:
        """A peer may not have confirmed yet that it dropped the cache. For any thread: changes nothing."""
        return not self.is_announced or not all(peer.cannot_write() for peer in self.waiting_for)

    def info(self) -> HeldCacheInfo:
        return HeldCacheInfo(
            self.local.cache.cache_id,
            sum(self.local.tensor_bytes),
            tuple(str(peer) for peer in self.waiting_for),
        )


def forget_the_gone(held: Iterable[HeldCache]) -> None:
    """They wait no longer for peers that cannot touch anything any more.

    Each peer is asked once, which takes a look at its process: dozens of them may know hundreds of caches.
    """
    all_held = list(held)
    gone = {peer for peer in {peer for each in all_held for peer in each.waiting_for} if peer.cannot_write()}
    for each in all_held if gone else ():
        each.waiting_for = [peer for peer in each.waiting_for if peer not in gone]


def nobody_cares(cache_id: int, batch_index: int, tensors: range) -> None:
    """What happens to a pull when there is no ``CacheManager`` (any more)."""


class CacheRegistry:
    """Thread-safe."""

    def __init__(self) -> None:
        self.keys = KeyTable()
        # A peer pulled (cache_id, batch_index, tensors); called on the control thread.
        self.on_taken: Callable[[int, int, range], None] = nobody_cares
        self._lock = threading.Lock()
        self._caches: dict[int, LocalCache] = {}
        self._held: dict[int, HeldCache] = {}

    def add(self, local: LocalCache) -> None:
        with self._lock:
            self._caches[local.cache.cache_id] = local

    def find(self, cache: Cache) -> LocalCache | None:
        with self._lock:
            local = self._caches.get(cache.cache_id)
        return local if local is not None and local.cache is cache and local.is_open else None

    def get(self, cache_id: int) -> LocalCache | None:
        with self._lock:
            return self._caches.get(cache_id)

    def withdraw(self, cache_id: int) -> HeldCache | None:
        """Moves a cache from the registered ones to the held ones; None if it is not registered."""
        with self._lock:
            local = self._caches.pop(cache_id, None)
            if local is None:
                return None
            held = HeldCache(local)
            self._held[cache_id] = held
            return held

    def reachable(self) -> list[LocalCache]:
        """The caches to announce to peers, in the order of registration."""
        with self._lock:
            return [local for local in self._caches.values() if local.cache.remote_accessible]

    def require_room(self, asked: str, tensors: int, keys: int) -> None:
        """Raises where peers would end their links over one more cache with so many tensors and keys."""
        known = self.reachable()
        size = wire.foreseen_bytes(tensors, keys + len(self.keys))
        size += sum(wire.foreseen_bytes(len(local.tensor_bytes), 0) for local in known)
        for what, value, high in (
            ("caches", len(known) + 1, wire.MAX_ANNOUNCED_CACHES),
            ("bytes about the caches", size, wire.MAX_ANNOUNCED_BYTES),
        ):
            if value > high:
                raise refusal("too_many_caches", asked=asked, value=value, what=what, high=high)

    def has_earlier_names(self, cache_id: int) -> bool:
        """A peer may know another cache by a name of this one: it has the same, or was withdrawn just now."""
        with self._lock:
            own = self._caches.get(cache_id)
            others = [local for local in self._caches.values() if local is not own]
            held = list(self._held.values())
        model_id = None if own is None else own.model_id
        if model_id is not None and any(other.model_id == model_id for other in others):
            return True
        return any(each.may_be_known() for each in held)

    def ids(self) -> list[int]:
        with self._lock:
            return list(self._caches)

    def held(self) -> list[HeldCache]:
        with self._lock:
            return list(self._held.values())

    def held_cache(self, cache_id: int) -> HeldCache | None:
        with self._lock:
            return self._held.get(cache_id)

    def release_free(self, native: _C.Instance, looked_at: Iterable[HeldCache]) -> list[HeldCache]:
        """Hands back the memory that no peer and nothing of this instance can touch; returns those that
        stay held.
        """
        all_held = list(looked_at)
        forget_the_gone(all_held)
        return [held for held in all_held if not self._release_if_free(native, held)]

    def _release_if_free(self, native: _C.Instance, held: HeldCache) -> bool:
        cache_id = held.local.cache.cache_id
        if self.held_cache(cache_id) is not held:
            return True
        if not held.is_free() or native.is_cache_in_use(cache_id):
            return False
        if late_copies.touch(held.local.cache):
            return False
        native.release_cache(cache_id)
        if held.local.release is not None:
            held.local.release()
        with self._lock:
            del self._held[cache_id]
        return True


# Memory that a peer may still write must not go back to the allocator when its instance ends; it lies here
# until the peer is gone. A process that exits takes it along.
_left_over: list[HeldCache] = []
_left_over_lock = threading.Lock()


def leave_over(held: list[HeldCache]) -> None:
    with _left_over_lock:
        _left_over.extend(held)


def left_over_caches() -> list[HeldCacheInfo]:
    """What ended instances of this process still hold; releases what has become free."""
    with _left_over_lock:
        forget_the_gone(_left_over)
        _left_over[:] = [held for held in _left_over if not held.is_free()]
        return [held.info() for held in _left_over]
