"""Element types and placements of caches."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

from .messages import refusal

if TYPE_CHECKING:
    import torch


class Placement(IntEnum):
    """Where a cache lies. Source: manual page Placement.

    >>> str(llm_datadist.Placement.HOST)
    'Placement.HOST'
    """

    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"Placement.{self.name}"


class DataType(Enum):
    """Element type of a cache; the value is the graph engine's number. Source: manual page DataType.

    >>> DataType.DT_BF16.value
    27
    """

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27


# Name of the torch dtype and bytes of one element. A string has a size in the engine but no elements to move.
_TORCH = {
    DataType.DT_FLOAT: ("float32", 4),
    DataType.DT_FLOAT16: ("float16", 2),
    DataType.DT_INT8: ("int8", 1),
    DataType.DT_INT32: ("int32", 4),
    DataType.DT_UINT8: ("uint8", 1),
    DataType.DT_INT16: ("int16", 2),
    DataType.DT_UINT16: ("uint16", 2),
    DataType.DT_UINT32: ("uint32", 4),
    DataType.DT_INT64: ("int64", 8),
    DataType.DT_UINT64: ("uint64", 8),
    DataType.DT_DOUBLE: ("float64", 8),
    DataType.DT_BOOL: ("bool", 1),
    DataType.DT_STRING: (None, 16),
    DataType.DT_BF16: ("bfloat16", 2),
}


def element_bytes(data_type: DataType) -> int:
    return _TORCH[data_type][1]


def torch_dtype(data_type: DataType) -> torch.dtype:
    """The torch dtype with the same bytes; ``ParamInvalidError`` for ``DT_STRING``, which has none."""
    import torch

    name = _TORCH[data_type][0]
    if name is None:
        raise refusal("no_torch_dtype", value=data_type.name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def from_torch_dtype(dtype: torch.dtype) -> DataType:
    """The ``DataType`` of a torch dtype; ``ParamInvalidError`` where LLM-DataDist has no name for it."""
    name = str(dtype).removeprefix("torch.")
    for data_type, (torch_name, _) in _TORCH.items():
        if torch_name == name:
            return data_type
    raise refusal("no_data_type", value=dtype)


class _ByNumpyType(dict[Any, DataType]):
    """Found by the scalar type (``numpy.float16``) and by what ``numpy.dtype`` makes one of."""

    def __missing__(self, key: object) -> DataType:
        import numpy

        kind = numpy.dtype(key).type  # type: ignore[call-overload]
        if kind in self:
            return self[kind]
        raise KeyError(key)


def _numpy_tables() -> dict[str, Any]:
    import numpy

    scalars = {d: getattr(numpy, name, None) for d, (name, _) in _TORCH.items() if name and name != "bool"}
    scalars[DataType.DT_BOOL] = numpy.bool_
    by_type = _ByNumpyType({kind: d for d, kind in scalars.items() if kind is not None})
    return {
        # numpy has no bfloat16; the original stands float16 in for it, which has as many bytes.
        "dtype_to_np_dtype": {**{d: k for d, k in scalars.items() if k}, DataType.DT_BF16: numpy.float16},
        "np_dtype_to_dtype": by_type,
        "valid_np_dtypes": list(by_type),
    }


def __getattr__(name: str) -> Any:
    """``dtype_to_np_dtype``, ``np_dtype_to_dtype``, ``valid_np_dtypes``: numpy is imported for them only."""
    if name not in ("dtype_to_np_dtype", "np_dtype_to_dtype", "valid_np_dtypes"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_numpy_tables())
    return globals()[name]
