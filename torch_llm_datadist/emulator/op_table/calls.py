"""A call of an aten op that can be repeated on another device, with arguments of its own each time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

Overload = torch._ops.OpOverload

# Arguments that PyTorch wants on the host whatever device the rest is on.
HOST_ONLY = ("tensor_indices_or_sections", "high")


@dataclass
class Call:
    op: Any  # an overload, or a Python function that calls some
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[torch.Tensor]:
        return tensors_in((self.args, self.kwargs))

    def is_portable(self) -> bool:
        """Whether the tensors are plain enough to be copied byte by byte."""
        return all(is_plain(tensor) for tensor in self.tensors())

    def to(self, device: str) -> Call:
        """A copy with its own tensors; those that share a storage share one again."""
        mover = _Mover(device)
        names = [argument.name for argument in self.op._schema.arguments] if self.is_of_aten() else []
        args = tuple(
            value if name in HOST_ONLY else pytree.tree_map(mover, value)
            for name, value in itertools.zip_longest(names[: len(self.args)], self.args)
        )
        kwargs = {
            name: value if name in HOST_ONLY else pytree.tree_map(mover, value)
            for name, value in self.kwargs.items()
        }
        if self.makes_tensors():
            kwargs["device"] = torch.device(device)
        return Call(self.op, args, kwargs)

    def makes_tensors(self) -> bool:
        """Whether the device has to be named, since no argument lies on one."""
        return (
            self.is_of_aten()
            and any(argument.name == "device" for argument in self.op._schema.arguments)
            and not self.tensors()
        )

    def is_of_aten(self) -> bool:
        return isinstance(self.op, Overload)

    def __call__(self) -> Any:
        return self.op(*self.args, **self.kwargs)


def tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
    )


class _Mover:
    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return self._device
        if isinstance(leaf, torch.Generator):
            return torch.Generator(self._device).manual_seed(0)
        if isinstance(leaf, torch.UntypedStorage):
            return self._storage(leaf)
        return self._tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _storage(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        if source._cdata not in self._storages:
            as_bytes = torch.empty(0, dtype=torch.uint8).set_(source)
            self._storages[source._cdata] = as_bytes.clone().to(self._device).untyped_storage()
        return self._storages[source._cdata]

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            return self._tensor(tensor.detach()).requires_grad_()
        if tensor.is_conj():
            return self._tensor(tensor.conj()).conj()
        if tensor.is_neg():
            return torch._neg_view(self._tensor(torch._neg_view(tensor)))
        storage = self._storage(tensor.untyped_storage())
        empty = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def overloads() -> dict[str, Overload]:
    """Every aten op that the dispatcher has a schema for, by its name in schemas: "add.Tensor"."""
    found = {}
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        namespace, _, rest = name.partition("::")
        packet_name, _, overload = rest.partition(".")
        packet = getattr(torch.ops.aten, packet_name, None) if namespace == "aten" else None
        if packet is not None and (overload or "default") in packet.overloads():
            found[rest] = getattr(packet, overload or "default")
    return found


def name_of(op: Overload) -> str:
    return op._schema.name.partition("::")[2] + (
        "." + op._schema.overload_name if op._schema.overload_name else ""
    )
