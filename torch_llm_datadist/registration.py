"""From what a caller registers, tensors or addresses, to tensors as the ``CacheDesc`` describes them; and the
keys that it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import torch

from . import checks
from .cache import CacheDesc
from .data_type import Placement, torch_dtype
from .errors import ParamInvalidError
from .keys import BlocksCacheKey, CacheKey
from .messages import refusal

ON_HOST = -1  # the device of host memory


def read_tensors(
    asked: str, native: ModuleType, device: int, desc: CacheDesc, addrs: object
) -> list[torch.Tensor]:
    """The tensors of a cache to be registered; what the native core relies on is checked here."""
    where = ON_HOST if desc.placement == Placement.HOST else device
    if not isinstance(addrs, (list, tuple)):
        raise refusal(
            "bad_type",
            name=f"{asked}: addrs",
            value=f"of type {type(addrs).__name__}",
            expected="a list of addresses or tensors",
        )
    # The number first: what follows makes a list of as many.
    _require_tensors(asked, desc)
    if not addrs:
        raise refusal("no_addresses", asked=asked, value=addrs, count=desc.num_tensors)
    _check_count(asked, addrs, desc)
    wanted = read_desc(asked, desc)
    if any(isinstance(item, torch.Tensor) for item in addrs):
        for i, item in enumerate(addrs):
            _check_tensor(f"{asked}: addrs[{i}]", item, where, *wanted[i])
        tensors = [item.view(shape) for item, (shape, *_) in zip(addrs, wanted, strict=True)]
    else:
        found = checks.integers(f"{asked}: addrs", addrs, kinds=(list,))
        if 0 in found:
            raise refusal("address_is_0", asked=asked, at=found.index(0), value=0)
        tensors = tensors_at(native, found, desc, where)
    _check_apart(asked, tensors)
    return tensors


def await_kernels(tensors: Sequence[torch.Tensor]) -> None:
    """Peers write to registered memory at any time: a kernel that still is to zero it would undo that."""
    for device in {tensor.device for tensor in tensors if tensor.device.type == "npu"}:
        npu = torch.get_device_module(device)
        with npu.device(device):
            if not npu.is_current_stream_capturing():
                npu.current_stream().synchronize()


def read_desc(asked: str, desc: CacheDesc) -> list[tuple[list[int], torch.dtype, int]]:
    """Shape, dtype and bytes of each tensor; raises where there can be no such tensors."""
    _require_tensors(asked, desc)
    try:
        dtypes = {data_type: torch_dtype(data_type) for _, data_type in desc.tensors}
        pairs = zip(desc.tensors, desc.tensor_sizes, strict=True)
    except ParamInvalidError as error:
        raise ParamInvalidError(f"{asked}: {error}") from None
    return [(list(shape), dtypes[data_type], size) for (shape, data_type), size in pairs]


def total_bytes(asked: str, desc: CacheDesc) -> int:
    """Of a cache that there can be; makes no list of its tensors, of which there may be 2**32 - 1."""
    _require_tensors(asked, desc)
    try:
        return desc.total_bytes
    except ParamInvalidError as error:
        raise ParamInvalidError(f"{asked}: {error}") from None


def _require_tensors(asked: str, desc: CacheDesc) -> None:
    if desc.num_tensors == 0:
        raise refusal("no_tensors", asked=asked, value=0)


def tensors_at(
    native: ModuleType, addresses: Sequence[int], desc: CacheDesc, device: int
) -> list[torch.Tensor]:
    """Tensors over memory of the caller, whose duty it is to keep it."""
    return [
        native.tensor_from_address(address, list(shape), torch_dtype(data_type), device)
        for address, (shape, data_type) in zip(addresses, desc.tensors, strict=True)
    ]


def addresses_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _check_count(asked: str, addrs: Sequence[object], desc: CacheDesc) -> None:
    if len(addrs) != desc.num_tensors:
        raise refusal("other_number_of_addresses", asked=asked, value=len(addrs), count=desc.num_tensors)


def _check_tensor(
    name: str, item: object, device: int, shape: list[int], dtype: torch.dtype, length_bytes: int
) -> None:
    tensor = checks.instance(name, item, torch.Tensor, what="a tensor, as the others")
    if device == ON_HOST:
        if tensor.device.type != "cpu":
            expected = "the CPU, since the CacheDesc says Placement.HOST"
            raise refusal("tensor_on_another_device", name=name, value=tensor.device, expected=expected)
    elif tensor.device.type != "npu" or tensor.device.index != device:
        expected = f"npu:{device}, the instance's device"
        raise refusal("tensor_on_another_device", name=name, value=tensor.device, expected=expected)
    if tensor.dtype != dtype:
        raise refusal("tensor_of_another_dtype", name=name, value=tensor.dtype, expected=dtype)
    if not tensor.is_contiguous():
        raise refusal("tensor_not_contiguous", name=name, value=tensor.stride())
    if tensor.nbytes != length_bytes:
        raise refusal(
            "tensor_of_another_size",
            name=name,
            shape=list(tensor.shape),
            value=tensor.nbytes,
            expected=length_bytes,
            wanted=shape,
        )


def _check_apart(asked: str, tensors: list[torch.Tensor]) -> None:
    """Two tensors of one cache that overlap would be written twice by one transfer."""
    by_address = sorted((tensor.data_ptr(), i) for i, tensor in enumerate(tensors))
    for (low, i), (high, k) in pairwise(by_address):
        if low + tensors[i].nbytes > high:
            raise refusal(
                "tensors_overlap",
                asked=asked,
                first=min(i, k),
                second=max(i, k),
                first_address=hex(low),
                second_address=hex(high),
                first_bytes=tensors[i].nbytes,
                second_bytes=tensors[k].nbytes,
            )


def read_keys(asked: str, desc: CacheDesc, cache_keys: object) -> list[CacheKey]:
    if not isinstance(cache_keys, (list, tuple)):
        raise refusal(
            "bad_type",
            name=f"{asked}: cache_keys",
            value=repr(cache_keys),
            expected="a list or tuple of CacheKey",
        )
    keys = [checks.instance(f"{asked}: cache_keys[{i}]", key, CacheKey) for i, key in enumerate(cache_keys)]
    if len(keys) > desc.shape[0]:
        raise refusal("too_many_keys", asked=asked, value=len(keys), count=desc.shape[0])
    return keys


def read_blocks_key(asked: str, key: object) -> int | None:
    if key is None:
        return None
    return checks.instance(f"{asked}: blocks_cache_key", key, BlocksCacheKey).model_id
