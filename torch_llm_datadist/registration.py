"""From what a caller registers, tensors or addresses, to tensors of one size on the instance's device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import torch

from . import checks
from .cache import CacheDesc
from .data_type import Placement, torch_dtype
from .errors import ParamInvalidError


def read_tensors(
    asked: str, native: ModuleType, device: int, desc: CacheDesc, addrs: object
) -> list[torch.Tensor]:
    """The tensors of a cache to be registered; what the native core relies on is checked here."""
    if desc.placement == Placement.HOST:
        raise NotImplementedError(
            f"{asked}: caches with Placement.HOST are not there yet; register device tensors"
        )
    dtype = torch_dtype(desc.data_type)
    length_bytes = desc.size
    if not isinstance(addrs, (list, tuple)):
        raise TypeError(
            f"{asked}: addrs is of type {type(addrs).__name__}, expected a list of addresses or tensors"
        )
    if not addrs:
        raise ParamInvalidError(f"{asked}: addrs is empty, expected num_tensors = {desc.num_tensors} of them")
    if any(isinstance(item, torch.Tensor) for item in addrs):
        tensors = [
            _tensor(f"{asked}: addrs[{i}]", item, device, dtype, length_bytes) for i, item in enumerate(addrs)
        ]
    else:
        found = checks.integers(f"{asked}: addrs", addrs, kinds=(list,))
        if 0 in found:
            raise ParamInvalidError(
                f"{asked}: addrs[{found.index(0)}] is 0, expected the address of a tensor"
            )
        _check_count(asked, found, desc)
        tensors = [native.tensor_from_address(address, list(desc.shape), dtype, device) for address in found]
    _check_count(asked, tensors, desc)
    _check_apart(asked, tensors, length_bytes)
    return tensors


def _check_count(asked: str, addrs: Sequence[object], desc: CacheDesc) -> None:
    if len(addrs) != desc.num_tensors:
        raise ParamInvalidError(
            f"{asked}: addrs has {len(addrs)} entries, expected num_tensors = {desc.num_tensors}"
        )


def _tensor(name: str, item: object, device: int, dtype: torch.dtype, length_bytes: int) -> torch.Tensor:
    tensor = checks.instance(name, item, torch.Tensor, what="a tensor, as the others")
    if tensor.device.type != "npu" or tensor.device.index != device:
        raise ParamInvalidError(f"{name} is on {tensor.device}, expected npu:{device}, the instance's device")
    if tensor.dtype != dtype:
        raise ParamInvalidError(f"{name} is of {tensor.dtype}, the CacheDesc says {dtype}")
    if not tensor.is_contiguous():
        raise ParamInvalidError(f"{name} with strides {tensor.stride()} is not contiguous")
    if tensor.nbytes != length_bytes:
        raise ParamInvalidError(
            f"{name} of shape {list(tensor.shape)} has {tensor.nbytes} bytes, the desc {length_bytes}"
        )
    return tensor


def _check_apart(asked: str, tensors: list[torch.Tensor], length_bytes: int) -> None:
    """Two tensors of one cache that overlap would be written twice by one transfer."""
    by_address = sorted((tensor.data_ptr(), i) for i, tensor in enumerate(tensors))
    for (low, i), (high, k) in pairwise(by_address):
        if low + length_bytes > high:
            raise ParamInvalidError(
                f"{asked}: addrs[{min(i, k)}] and addrs[{max(i, k)}] overlap ({low:#x} and {high:#x}, "
                f"{length_bytes} bytes each)"
            )
