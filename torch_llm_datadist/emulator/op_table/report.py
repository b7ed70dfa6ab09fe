"""docs/emulated_ops.md: which aten ops run on emulated tensors, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from .check import Outcome, Verdict

HEAD = """\
# Aten ops on emulated tensors

Written by `make op-table` (`python -m torch_llm_datadist.emulator.op_table`), torch {torch}, torch_npu
{torch_npu}. Each overload that the dispatcher knows was called with sample arguments on the CPU and on an
emulated NPU, and the results and written arguments were compared. The samples are PyTorch's own test inputs,
as they arrive at the dispatcher, and calls derived from them.

"""
RUNS = (Outcome.EQUAL, Outcome.CLOSE, Outcome.RUNS)
# The first that fits a name is the reason why there is no sample.
KINDS = (
    (r"quantize|qscheme|q_scale|q_zero|q_per|qparams|fbgemm|int_repr|dyn_quant|int4pack|int8pack|dequantize",
     "quantized tensors"),
    (r"cudnn|cufft|cslt|miopen|cuda|_triton|mps|xpu|hip|_efficient_attention|flash_attention|_cutlass"
     r"|mem_eff|semi_structured", "kernels of another vendor's device"),
    (r"mkldnn|mkl|onednn|nnpack|vulkan|xnnpack", "layouts and kernels of CPU libraries"),
    (r"nested|jagged|padded_dense", "nested tensors"),
    (r"sparse|coalesce|_nnz|dense_dim|csr|csc|bsr|bsc|coo|_indices|^indices|^values|^_values|hspmm|sspaddmm|spmm"
     r"|smm|spdiags|spsolve|^_dimI|^_dimV|row_indices|col_indices", "sparse tensors"),
    (r"^sym_|_sym_|symint|prim|^_test|^_foobar|dep_token|propagate_xla|_make_dual|_unpack_dual|batch_dim",
     "PyTorch's own machinery"),
)  # fmt: skip
OTHER = "no sample arguments"


def reason_for_none(name: str) -> str:
    return next((why for pattern, why in KINDS if re.search(pattern, name)), OTHER)


def _grouped(names: Iterable[str]) -> str:
    """`add` (Scalar, Tensor, out), …"""
    packets: dict[str, list[str]] = {}
    for name in sorted(names):
        packet, _, overload = name.partition(".")
        packets.setdefault(packet, []).append(overload or "default")
    return ", ".join(
        f"`{packet}`" if overloads == ["default"] else f"`{packet}` ({', '.join(overloads)})"
        for packet, overloads in packets.items()
    )


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def _packets(names: Iterable[str]) -> int:
    return len({name.partition(".")[0] for name in names})


def runs(verdicts: dict[str, Verdict]) -> list[str]:
    return [name for name, verdict in verdicts.items() if verdict.outcome in RUNS]


def write(verdicts: dict[str, Verdict], overloads: Iterable[str], torch_npu_version: str) -> str:
    everything = list(overloads)
    out = HEAD.format(torch=torch.__version__.partition("+")[0], torch_npu=torch_npu_version)
    out += _row("", "overloads", "ops") + "|---|---|---|\n"
    out += _row("in the dispatcher", len(everything), _packets(everything))
    out += _row("**run**", f"**{len(runs(verdicts))}**", f"**{_packets(runs(verdicts))}**")
    for outcome in Outcome:
        names = [name for name, verdict in verdicts.items() if verdict.outcome is outcome]
        out += _row(outcome.value, len(names), _packets(names))
    untried = [name for name in everything if name not in verdicts]
    out += _row("not tried", len(untried), _packets(untried))

    out += "\n## What was tried and does not run\n\n" + _row("op", "what happens") + "|---|---|\n"
    for name, verdict in sorted(verdicts.items()):
        if verdict.outcome not in RUNS:
            out += _row(f"`{name}`", f"{verdict.outcome.value}: {_shortened(verdict.why)}")

    out += "\n## What was not tried, by what it works on\n\n"
    for why in sorted({reason_for_none(name) for name in untried}):
        out += f"**{why}**: {_grouped(n for n in untried if reason_for_none(n) == why)}\n\n"

    out += "## What runs\n\n"
    for outcome in RUNS:
        names = [name for name, verdict in verdicts.items() if verdict.outcome is outcome]
        out += f"**{outcome.value}**: {_grouped(names)}\n\n"
    return out.rstrip() + "\n"


def _shortened(why: str) -> str:
    why = re.sub(r"\.\./torch_npu/\S+ |0x[0-9a-f]+", "", why)
    return why if len(why) <= 160 else why[:157] + "…"


def listed_as_running(text: str) -> set[str]:
    """The overloads that a written table says run."""
    _, _, section = text.partition("## What runs\n")
    found = set()
    for packet, overloads in re.findall(r"`([^`]+)`(?: \(([^)]*)\))?", section):
        for overload in (overloads or "default").split(", "):
            found.add(packet if overload == "default" else f"{packet}.{overload}")
    return found
