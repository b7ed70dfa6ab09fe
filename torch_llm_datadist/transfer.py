"""What the calls around a layer-by-layer transfer take: configs, synchronizer, descriptions of memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum

from . import checks
from .keys import BlocksCacheKey, CacheKeyByIdAndIndex
from .messages import refusal


class Memtype(Enum):
    """Kind of memory; numbered in the opposite order to ``Placement``. Source: manual page Memtype.

    >>> llm_datadist.Memtype.MEM_TYPE_DEVICE.value
    0
    """

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class RegisterMemStatus(Enum):
    """State of a two-sided link. Source: manual page RegisterMemStatus.

    >>> llm_datadist.RegisterMemStatus(0).name
    'OK'
    """

    OK = 0
    PREPARING = 1
    FAILED = 2


class LayerSynchronizer(ABC):
    """Tells ``transfer_cache_async`` when a layer may be sent. Source: seed 001 transfer_cache_async.

    >>> class AfterEvents(llm_datadist.LayerSynchronizer):
    ...     def __init__(self, events):
    ...         self.events = events
    ...     def synchronize_layer(self, layer_index, timeout_in_millis):
    ...         self.events[layer_index].synchronize()  # recorded by the forward, behind the layer
    ...         return True
    >>> events = [torch.npu.Event() for _ in range(LAYERS)]
    >>> config = llm_datadist.TransferWithCacheKeyConfig(BlocksCacheKey(2), range(LAYERS), range(LAYERS))
    >>> manager = prefill.cache_manager
    >>> task = manager.transfer_cache_async(source, AfterEvents(events), [config], [0, 1], [5, 6])
    >>> for event in events:  # in a forward: after each layer
    ...     event.record()
    >>> task.synchronize(10_000)
    <LLMStatusCode.LLM_SUCCESS: 0>
    """

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Blocks until the layer is complete; False, or any falsy value, ends the transfers that carry it.

        Called once per layer that a config carries, in the order of the layers, on a worker thread of the
        instance. A torch stream of the worker is current there, and the layer leaves behind what is queued on
        it: so ``event.synchronize()`` serves, and so does ``event.wait()``.

        Args:
            layer_index: layer of the source cache, from 0.
            timeout_in_millis: always None.

        Source: manual page LayerSynchronizer.
        """


class TransferConfig:
    """One destination of ``transfer_cache_async`` without remote-accessible mode: addresses at the peer.

    Args:
        dst_cluster_id: uint64, the peer.
        dst_addrs: list or tuple of uint64; two for each layer that is sent, in the order of the tensors, the
            first two for the first layer of ``src_layer_range``. How many there must be is checked when it is
            used.
        src_layer_range: layers of the source, step 1, not empty; None: all.
        src_batch_index: uint32, the entry of a contiguous source.

    Raises:
        TypeError, ValueError: wrong types; an integer outside its C type.
        LLMException: ``LLM_PARAM_INVALID`` for a range with another step, or empty, or below 0.

    Source: manual page TransferConfig.

    >>> config = llm_datadist.TransferConfig(2, target.tensor_addrs[2:], src_layer_range=range(1, LAYERS))
    >>> len(config.dst_addrs)
    2
    """

    def __init__(
        self,
        dst_cluster_id: int,
        dst_addrs: Sequence[int],
        src_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.dst_cluster_id = dst_cluster_id
        self.dst_addrs = dst_addrs
        self.src_layer_range = src_layer_range
        self.src_batch_index = src_batch_index

    @property
    def dst_cluster_id(self) -> int:
        """uint64: the peer."""
        return self._dst_cluster_id

    @dst_cluster_id.setter
    def dst_cluster_id(self, value: int) -> None:
        self._dst_cluster_id = checks.uint64("TransferConfig: dst_cluster_id", value)

    @property
    def dst_addrs(self) -> Sequence[int]:
        """Addresses at the peer, two for each layer."""
        return self._dst_addrs

    @dst_addrs.setter
    def dst_addrs(self, value: Sequence[int]) -> None:
        if not isinstance(value, (list, tuple)):
            raise refusal(
                "bad_type",
                name="TransferConfig: dst_addrs",
                value=repr(value),
                expected="a list or tuple of addresses",
            )
        for i, address in enumerate(value):
            checks.uint64(f"TransferConfig: dst_addrs[{i}]", address)
        self._dst_addrs = value

    @property
    def src_layer_range(self) -> range | None:
        """Layers of the source; None: all."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range | None) -> None:
        if value is not None:
            checks.layer_range("TransferConfig: src_layer_range", value)
        self._src_layer_range = value

    @property
    def src_batch_index(self) -> int:
        """uint32: entry of a contiguous source."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        self._src_batch_index = checks.uint32("TransferConfig: src_batch_index", value)

    def __repr__(self) -> str:
        return (
            f"TransferConfig(dst_cluster_id={self.dst_cluster_id}, {len(self.dst_addrs)} addresses, "
            f"src_layer_range={self.src_layer_range}, src_batch_index={self.src_batch_index})"
        )


class TransferWithCacheKeyConfig:
    """One destination of ``transfer_cache_async`` in remote-accessible mode: a cache of the peer by its key.

    >>> config = llm_datadist.TransferWithCacheKeyConfig(
    ...     BlocksCacheKey(2), src_layer_range=range(0, 1), dst_layer_range=range(1, 2)
    ... )  # layer 0 here is layer 1 there
    >>> config.dst_cluster_id
    2

    Layer ``src_layer_range.start + k`` goes to layer ``dst_layer_range.start + k``.

    Args:
        cache_key: the remote cache: a ``BlocksCacheKey``, or a ``CacheKeyByIdAndIndex`` for an entry of a
            contiguous one.
        src_layer_range: required; layers of the source, step 1, not empty.
        dst_layer_range: required; as many layers of the destination.
        src_batch_index: uint32; the entry of a contiguous source, 0 with a ``BlocksCacheKey``.

    Raises:
        TypeError, ValueError: wrong types, None included; an integer outside its C type.
        LLMException: ``LLM_PARAM_INVALID`` for a range with another step, or empty, or below 0; ranges of
            different length; a batch index with a ``BlocksCacheKey``. What two properties must have in common
            is checked at construction and when the config is used, so that both can be set one by one.

    Source: seed 000 TransferWithCacheKeyConfig.
    """

    def __init__(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.cache_key = cache_key
        # Declared with a default in the original, and required all the same.
        self.src_layer_range = src_layer_range  # type: ignore[assignment]
        self.dst_layer_range = dst_layer_range  # type: ignore[assignment]
        self.src_batch_index = src_batch_index
        self.check("TransferWithCacheKeyConfig")

    def check(self, name: str) -> None:
        """Raises where two properties contradict each other; ``name`` begins the message."""
        src, dst = self.src_layer_range, self.dst_layer_range
        checks.same_length(name, src, dst)
        if self.src_batch_index and isinstance(self.cache_key, BlocksCacheKey):
            raise refusal(
                "batch_index_with_blocks",
                asked=name,
                name="src_batch_index",
                value=self.src_batch_index,
                what="a BlocksCacheKey",
            )

    @property
    def cache_key(self) -> BlocksCacheKey | CacheKeyByIdAndIndex:
        """The remote cache."""
        return self._cache_key

    @cache_key.setter
    def cache_key(self, value: BlocksCacheKey | CacheKeyByIdAndIndex) -> None:
        if not isinstance(value, (BlocksCacheKey, CacheKeyByIdAndIndex)):
            raise refusal(
                "bad_type",
                name="TransferWithCacheKeyConfig: cache_key",
                value=repr(value),
                expected="a BlocksCacheKey or a CacheKeyByIdAndIndex",
            )
        self._cache_key = value

    @property
    def dst_cluster_id(self) -> int:
        """The cluster that holds the remote cache."""
        return self._cache_key.cluster_id

    @property
    def src_layer_range(self) -> range:
        """Layers of the source, step 1."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range) -> None:
        self._src_layer_range = checks.layer_range("TransferWithCacheKeyConfig: src_layer_range", value)

    @property
    def dst_layer_range(self) -> range:
        """Layers of the destination, as many."""
        return self._dst_layer_range

    @dst_layer_range.setter
    def dst_layer_range(self, value: range) -> None:
        self._dst_layer_range = checks.layer_range("TransferWithCacheKeyConfig: dst_layer_range", value)

    @property
    def src_batch_index(self) -> int:
        """uint32: entry of a contiguous source."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        self._src_batch_index = checks.uint32("TransferWithCacheKeyConfig: src_batch_index", value)

    def __repr__(self) -> str:
        return (
            f"TransferWithCacheKeyConfig({self.cache_key}, {self.src_layer_range}, {self.dst_layer_range}, "
            f"src_batch_index={self.src_batch_index})"
        )


class MemInfo:
    """A range of memory, for ``remap_registered_memory``.

    Args:
        mem_type: ``Memtype``.
        addr: uint64.
        size: int64, in bytes.

    Source: manual page MemInfo.

    >>> llm_datadist.MemInfo(llm_datadist.Memtype.MEM_TYPE_DEVICE, source.tensor_addrs[0], 4096).size
    4096
    """

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        self._mem_type = checks.instance("MemInfo: mem_type", mem_type, Memtype)
        self._addr = checks.uint64("MemInfo: addr", addr)
        self._size = checks.int64("MemInfo: size", size)

    @property
    def mem_type(self) -> Memtype:
        """Device or host memory."""
        return self._mem_type

    @property
    def addr(self) -> int:
        """uint64: where it begins."""
        return self._addr

    @property
    def size(self) -> int:
        """int: bytes."""
        return self._size

    def __repr__(self) -> str:
        return f"MemInfo({self._mem_type.name}, addr={self._addr:#x}, size={self._size})"
