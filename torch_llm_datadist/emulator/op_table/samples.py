"""Sample calls of aten ops: PyTorch's own test inputs, as they arrive at the dispatcher."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import Call, Overload, is_plain, name_of, tensors_in

DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)
SAMPLES_PER_OP = 6  # of one dtype
CALLS_PER_OVERLOAD = 3


class Samples:
    """Calls by the name of their overload, at most a few of each."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}

    def wants(self, op: Overload) -> bool:
        return len(self.calls.get(name_of(op), ())) < CALLS_PER_OVERLOAD

    def add(self, call: Call) -> None:
        if self.wants(call.op) and call.is_portable():
            self.calls.setdefault(name_of(call.op), []).append(call.to("cpu"))


class _Record(TorchDispatchMode):
    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self._samples = samples

    def __torch_dispatch__(
        self, func: Overload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, dict(kwargs or {}))
        wanted = func.namespace == "aten" and self._samples.wants(func) and call.is_portable()
        before = call.to("cpu") if wanted else None  # it may write its arguments
        result = func(*args, **(kwargs or {}))
        if before is not None and all(map(is_plain, tensors_in(result))):
            self._samples.add(before)
        return result


def _inputs(op: Any, dtype: torch.dtype, requires_grad: bool) -> list[Any]:
    torch.manual_seed(0)
    try:
        return list(
            itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=requires_grad), SAMPLES_PER_OP)
        )
    except Exception:  # a few make no inputs of some dtype
        return []


def _run(samples: Samples, function: Any, sample: Any) -> None:
    call = Call(function, (sample.input, *sample.args), sample.kwargs)
    with contextlib.suppress(Exception), _Record(samples):  # inputs that an op is known to refuse
        result = (call.to("cpu") if call.is_portable() else call)()
        wanted = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(tensor) for tensor in wanted])


def _call_overloads(samples: Samples, op: Any, inputs: list[Any]) -> None:
    """Ops that PyTorch composes out of others never arrive at a mode: called by name."""
    packet = getattr(torch.ops.aten, op.aten_name or op.name, None)
    for overload in packet.overloads() if packet is not None else ():
        target = getattr(packet, overload)
        for sample in inputs:
            if samples.wants(target):
                try_call(samples, Call(target, (sample.input, *sample.args), sample.kwargs))


def try_call(samples: Samples, call: Call) -> bool:
    """Keeps the call if the CPU can do it."""
    if not call.is_portable():
        return False
    try:
        results = call.to("cpu")()
    except Exception:
        return False
    if not all(is_plain(tensor) for tensor in tensors_in(results)):
        return False
    samples.add(call)
    return True


@contextlib.contextmanager
def on_the_host() -> Iterator[None]:
    """Some samples would start the device, and a process that did must not be forked for the sweep."""
    with mock.patch("torch_npu._C._npu_init", side_effect=RuntimeError("samples are made on the CPU")):
        yield


def op_infos() -> list[Any]:
    """PyTorch's descriptions of its ops, which come with sample inputs."""
    from torch.testing._internal import common_methods_invocations as invocations

    databases = [getattr(invocations, name) for name in dir(invocations) if name.endswith("op_db")]
    unique = {id(op): op for database in databases if isinstance(database, list) for op in database}
    return list(unique.values())


def collect(infos: Iterable[Any]) -> Samples:
    samples = Samples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in infos:
            variants = [
                op.op,
                op.inplace_variant,
                op.method_variant if hasattr(op, "method_variant") else None,
            ]
            for dtype in DTYPES:
                if dtype not in op.supported_dtypes("cpu"):
                    continue
                inputs = _inputs(op, dtype, requires_grad=False)
                for function in filter(None, variants):
                    for sample in inputs:
                        _run(samples, function, sample)
                if op.supports_autograd and dtype in op.supported_backward_dtypes("cpu"):
                    for sample in _inputs(op, dtype, requires_grad=True):
                        _run(samples, op.op, sample)
                _call_overloads(samples, op, inputs)
    return samples
