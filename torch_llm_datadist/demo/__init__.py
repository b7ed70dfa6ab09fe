"""The main job: a transformer prefills in one process, another goes on from the KV cache that it sends."""


def main(argv: list[str]) -> int:
    """Runs `python -m torch_llm_datadist demo`; returns its exit status, 0 only for `identical: yes`."""
    from torch_llm_datadist.demo.launcher import run
    from torch_llm_datadist.demo.options import parse

    return run(parse(argv))
