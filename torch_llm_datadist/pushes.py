"""The part of ``CacheManager`` that pushes, and that hears of pushes which have arrived."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks, ops
from .arrivals import Tag, read_tag
from .binding import Task
from .block_transfer import BlockTransfer, read_blocks, read_push_layers
from .blocks_in_doubt import BlocksInDoubt
from .cache import Cache
from .checks import as_int64
from .doubtful_blocks import DoubtfulBlocks
from .entry_transfer import EntryTransfer, read_entry
from .keys import BlocksCacheKey, CacheKeyByIdAndIndex
from .messages import refusal
from .peer_caches import PeerCaches
from .tagged import tagged

_NO_BLOCKS = torch.empty(0, dtype=torch.int64)


class Pushes(DoubtfulBlocks, PeerCaches):
    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] | None = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        *,
        tag: Tag | None = None,
    ) -> None:
        """Copies local blocks into blocks of a peer's cache: ``src_blocks[i]`` to ``dst_blocks[i]``, in every
        tensor.

        The copies start when all earlier work of the current stream is done; the call returns when they have
        ended. The receiver is told of ``tag`` only. Needs ``enable_remote_cache_accessible``.

        Args:
            dst_cache_key: the peer's cluster_id and the model_id of its cache.
            src_cache: a cache registered here.
            src_blocks, dst_blocks: lists or tuples of block indices, equally long; no destination twice.
            src_layer_range, dst_layer_range: ranges of layers with step 1, equally long; None means all
                layers of the source. They need not be the same.
            tensor_num_per_layer: tensors that make a layer, 1 to the number of tensors of the cache. With a
                range it divides that number, unless it is the default; without one all tensors are sent.
            tag: str of 1 to 256 characters or uint64, for ``wait_arrival`` at the receiver, which is told
                when the bytes have landed, or of what went wrong. Not in the original.

        Raises:
            TypeError, ValueError: wrong types; a negative block.
            LLMException: ``LLM_PARAM_INVALID`` for values that do not fit the caches, ``LLM_NOT_YET_LINK``
                without a link, ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there: nothing was sent.
                ``LLM_TIMEOUT`` when ``sync_kv_timeout`` has passed: some of the destination blocks may have
                been written, or still be (``blocks_in_doubt`` of the exception names them; the next transfer
                into one of them, by whatever call, waits until what this one had queued is done, or raises
                ``LLM_TIMEOUT`` in its turn). The link and its other transfers go on. Where transfers share a
                stream, since the link has no more, those behind a late one wait for it, are not cut, and
                have their own deadline. Likewise when the current stream has not got there within
                ``LLMConfig.stream_timeout``.

        Source: seed 003 push_blocks.
        """
        asked = "push_blocks"
        tag = None if tag is None else read_tag(asked, tag)
        key, transfer = self._read_push(
            asked, dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range,
            tensor_num_per_layer,
        )  # fmt: skip
        with self._links.table.using(key.cluster_id, asked) as link, tagged(self._links, key.cluster_id, tag):
            remote, _ = self._remote(asked, link, key)
            doubt = self._unfinished(link, remote.cache_id, transfer.dst_blocks, is_at_peer=True)
            self._call.move_blocks(asked, ops.push_blocks, src_cache, transfer, link, key.model_id, doubt)

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
        *,
        tag: Tag | None = None,
    ) -> None:
        """Copies a batch entry of a local contiguous cache into an entry of a peer's, in every tensor.

        The copies start when all earlier work of the current stream is done; the call returns when they have
        ended. The receiver is told of ``tag`` only. Needs ``enable_remote_cache_accessible``.

        Args:
            dst_cache_key: the peer's cluster_id, the cache_id of its cache and the entry.
            src_cache: a contiguous cache of this instance.
            src_batch_index: uint32, the entry here.
            src_layer_range, dst_layer_range, tensor_num_per_layer, tag: as ``push_blocks``.
            size: bytes of each tensor; only -1, a whole local entry. The peer's may be larger.

        Raises: as ``push_blocks``.

        Source: seed 004 push_cache.

        >>> key = llm_datadist.CacheKeyByIdAndIndex(2, theirs.cache_id, batch_index=1)
        >>> prefill.cache_manager.push_cache(key, ours, src_batch_index=2)
        """
        asked = "push_cache"
        tag = None if tag is None else read_tag(asked, tag)
        self._require_remote_access(asked)
        key = checks.instance(f"{asked}: dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        local = self._find_reachable(asked, "src_cache", src_cache, is_blocks=False)
        entry = read_entry(asked, "src_batch_index", src_batch_index, local)
        if checks.int64(f"{asked}: size", size) != -1:
            raise refusal("size_is_not_whole", asked=asked, value=size)
        src_layers, dst_layers, per_layer = read_push_layers(
            asked, len(local.tensor_bytes), src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        transfer = EntryTransfer(
            _NO_BLOCKS, key.cache_id, entry, key.batch_index, -1,
            src_layers.start, dst_layers.start, len(src_layers), per_layer,
        )  # fmt: skip
        with self._links.table.using(key.cluster_id, asked) as link, tagged(self._links, key.cluster_id, tag):
            self._remote(asked, link, key)
            doubt = self._unfinished(link, key.cache_id, [key.batch_index], is_at_peer=True)
            self._call.move_entry(asked, ops.push_cache, src_cache, transfer, link, doubt)

    def prepare_push(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        timeout_s: float | None = None,
        packed: bool | None = None,
    ) -> Task:
        """Takes a ticket for a push whose layers are sent one by one, each as soon as the forward has written
        it.

        Nothing moves until a ``Binding`` joins the task to a forward that calls ``ops.push_layer``. The
        receiver waits for the layers with ``task.ticket``.

        Args: as ``push_blocks``, where ``tensor_num_per_layer`` divides the number of tensors, and
            timeout_s: seconds from ``Binding.bind`` to the last byte; None leaves it to the binding.
            packed: whether the blocks are gathered into one piece per layer, which the receiver scatters to
                the blocks that it names with ``expect``. True: in any case; the task waits for ``expect``,
                and ``dst_blocks`` is checked and then left alone. False: never. None: where the planner
                thinks that it takes less time and the receiver called ``expect`` before this task is bound;
                on a link made with ``fenced=True`` as True.

        Raises: as ``push_blocks``; ``LLM_LINK_BUSY`` when the link has no ticket left.
            ``LLM_FEATURE_NOT_ENABLED`` with ``packed=True`` where it cannot be: host memory takes part,
            CANN's operator library is missing, a block is larger than a chunk of the receiver's staging.

        Not in the original.
        """
        asked = "prepare_push"
        key, transfer = self._read_push(
            asked, dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range,
            tensor_num_per_layer, by_layers=True,
        )  # fmt: skip
        # 0: what the binding says
        timeout_ms = 0 if timeout_s is None else checks.seconds_as_ms(f"{asked}: timeout_s", timeout_s)
        if packed is not None:
            checks.boolean(f"{asked}: packed", packed)
        with self._links.table.using(key.cluster_id, asked) as link:
            remote, _ = self._remote(asked, link, key)
            task = self._native.prepare_push(
                link.handle,
                as_int64(key.model_id),
                src_cache.tensors,
                transfer.src_blocks,
                transfer.dst_blocks,
                transfer.src_layer,
                transfer.dst_layer,
                transfer.num_layers,
                transfer.tensors_per_layer,
                timeout_ms,
                packed=packed,
            )
            writes = BlocksInDoubt(
                remote.cache_id, tuple(dst_blocks), link.cluster_id, link.handle, None, "", True
            )
        return self._doubts.task(task, writes)

    def wait_arrival(self, cluster_id: int, tag: Tag, timeout: int = 3000) -> None:
        """Blocks until a push with that tag has landed here; its bytes are there for every stream.

        A tag is taken by the wait that returns, or raises what the push ended with, so it can be used again.
        It may have arrived before the call. Not in the original, whose receivers are not told.

        Args:
            cluster_id: uint64, the peer that pushes.
            tag: str of 1 to 256 characters or uint64, as given to ``push_blocks`` or ``push_cache``.
            timeout: int32, > 0, in milliseconds.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_TIMEOUT`` when it has not come in time, and may still; ``LLM_NOT_YET_LINK``
                when it has not come and there is no link by which it could; the code of a push that failed.

        >>> prefill.cache_manager.push_blocks(BlocksCacheKey(2), source, [0], [1], tag="request 7")
        >>> decode.cache_manager.wait_arrival(1, "request 7", timeout=10_000)  # at the receiver
        """
        asked = "wait_arrival"
        self._native.require_not_forked(asked)
        cluster = checks.uint64(f"{asked}: cluster_id", cluster_id)
        wanted = read_tag(asked, tag)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        self._links.arrivals.wait(cluster, wanted, timeout_ms / 1000)

    def _read_push(
        self,
        asked: str,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] | None,
        dst_blocks: Sequence[int],
        src_layer_range: range | None,
        dst_layer_range: range | None,
        tensor_num_per_layer: int,
        *,
        by_layers: bool = False,
    ) -> tuple[BlocksCacheKey, BlockTransfer]:
        self._require_remote_access(asked)
        key = checks.instance(f"{asked}: dst_cache_key", dst_cache_key, BlocksCacheKey)
        local = self._find_reachable(asked, "src_cache", src_cache, is_blocks=True)
        src, dst = read_blocks(
            asked, src_blocks, dst_blocks, local="src_blocks", num_blocks=local.cache.num_blocks
        )
        src_layers, dst_layers, per_layer = read_push_layers(
            asked, len(local.cache.tensors), src_layer_range, dst_layer_range, tensor_num_per_layer,
            is_strict=by_layers,
        )  # fmt: skip
        return key, BlockTransfer(src, dst, src_layers.start, dst_layers.start, len(src_layers), per_layer)
