"""What a cache is: ``CacheDesc`` describes its tensors, ``Cache`` is the handle of a registered one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from . import checks
from .data_type import DataType, Placement, element_bytes
from .messages import refusal

if TYPE_CHECKING:
    import torch

MAX_DIMS = 31


class CacheDesc:
    """Describes a cache of ``num_tensors`` equal tensors; ``of_layers`` makes one of different tensors.

    Args:
        num_tensors: uint32; for a model with K and V, two per layer, in the order K0, V0, K1, V1, …
        shape: shape of each tensor; dimension 0 counts the blocks of a blocks cache, or the batch.
        data_type: element type; only its size matters to a transfer.
        placement: where the tensors lie.
        batch_dim_index: carried, and used by nothing.
        seq_len_dim_index: carried, and used by nothing; -1 for none.
        kv_tensor_format: carried, and used by nothing.

    Raises:
        TypeError: a wrong type, ``None`` included (but for ``kv_tensor_format``).
        ValueError: an integer outside its C type.
        LLMException: empty shape, or an index outside of it (``LLM_PARAM_INVALID``).

    Source: manual page CacheDesc.

    >>> desc = CacheDesc(2 * LAYERS, [BLOCKS, 16, 2, 8], DataType.DT_FLOAT16)
    >>> desc.size  # bytes of one tensor
    4096
    """

    def __init__(
        self,
        num_tensors: int,
        shape: Sequence[int],
        data_type: DataType,
        placement: Placement = Placement.DEVICE,
        batch_dim_index: int = 0,
        seq_len_dim_index: int = -1,
        kv_tensor_format: str | None = None,
    ) -> None:
        self._num_tensors = checks.uint32("CacheDesc: num_tensors", num_tensors)
        if not isinstance(shape, (list, tuple)):
            raise refusal(
                "bad_type", name="CacheDesc: shape", value=repr(shape), expected="a list or tuple of ints"
            )
        dims = [checks.int64(f"CacheDesc: shape[{i}]", dim) for i, dim in enumerate(shape)]
        if not dims:
            raise refusal(
                "bad_value", name="CacheDesc: shape", value="empty", expected="at least one dimension"
            )
        self._shape: list[int] | tuple[int, ...] = dims if isinstance(shape, list) else tuple(dims)
        self._data_type = checks.instance("CacheDesc: data_type", data_type, DataType)
        self._placement = checks.instance("CacheDesc: placement", placement, Placement)
        self._batch_dim = checks.int32("CacheDesc: batch_dim_index", batch_dim_index)
        self._seq_len_dim_index = checks.int32("CacheDesc: seq_len_dim_index", seq_len_dim_index)
        if not 0 <= self._batch_dim < len(dims):
            raise refusal(
                "bad_value",
                name="CacheDesc: batch_dim_index",
                value=batch_dim_index,
                expected=f"0 to {len(dims) - 1}",
            )
        if not -1 <= self._seq_len_dim_index < len(dims):
            raise refusal(
                "bad_value",
                name="CacheDesc: seq_len_dim_index",
                value=seq_len_dim_index,
                expected=f"-1 to {len(dims) - 1}",
            )
        if kv_tensor_format is not None:
            checks.instance("CacheDesc: kv_tensor_format", kv_tensor_format, str)
        self._kv_tensor_format = kv_tensor_format
        self._batch_size = dims[self._batch_dim]
        self._layer: tuple[tuple[tuple[int, ...], DataType], ...] = ()

    @classmethod
    def of_layers(
        cls,
        num_layers: int,
        tensors: Sequence[tuple[Sequence[int], DataType]],
        placement: Placement = Placement.DEVICE,
    ) -> CacheDesc:
        """A cache whose layers have tensors of different shape or type, as MLA has.

        >>> latent = ((BLOCKS, 16, 512), DataType.DT_BF16)
        >>> rope = ((BLOCKS, 16, 64), DataType.DT_BF16)
        >>> CacheDesc.of_layers(LAYERS, [latent, rope]).num_tensors
        4

        Args:
            num_layers: uint32.
            tensors: shape and type of each tensor of a layer, in order; all of one dimension 0.
            placement: where the tensors lie.

        ``shape`` and ``data_type`` are those of the first one. Raises as ``CacheDesc``. Not in the original,
        which needs a cache for each shape.
        """
        layers = checks.uint32("CacheDesc.of_layers: num_layers", num_layers)
        if not isinstance(tensors, (list, tuple)):
            raise refusal(
                "bad_type",
                name="CacheDesc.of_layers: tensors",
                value=repr(tensors),
                expected="a list of (shape, data_type)",
            )
        if not tensors:
            raise refusal(
                "bad_value",
                name="CacheDesc.of_layers: tensors",
                value="empty",
                expected="at least one tensor",
            )
        descs = [cls(1, shape, data_type, placement) for shape, data_type in tensors]
        rows = {desc.shape[0] for desc in descs}
        if len(rows) > 1:
            raise refusal(
                "bad_value",
                name="CacheDesc.of_layers: dimension 0",
                value=", ".join(map(str, sorted(rows))),
                expected="the same one in all tensors: it counts their blocks, or the batch",
            )
        made = cls(layers * len(descs), tuple(descs[0].shape), descs[0].data_type, placement)
        made._layer = tuple((tuple(desc.shape), desc.data_type) for desc in descs)
        return made

    @property
    def num_tensors(self) -> int:
        """How many tensors the cache has."""
        return self._num_tensors

    @property
    def shape(self) -> list[int] | tuple[int, ...]:
        """Shape of each tensor; of ``of_layers`` that of the first."""
        return self._shape

    @property
    def data_type(self) -> DataType:
        """Element type; of ``of_layers`` that of the first tensor."""
        return self._data_type

    @property
    def placement(self) -> Placement:
        """Where the tensors lie."""
        return self._placement

    @property
    def batch_dim(self) -> int:
        """``batch_dim_index`` as it was given."""
        return self._batch_dim

    @property
    def batch_size(self) -> int:
        """``shape[batch_dim_index]`` as it was at construction."""
        return self._batch_size

    @property
    def seq_len_dim_index(self) -> int:
        """As it was given."""
        return self._seq_len_dim_index

    @property
    def kv_tensor_format(self) -> str | None:
        """As it was given."""
        return self._kv_tensor_format

    @property
    def size(self) -> int:
        """Bytes of one tensor; ``LLMException`` (``LLM_PARAM_INVALID``) while the shape is none that a tensor
        has.
        """
        if len(self._shape) > MAX_DIMS or any(dim <= 0 for dim in self._shape):
            raise refusal(
                "bad_value",
                name="CacheDesc: shape",
                value=list(self._shape),
                expected=f"1 to {MAX_DIMS} dimensions, each greater than 0",
            )
        return prod(self._shape) * element_bytes(self._data_type)

    @property
    def tensors(self) -> list[tuple[tuple[int, ...], DataType]]:
        """Shape and type of each of the ``num_tensors`` tensors. Not in the original."""
        layer = self._layer or ((tuple(self._shape), self._data_type),)
        return [layer[i % len(layer)] for i in range(self._num_tensors)]

    @property
    def tensor_sizes(self) -> list[int]:
        """Bytes of each tensor; raises as ``size``. Not in the original."""
        sizes = self._layer_sizes()
        return [sizes[i % len(sizes)] for i in range(self._num_tensors)]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors; raises as ``size``. Not in the original."""
        sizes = self._layer_sizes()
        return sum(sizes) * self._num_tensors // len(sizes)

    def _layer_sizes(self) -> list[int]:
        return [CacheDesc(1, shape, data_type).size for shape, data_type in self._layer] or [self.size]

    def update_dim(self, dim_index: int, dim_value: int) -> None:
        """Changes one dimension in place; needs a shape given as a list. ``batch_size`` stays as it is.

        Source: manual page CacheDesc.
        """
        index = checks.int64("update_dim: dim_index", dim_index)
        value = checks.int64("update_dim: dim_value", dim_value)
        if not isinstance(self._shape, list):
            raise refusal("shape_is_fixed", value="a tuple")
        if not 0 <= index < len(self._shape):
            raise refusal(
                "bad_value",
                name="update_dim: dim_index",
                value=index,
                expected=f"0 to {len(self._shape) - 1}",
            )
        self._shape[index] = value

    def __repr__(self) -> str:
        return (
            f"CacheDesc(num_tensors={self._num_tensors}, shape={list(self._shape)}, "
            f"data_type={self._data_type.name}, placement={self._placement.name})"
        )


class Cache:
    """Handle of a cache, made by a ``CacheManager``. Source: manual page Cache.

    It refers to its tensors, which stay alive until the cache is unregistered and no transfer can touch them
    any more.

    >>> source.cache_id, source.num_blocks, len(source.tensors)
    (1, 8, 4)
    """

    def __init__(
        self,
        cache_id: int,
        cache_desc: CacheDesc,
        tensor_addrs: Sequence[int],
        is_blocks_cache: bool,
        *,
        tensors: Sequence[torch.Tensor] = (),
        remote_accessible: bool = False,
        receives: bool = True,
        handle: int = 0,
    ) -> None:
        self._cache_id = cache_id
        self._cache_desc = cache_desc
        self._tensor_addrs = list(tensor_addrs)
        self._is_blocks_cache = is_blocks_cache
        self._tensors = tuple(tensors)
        self._remote_accessible = remote_accessible
        self._receives = receives
        self._handle = handle
        self._num_entries = cache_desc.shape[0]

    @staticmethod
    def create_cpu_cache(cache_desc: CacheDesc, addrs: list[int]) -> Cache:
        """A handle (id -1) for host memory of the caller, as an operand of ``swap_blocks`` only.

        Raises:
            TypeError, ValueError: a wrong type; an address outside uint64.
            LLMException: not a HOST desc, or another number of addresses than tensors
                (``LLM_PARAM_INVALID``).

        Source: manual page Cache.
        """
        desc = checks.instance("create_cpu_cache: cache_desc", cache_desc, CacheDesc)
        found = checks.integers("create_cpu_cache: addrs", addrs, kinds=(list,))
        if desc.placement != Placement.HOST:
            raise refusal(
                "bad_value", name="create_cpu_cache: placement", value=desc.placement.name, expected="HOST"
            )
        if len(found) != desc.num_tensors:
            raise refusal(
                "other_number_of_addresses",
                asked="create_cpu_cache",
                value=len(found),
                count=desc.num_tensors,
            )
        return Cache(-1, desc, found, True)

    @property
    def cache_id(self) -> int:
        """int: 1, 2, … per instance, for allocated and registered ones alike; -1 of ``create_cpu_cache``."""
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        """What it was made with."""
        return self._cache_desc

    @property
    def tensor_addrs(self) -> list[int]:
        """Address of each tensor; empty once the cache is deallocated."""
        return self._tensor_addrs

    @property
    def per_device_tensor_addrs(self) -> list[list[int]]:
        """The addresses per device, of which an instance has one; for callers of the older API."""
        return [self._tensor_addrs]

    @property
    def is_blocks_cache(self) -> bool:
        """Dimension 0 counts blocks, not batch entries."""
        return self._is_blocks_cache

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of registration."""
        return self._tensors

    @property
    def handle(self) -> int:
        """The constant by which ``ops.store_layer`` and ``ops.read_layer`` find a blocks cache that is
        registered; unique in the process. 0 for another cache. Not in the original.
        """
        return self._handle

    @property
    def num_blocks(self) -> int:
        """Blocks of each tensor; 0 for a contiguous cache."""
        return self._num_entries if self._is_blocks_cache else 0

    @property
    def num_entries(self) -> int:
        """Blocks of each tensor; of a contiguous cache its batch size."""
        return self._num_entries

    def close(self) -> None:
        """Lets go of the tensors; for ``CacheManager``, when the cache is deallocated."""
        self._tensor_addrs = []
        self._tensors = ()

    @property
    def remote_accessible(self) -> bool:
        """Peers may reach it."""
        return self._remote_accessible

    @property
    def receives(self) -> bool:
        """Transfers may write into it. Not in the original."""
        return self._receives

    def __repr__(self) -> str:
        return (
            f"Cache(cache_id={self._cache_id}, {self._cache_desc}, is_blocks_cache={self._is_blocks_cache})"
        )


KvCache = Cache  # the older name
