"""Runs sample calls on the emulated NPU and says how the results compare with the CPU's."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from .calls import Call, Overload, name_of, tensors_in


class Outcome(enum.Enum):
    EQUAL = "equals the CPU bit by bit"
    CLOSE = "equals the CPU within its dtype's tolerance"
    RUNS = "runs; its values are random or undefined"
    DIFFERS = "differs from the CPU"
    RAISES = "raises"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    why: str = ""


# What the values are is left to chance or to what was in memory.
UNDEFINED = (
    "empty", "new_empty", "resize", "random", "rand", "normal", "bernoulli", "dropout", "uniform",
    "exponential", "geometric", "cauchy", "poisson", "multinomial", "binomial", "rrelu",
    "standard_gamma", "sample_dirichlet", "fill_mem_eff",
    "make_dep_token",
    "ctc_loss",  # its second result is not written everywhere
)  # fmt: skip


def _has_defined_values(op: Overload) -> bool:
    if torch.Tag.nondeterministic_seeded in op.tags:
        return False
    name = name_of(op).strip("_")
    return not any(part.strip("_") in name for part in UNDEFINED)


def _compare(op: Overload, expected: list[torch.Tensor], found: list[torch.Tensor]) -> Verdict:
    if len(expected) != len(found):
        return Verdict(Outcome.DIFFERS, f"{len(found)} tensors instead of {len(expected)}")
    outcome = Outcome.EQUAL if _has_defined_values(op) else Outcome.RUNS
    for cpu, npu in zip(expected, found, strict=True):
        if cpu.dtype != npu.dtype or cpu.shape != npu.shape:
            return Verdict(
                Outcome.DIFFERS,
                f"{npu.dtype} {list(npu.shape)} instead of {cpu.dtype} {list(cpu.shape)}",
            )
        if outcome is Outcome.RUNS:
            continue
        on_host = npu.cpu()
        if cpu.dtype == torch.complex32:  # which compares with nothing
            on_host, cpu = on_host.to(torch.complex64), cpu.to(torch.complex64)
        same = torch.equal(on_host, cpu) or (
            cpu.is_floating_point() and torch.equal(on_host.nan_to_num(nan=1.5), cpu.nan_to_num(nan=1.5))
        )
        if same:
            continue
        try:
            torch.testing.assert_close(on_host, cpu, equal_nan=True)
            outcome = Outcome.CLOSE
        except AssertionError as error:
            return Verdict(Outcome.DIFFERS, str(error).split("\n\n")[0].replace("\n", " "))
    return Verdict(outcome)


def check(call: Call) -> Verdict:
    cpu, npu = call.to("cpu"), call.to("npu")
    expected = cpu()
    try:
        found = npu()
        torch.accelerator.synchronize()
    except Exception as error:
        return Verdict(Outcome.RAISES, str(error).strip().split("\n")[0])
    verdict = _compare(call.op, tensors_in((expected, cpu.tensors())), tensors_in((found, npu.tensors())))
    plain = [value for value in (expected, found) if not tensors_in(value)]
    if (
        len(plain) == 2
        and isinstance(plain[0], (bool, int, float))
        and plain[0] != plain[1]
        and name_of(call.op) != "get_device"
    ):
        return Verdict(Outcome.DIFFERS, f"{plain[1]} instead of {plain[0]}")
    return verdict


_WORST_FIRST = [Outcome.RAISES, Outcome.DIFFERS, Outcome.RUNS, Outcome.CLOSE, Outcome.EQUAL]


def worst(verdicts: list[Verdict]) -> Verdict:
    return min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.outcome))
