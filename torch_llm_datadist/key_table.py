"""Which key of this instance names which batch entry. A key that a peer pulled to its end is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .keys import INVALID_ID, CacheKey
from .messages import refusal


class KeyName(NamedTuple):
    """What a ``CacheKey`` is found by; request ids and prefix ids are apart, and so are models."""

    is_prefix: bool
    number: int
    model_id: int

    def __str__(self) -> str:
        return f"{'prefix_id' if self.is_prefix else 'req_id'} {self.number} of model_id {self.model_id}"


def names_of(key: CacheKey) -> list[KeyName]:
    """None for a placeholder."""
    ids = ((False, key.req_id), (True, key.prefix_id))
    return [KeyName(is_prefix, number, key.model_id) for is_prefix, number in ids if number != INVALID_ID]


def only_name_of(asked: str, key: CacheKey) -> KeyName:
    """The name in a key that is used to pull: exactly one of the two ids."""
    names = names_of(key)
    if len(names) != 1:
        raise refusal(
            "key_needs_one_id", asked=asked, value=repr(key), found="both" if names else "neither of"
        )
    return names[0]


@dataclass
class _Entry:
    cache_id: int
    batch_index: int
    is_removed_by_pulls: bool
    pulled: set[int] = field(default_factory=set)  # tensors


class KeyTable:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[KeyName, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def check_free(self, asked: str, keys: Sequence[CacheKey]) -> None:
        """Raises ``ParamInvalidError`` for a key that is bound, or listed twice."""
        with self._lock:
            seen: set[KeyName] = set()
            for i, key in enumerate(keys):
                for name in names_of(key):
                    if name in seen or name in self._entries:
                        where = (
                            f"cache {self._entries[name].cache_id}" if name in self._entries else "this call"
                        )
                        raise refusal("key_is_in_use", asked=asked, at=i, value=name, holder=where)
                    seen.add(name)

    def bind(self, cache_id: int, keys: Sequence[CacheKey], *, is_owned: bool) -> None:
        """Key i names batch entry i. A name that is bound stays bound to what it was bound to."""
        with self._lock:
            for i, key in enumerate(keys):
                for name in names_of(key):
                    is_pulled_once = is_owned and not name.is_prefix
                    self._entries.setdefault(name, _Entry(cache_id, i, is_pulled_once))

    def of_cache(self, cache_id: int) -> list[tuple[KeyName, int]]:
        """The names of a cache and their batch entries."""
        with self._lock:
            return [(n, e.batch_index) for n, e in self._entries.items() if e.cache_id == cache_id]

    def cache_of(self, name: KeyName) -> int | None:
        with self._lock:
            entry = self._entries.get(name)
            return entry.cache_id if entry else None

    def remove(self, names: Iterable[KeyName]) -> None:
        with self._lock:
            for name in names:
                self._entries.pop(name, None)

    def drop_cache(self, cache_id: int) -> None:
        self.remove([name for name, _ in self.of_cache(cache_id)])

    def taken(self, cache_id: int, batch_index: int, tensors: range, num_tensors: int) -> bool:
        """A peer has pulled these tensors of a batch entry. True when a name went with it."""
        with self._lock:
            gone = []
            for name, entry in self._entries.items():
                is_it = (entry.cache_id, entry.batch_index) == (cache_id, batch_index)
                if is_it and entry.is_removed_by_pulls:
                    entry.pulled.update(tensors)
                    if len(entry.pulled) >= num_tensors:
                        gone.append(name)
            for name in gone:
                del self._entries[name]
            return bool(gone)
