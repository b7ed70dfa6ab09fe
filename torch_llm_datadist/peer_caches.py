"""The part of ``CacheManager`` that finds the caches of linked peers."""

from __future__ import annotations

from .cache_store import CacheStore
from .entry_transfer import Key, find_remote, no_such_cache
from .link_table import Link
from .messages import refusal
from .wire import CacheRecord


class PeerCaches(CacheStore):
    def _remote(self, asked: str, link: Link, key: Key) -> tuple[CacheRecord, int]:
        """The peer's cache and batch entry; asks it once when it has not said anything of them yet."""
        found = find_remote(asked, link, key)
        if found is None:
            self._links.sync(key.cluster_id, self._options.sync_kv_timeout_ms / 1000)
            found = find_remote(asked, link, key)
        if found is None:
            raise no_such_cache(asked, link, key)
        return found

    def _require_remote_access(self, asked: str) -> None:
        if not self._options.remote_accessible:
            raise refusal("remote_access_is_off", asked=asked, value=False)

    def _refuse_own(self, asked: str, cluster_id: int) -> None:
        if cluster_id == self._links.identity.cluster_id:
            raise refusal("own_cluster", asked=asked, value=cluster_id)
