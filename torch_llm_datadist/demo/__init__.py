"""The main job: a transformer prefills in one process, another goes on from the KV cache that it sends."""

import importlib.util
import sys


def main(argv: list[str]) -> int:
    """Runs `python -m torch_llm_datadist demo`; returns its exit status, 0 only for `identical: yes`."""
    missing = [name for name in ("transformers", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        extra = "pip install 'torch_llm_datadist[demo]'"
        print(f"the demo needs {' and '.join(missing)}: {extra}", file=sys.stderr)
        return 2

    from torch_llm_datadist.demo.launcher import run
    from torch_llm_datadist.demo.options import parse

    return run(parse(argv))
