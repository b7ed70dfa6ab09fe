"""``CacheManager``: the caches of an instance, and what moves between them and those of linked peers.

Every blocking transfer is one op call: the arguments are checked here, the op orders the transfer after the
current stream, and the caller's thread waits for its end with the deadline of ``sync_kv_timeout``. No stream
ever waits.
"""

from __future__ import annotations

from .async_transfers import AsyncTransfers
from .expected import ExpectedTransfers
from .local_copies import LocalCopies
from .pulls import Pulls
from .pushes import Pushes


class CacheManager(Pushes, Pulls, ExpectedTransfers, AsyncTransfers, LocalCopies):
    """The caches of one ``LLMDataDist``; obtained from ``LLMDataDist.cache_manager``.

    Thread-safe. Transfers over different links do not wait for each other. Source: manual page CacheManager.

    >>> manager = prefill.cache_manager
    >>> _ = source.tensors[0].fill_(3)
    >>> manager.push_blocks(BlocksCacheKey(2), source, src_blocks=[0, 1], dst_blocks=[6, 2])
    >>> target.tensors[0][6].float().mean().item()
    3.0
    """
