"""The half of ``CacheManager`` that copies within the instance.

The copies are ordered after the earlier work of the current stream, and a call returns when they are done, so
a peer that pulls next, or a kernel on any stream, sees them.
"""

from __future__ import annotations

import torch

from . import checks, ops
from .allocated_caches import AllocatedCaches
from .cache import Cache
from .data_type import Placement
from .messages import refusal
from .registration import ON_HOST, tensors_at


class LocalCopies(AllocatedCaches):
    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copies a part of a batch entry to the same part of an entry of another contiguous cache, in every
        tensor. Either may be on the host.

        Args:
            dst, src: contiguous caches of this instance with as many tensors.
            dst_batch_index, src_batch_index: uint32.
            offset: uint64, bytes from the start of both entries.
            size: int64, bytes of each tensor; -1 is the rest of the source's entry.
            req_id: uint64 or None; used by nothing.

        Raises:
            TypeError, ValueError: wrong types, integers outside theirs.
            LLMException: ``LLM_PARAM_INVALID`` for values that do not fit the caches,
                ``LLM_KV_CACHE_NOT_EXIST`` for a cache that is not there (any more), ``LLM_FAILED`` when the
                runtime refuses, ``LLM_TIMEOUT`` when the current stream has not got there within
                ``LLMConfig.stream_timeout``: the copies stay queued, and the tensors of both caches are held
                until the stream has passed them.

        Source: manual page copy_cache.

        >>> prefill.cache_manager.copy_cache(ours, ours, dst_batch_index=2, src_batch_index=0)
        """
        asked = "copy_cache"
        to = self._find(asked, "dst", dst, is_blocks=False).cache
        source = self._find(asked, "src", src, is_blocks=False).cache
        to_index = checks.uint32(f"{asked}: dst_batch_index", dst_batch_index)
        source_index = checks.uint32(f"{asked}: src_batch_index", src_batch_index)
        start = checks.uint64(f"{asked}: offset", offset)
        length = checks.int64(f"{asked}: size", size)
        if req_id is not None:
            checks.uint64(f"{asked}: req_id", req_id)
        if start > 2**62 or (length != -1 and length <= 0):
            raise refusal(
                "bad_value",
                name=f"{asked}: offset",
                value=f"{start} and size {length}",
                expected="a part of an entry, or size -1",
            )
        self._call.copy(
            asked,
            f"the copy of an entry of cache {source.cache_id} to cache {to.cache_id}",
            [source, to],
            lambda status: ops.copy_cache(
                status,
                to.tensors,
                source.tensors,
                dst_batch=to_index,
                src_batch=source_index,
                offset=start,
                size=length,
            ),
        )

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """Copies blocks within a blocks cache, in every tensor: ``{source: [destination, …]}``.

        Args:
            cache: a blocks cache of this instance.
            copy_block_info: no block is a destination twice, or a destination and the source of another one.

        Raises: as ``copy_cache``; TypeError for values that are no lists.

        Source: manual page copy_blocks.

        >>> prefill.cache_manager.copy_blocks(source, {0: [1, 2], 5: [3]})
        """
        asked = "copy_blocks"
        local = self._find(asked, "cache", cache, is_blocks=True).cache
        if not isinstance(copy_block_info, dict):
            raise refusal(
                "bad_type",
                name=f"{asked}: copy_block_info",
                value=repr(copy_block_info),
                expected="a dict of int to list",
            )
        sources: list[int] = []
        destinations: list[int] = []
        for source, blocks in copy_block_info.items():
            (number,) = checks.integers(f"{asked}: copy_block_info", [source])
            found = checks.integers(f"{asked}: copy_block_info[{source}]", blocks, kinds=(list,))
            sources += [number] * len(found)
            destinations += found
        self._call.copy(
            asked,
            f"the copy of {len(sources)} blocks in cache {local.cache_id}",
            [local],
            lambda status: ops.copy_blocks(status, local.tensors, _ids(sources), _ids(destinations)),
        )

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """Copies blocks between the host and the device, in every tensor: block ``source`` to block
        ``destination``. Nothing is exchanged, in spite of the name.

        Args:
            src_cache, dst_cache: blocks caches, one in device memory of this instance and one in host memory:
                of this instance, or made by ``Cache.create_cpu_cache``. What is known by its addresses alone
                is the caller's to keep, also after ``LLM_TIMEOUT``, until the stream has passed.
            src_to_dst: ``{source: destination}``; may be empty.

        Raises: as ``copy_cache``.

        Source: manual page swap_blocks.

        >>> host = [torch.zeros([BLOCKS, 16, 2, 8], dtype=torch.float16) for _ in range(2 * LAYERS)]
        >>> desc = CacheDesc(2 * LAYERS, [BLOCKS, 16, 2, 8], DataType.DT_FLOAT16, llm_datadist.Placement.HOST)
        >>> on_host = llm_datadist.Cache.create_cpu_cache(desc, [tensor.data_ptr() for tensor in host])
        >>> prefill.cache_manager.swap_blocks(source, on_host, {0: 3})  # out
        """
        asked = "swap_blocks"
        source = self._find_operand(asked, "src_cache", src_cache)
        to = self._find_operand(asked, "dst_cache", dst_cache)
        if not isinstance(src_to_dst, dict):
            raise refusal(
                "bad_type",
                name=f"{asked}: src_to_dst",
                value=repr(src_to_dst),
                expected="a dict of int to int",
            )
        placements = {source.cache_desc.placement, to.cache_desc.placement}
        if placements != {Placement.HOST, Placement.DEVICE}:
            raise refusal("placements_are_the_same", asked=asked, value=placements.pop().name)
        sources = checks.integers(f"{asked}: src_to_dst", list(src_to_dst))
        destinations = checks.integers(f"{asked}: values of src_to_dst", list(src_to_dst.values()))
        self._call.copy(
            asked,
            f"the copy of {len(sources)} blocks of cache {source.cache_id} to cache {to.cache_id}",
            [source, to],
            lambda status: ops.swap_blocks(
                status, self._tensors_of(source), self._tensors_of(to), _ids(sources), _ids(destinations)
            ),
        )

    def _find_operand(self, asked: str, name: str, cache: object) -> Cache:
        found = checks.instance(f"{asked}: {name}", cache, Cache)
        if found.cache_id == -1 and found.is_blocks_cache:
            self._require_usable(asked)
            return found
        return self._find(asked, name, found, is_blocks=True).cache

    def _tensors_of(self, cache: Cache) -> list[torch.Tensor]:
        if cache.cache_id == -1:
            return tensors_at(self._native, cache.tensor_addrs, cache.cache_desc, ON_HOST)
        return list(cache.tensors)


def _ids(blocks: list[int]) -> torch.Tensor:
    return torch.tensor(blocks, dtype=torch.int64)
