"""Calls of one overload made out of calls of its kin: `add_.Tensor` and `add.out` out of `add.Tensor`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .calls import Call, Overload, name_of, tensors_in
from .samples import Samples, try_call

# Other names of the same thing, which share no part of their name.
ALIASES = {
    "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "negative": "neg",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "absolute": "abs", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose",
    "swapdims": "transpose", "moveaxis": "movedim", "clip": "clamp", "fix": "trunc", "expit": "sigmoid",
    "psi": "digamma", "gammaln": "lgamma", "multigammaln": "mvlgamma", "__and__": "bitwise_and",
    "__or__": "bitwise_or", "__xor__": "bitwise_xor", "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift", "row_stack": "vstack", "orgqr": "householder_product",
    "ger": "outer", "_cast_Float": "square", "_cast_Double": "square", "_cast_Half": "square",
    "_cast_Int": "square", "_cast_Long": "square", "_cast_Short": "square", "_cast_Char": "square",
    "_cast_Byte": "square", "gammainc": "igamma", "gammaincc": "igammac",
}  # fmt: skip

# Their CPU kernels trust their arguments and end the process over wrong ones.
TRUSTING = {
    "_batch_norm_no_update", "_convert_indices_from_csr_to_coo", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "_spdiags", "_thnn_differentiable_gru_cell_backward",
    "_weight_norm_interface", "_weight_norm_interface_backward", "rrelu_with_noise", "slow_conv_transpose2d",
    "slow_conv_transpose3d",
}  # fmt: skip
# They start the device, and a process that did cannot be forked. The tests of pinned memory call them.
START_THE_DEVICE = {"_pin_memory", "pin_memory"}
UNTRIED = TRUSTING | START_THE_DEVICE


def kin(packet: str) -> str:
    """The name that an op shares with its in-place, copying, private and renamed forms."""
    name = packet
    if name.startswith("__i") and name.endswith("__") and name != "__iter__":
        name = "__" + name[3:]
    name = ALIASES.get(name, name)
    if not name.startswith("__"):
        name = name.strip("_").removeprefix("special_").removeprefix("linalg_").removeprefix("fft_")
        name = name.removesuffix("_copy").removesuffix("_functional").removesuffix("_legit")
    name = ALIASES.get(name, name)
    return name.strip("_")


def _packet(name: str) -> str:
    return name.partition(".")[0]


def _is_out(argument: Any) -> bool:
    return bool(argument.kwarg_only and argument.alias_info and argument.alias_info.is_write)


def _fits(value: Any, wanted: str) -> Any:
    """`value` in the type that the schema asks for."""
    if isinstance(value, torch.Tensor) and wanted in ("number", "float", "int", "Scalar"):
        return 2
    if isinstance(value, (int, float, complex)) and wanted == "Tensor":
        return torch.tensor(value)
    if isinstance(value, int) and wanted.startswith("List["):
        return [value]
    return value


class _Unfit(Exception):
    pass


def _values(call: Call) -> dict[str, Any]:
    arguments = call.op._schema.arguments
    return {**{a.name: v for a, v in zip(arguments, call.args, strict=False)}, **call.kwargs}


RENAMED = {"input": "self", "self": "input", "exponent": "other", "other": "exponent", "src": "other"}


def translate(call: Call, target: Overload, outs: list[torch.Tensor]) -> Call:
    given = _values(call)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    left = list(outs)
    for argument in target._schema.arguments:
        wanted = str(argument.type)
        if _is_out(argument):
            if wanted.startswith("List["):
                value: Any = left
                left = []
            elif left:
                value = left.pop(0)
            else:
                raise _Unfit
        elif argument.name in given or RENAMED.get(argument.name) in given:
            value = given.get(argument.name, given.get(RENAMED.get(argument.name, "")))
            value = _fits(value, wanted)
        elif argument.has_default_value() or wanted.startswith("Optional["):
            if argument.has_default_value():
                continue
            value = None
        elif wanted == "Generator":
            value = torch.Generator().manual_seed(0)
        elif wanted in ("number", "float"):
            value = 2
        else:
            raise _Unfit
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return Call(target, tuple(args), kwargs)


def _empty_outs(call: Call) -> Iterator[list[torch.Tensor]]:
    """Tensors for `out=`: of the right size, and to be resized."""
    try:
        results = tensors_in(call.to("cpu")())
    except Exception:
        return
    yield [torch.empty_strided(t.size(), t.stride(), dtype=t.dtype) for t in results]
    yield [torch.empty(0, dtype=t.dtype) for t in results]


def _has_outs(op: Overload) -> bool:
    return any(map(_is_out, op._schema.arguments))


def derive(samples: Samples, ops: Iterable[Overload]) -> None:
    by_kin: dict[str, list[Call]] = {}
    for name, calls in samples.calls.items():
        by_kin.setdefault(kin(_packet(name)), []).extend(calls)
    for op in ops:
        name = name_of(op)
        if name in samples.calls or _packet(name) in UNTRIED:
            continue
        for call in by_kin.get(kin(_packet(name)), ()):
            if not samples.wants(op):
                break
            for outs in _empty_outs(call) if _has_outs(op) else [[]]:
                try:
                    made = translate(call, op, outs)
                except _Unfit:
                    continue
                try_call(samples, made)


def _generic(wanted: str) -> list[Any]:
    tensors = [
        torch.rand(3, 4), torch.rand(4, 4), torch.rand(5), torch.tensor([2, 0, 1]), torch.rand(2, 3, 4, 4),
        torch.rand(2, 3, 4, 4, 4), torch.rand(()), torch.rand(3, 4) > 0.5,
    ]  # fmt: skip
    values: dict[str, list[Any]] = {
        "Tensor": tensors,
        "List[Tensor]": [[torch.rand(3, 4), torch.rand(3, 4)]],
        "int": [1, 2],
        "number": [2.0],
        "float": [0.5],
        "bool": [False],
        "List[int]": [[1], [2, 3], [1, 1], [2, 2, 2]],
        "List[bool]": [[True, True]],
        "Device": [torch.device("cpu")],
        "Generator": [torch.Generator().manual_seed(0)],
        "str": ["mean"],
    }
    return values.get(wanted, [])


def invent(samples: Samples, ops: Iterable[Overload]) -> None:
    """For ops without kin: small tensors and small numbers, by the types of the schema."""
    torch.manual_seed(0)
    for op in ops:
        if name_of(op) in samples.calls or _packet(name_of(op)) in UNTRIED:
            continue
        needed = [a for a in op._schema.arguments if not a.has_default_value()]
        choices = [
            [torch.empty(0)] if _is_out(a)
            else [*_generic(str(a.type).removeprefix("Optional[").removesuffix("]")
                  if str(a.type).startswith("Optional[") else str(a.type)),
                  *([None] if str(a.type).startswith("Optional[") else [])]
            for a in needed
        ]  # fmt: skip
        for values in itertools.islice(itertools.product(*choices), 300):
            args = tuple(v for a, v in zip(needed, values, strict=True) if not a.kwarg_only)
            kwargs = {a.name: v for a, v in zip(needed, values, strict=True) if a.kwarg_only}
            if try_call(samples, Call(op, args, kwargs)):
                break
