"""``python -m torch_llm_datadist.emulator.op_table [file]`` runs the sweep and writes the table."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from pathlib import Path

from torch_llm_datadist import emulator


def main(argv: list[str]) -> int:
    emulator.enable()
    warnings.simplefilter("ignore")
    import torch
    import torch_npu  # noqa: F401

    from . import calls, derive, report, samples, sweep

    torch.set_num_threads(1)  # a pool of threads does not survive the fork
    target = Path(argv[0] if argv else "docs/emulated_ops.md")
    ops = calls.overloads()
    with samples.on_the_host():
        found = samples.collect(samples.op_infos())
        derive.derive(found, ops.values())
        derive.derive(found, ops.values())  # in-place forms have out= forms of their own
        derive.invent(found, ops.values())
    verdicts = sweep.sweep(found.calls)
    target.write_text(report.write(verdicts, ops, metadata.version("torch_npu")))
    print(f"{target}: {len(report.runs(verdicts))} of {len(ops)} overloads run")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
