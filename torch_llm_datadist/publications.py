"""The part of ``CacheManager`` that knows whose blocks are: published to a peer, or in doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch

from . import checks, ops
from .binding import Publication
from .block_transfer import read_layer_range, read_tensors_per_layer, whole_layers
from .blocks_in_doubt import BlocksInDoubt, Doubts
from .cache import Cache
from .cache_store import CacheStore
from .errors import LLMException, LLMStatusCode, ParamInvalidError
from .link_table import Link

PUBLISHED_FOR_S = 300.0
# What a call raises before anything moves.
_NOTHING_QUEUED = (
    LLMStatusCode.LLM_PARAM_INVALID,
    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
    LLMStatusCode.LLM_LINK_BUSY,
    LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
)


class Publications(CacheStore):
    def publish(
        self,
        after: torch.Tensor,
        cache: Cache,
        layers: range | None,
        cluster_id: int,
        *,
        tensor_num_per_layer: int = 2,
        timeout_s: float = PUBLISHED_FOR_S,
    ) -> Publication:
        """Tells one peer that it may pull these layers, once the current stream has got here; returns at
        once.

        The peer hands ``publication.ticket`` to ``pull_blocks`` or ``pull_cache``, before or after: its
        copies wait for the layers on a stream of the link, never on the host or on a torch stream. A ticket
        serves one pull, of all of the layers or of some. When that pull has ended, ``publication`` has
        ended, too: until then the blocks belong to it.

        Called outside graphs.

        Args:
            after: any tensor on the instance's device that the last kernel produced which writes the layers.
            cache: a cache of this instance that the peer may reach.
            layers: range of layers with step 1; None: all.
            cluster_id: uint64, the peer.
            tensor_num_per_layer: tensors that make a layer; divides the number of tensors of the cache.
            timeout_s: seconds from now until the peer must have pulled.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_PARAM_INVALID`` for values that do not fit the cache, ``LLM_NOT_YET_LINK``
                without a link, ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there, ``LLM_LINK_BUSY``
                when the link has no ticket or no stream left.

        Not in the original, where the caller has to know when a peer may pull, and when it has.
        """
        asked = "publish"
        checks.instance(f"{asked}: after", after, torch.Tensor, what="a tensor")
        found = checks.instance(f"{asked}: cache", cache, Cache)
        local = self._find_reachable(asked, "cache", found, is_blocks=found.is_blocks_cache)
        per_layer = read_tensors_per_layer(asked, tensor_num_per_layer)
        everything = range(whole_layers(asked, len(local.tensor_bytes), per_layer))
        wanted = read_layer_range(asked, "layers", layers) or everything
        if wanted.stop > len(everything):
            raise ParamInvalidError(
                f"{asked}: layers is {wanted}, the cache has {len(everything)} layers. Nothing was published."
            )
        cluster_id = checks.uint64(f"{asked}: cluster_id", cluster_id)
        timeout_ms = checks.seconds_as_ms(f"{asked}: timeout_s", timeout_s)
        with self._links.table.using(cluster_id, asked) as link:
            number = ops.publish(
                after,
                cache_id=found.cache_id,
                link=link.handle,
                first_tensor=wanted.start * per_layer,
                num_tensors=len(wanted) * per_layer,
                timeout_ms=timeout_ms,
            )
        return Publication(number)

    def assign_blocks(self, ticket: int, cache: Cache, blocks: Sequence[int]) -> None:
        """Says which local blocks the transfer behind a ticket writes, so that ``blocks_in_doubt`` can name
        them. Only the two applications know that.

        Args:
            ticket: of a task that a peer prepared for this instance.
            cache: a cache of this instance.
            blocks: list or tuple of its blocks, or batch entries.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there, ``LLM_PARAM_INVALID`` for
                a block outside of it.
        """
        asked = "assign_blocks"
        number = checks.integer(f"{asked}: ticket", ticket, 1, 2**53 - 1)
        found = checks.instance(f"{asked}: cache", cache, Cache)
        local = self._find(asked, "cache", found, is_blocks=found.is_blocks_cache)
        given = checks.integers(f"{asked}: blocks", blocks)
        for i, block in enumerate(given):
            if block >= local.cache.num_entries:
                raise ParamInvalidError(
                    f"{asked}: blocks[{i}] = {block} is outside the cache, which has "
                    f"{local.cache.num_entries}"
                )
        self._doubts.assign(number, found.cache_id, tuple(given))

    def blocks_in_doubt(self, link: int | None = None) -> list[BlocksInDoubt]:
        """The local blocks that a transfer which failed or was given up may still write: do not hand them out
        again before they have left this list.

        They leave it when the sender has confirmed that the streams of its link are drained, or when its
        process is known to be gone. The list holds

        * the blocks of failed tickets, where ``assign_blocks`` has told them;
        * the destination blocks of pulls that failed, until what they had queued is done;
        * all blocks of all caches that a lost peer could reach, one entry per cache: a frozen peer may have
          had pushes under way that nobody here was told of. Blocks that were never given to that peer are
          safe all the same.

        Args:
            link: ``LLMDataDist.link_id(cluster_id)``, taken while there was a link; None: of all links, also
                those that have ended.

        Raises:
            TypeError, ValueError: wrong types.

        Not in the original.
        """
        self._require_usable("blocks_in_doubt")
        wanted = None if link is None else checks.int64("blocks_in_doubt: link", link)
        return [doubt for doubt in self._doubts.all() if wanted is None or doubt.link == wanted]

    @contextmanager
    def _doubting(self, link: Link, cache: Cache, blocks: Sequence[int]) -> Iterator[None]:
        """Around a blocking pull: when it fails, what it had queued may still run."""
        try:
            yield
        except LLMException as error:
            if error.status_code not in _NOTHING_QUEUED:
                why = f"a pull failed: {error}"
                self._doubts.pull_failed(
                    BlocksInDoubt(cache.cache_id, tuple(blocks), link.cluster_id, link.handle, None, why)
                )
            raise

    @cached_property
    def _doubts(self) -> Doubts:
        return Doubts(self._instance, self._links, self._registry)
