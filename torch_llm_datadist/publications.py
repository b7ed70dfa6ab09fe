"""The part of ``CacheManager`` that lets peers pull what will be ready."""

from __future__ import annotations

import torch

from . import checks, ops
from .binding import Publication
from .block_transfer import read_layer_range, read_tensors_per_layer, whole_layers
from .blocks_in_doubt import BlocksInDoubt
from .cache import Cache
from .doubtful_blocks import DoubtfulBlocks
from .messages import refusal

PUBLISHED_FOR_S = 300.0


class Publications(DoubtfulBlocks):
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
                Of a cache in host memory also one on the CPU: what is published is there already.
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
            raise refusal(
                "layer_range_outside", asked=asked, name="layers", value=wanted, count=len(everything)
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
            everything_of_it = range(local.cache.num_entries)
            is_read = BlocksInDoubt(
                found.cache_id, everything_of_it, cluster_id, link.handle, None, "it was published"
            )
        return Publication(number, is_read)
