"""Runs one of the fuzzers."""

from __future__ import annotations

import argparse
import importlib
import random
import resource
import sys
import time

from tests.fuzz import mutate, parser, seeds

MAY_GROW = 64 << 10  # KiB: an input has 1 MiB at most, and nothing of it stays


def fuzz_parser(runs: int, seed: int) -> str:
    chance, corpus = random.Random(seed), seeds.corpus()
    valid = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(runs):
        data = mutate.mutate(chance, corpus)
        try:
            valid += parser.one_input(data)
        except BaseException:
            print(f"run {number} of seed {seed}: {data!r}")
            raise
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MAY_GROW, f"the process has grown by {grown} KiB"
    return f"{runs} inputs, {valid} of them messages"


def fuzz_parser_with_atheris(runs: int, seed: int, found: str) -> None:
    """Does not return: libFuzzer ends the process. What it found interesting goes to the folder ``found``."""
    import atheris

    # Loaded once more, so that each of their branches counts. What decides in msgspec's C code is not seen:
    # half of the inputs are our own mutations of messages, which get past it.
    for name in ("tests.fuzz.parser", "torch_llm_datadist.wire"):
        sys.modules.pop(name)
    with atheris.instrument_imports(include=["tests.fuzz.parser", "torch_llm_datadist.wire"]):
        watched = importlib.import_module("tests.fuzz.parser")
    corpus = seeds.corpus()

    def one_input(data: bytes) -> None:
        watched.one_input(data)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, max_size))
        return mutate.mutate(random.Random(seed), [data, *corpus])[:max_size]

    arguments = [
        f"-runs={runs}",
        f"-seed={seed}",
        "-max_len=8192",
        "-rss_limit_mb=1024",
        "-malloc_limit_mb=64",
    ]
    atheris.Setup([sys.argv[0], *arguments, found, str(seeds.CORPUS)], one_input, custom_mutator=mutated)
    atheris.Fuzz()


def fuzz_listener(messages: int, seed: int) -> str:
    """Its native core moves nothing; all of the control plane is real."""
    from tests.fuzz.listener import Attack
    from tests.nodes import OK, link
    from tests.recording_core import Node

    server, good = Node(1, listens=True), Node(9)
    server.register(1)

    def is_well() -> None:
        code = link(good, server)
        assert code == OK, code
        assert good.links.unlink([1], 10.0, force=False) == [OK]

    attack = Attack(server.port, seed, is_well)
    attack.run(messages)
    for node in (good, server):
        node.links.close(2.0)
    return f"{attack.sent} messages, and a good peer was served all the time"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz")
    arguments.add_argument("what", choices=["parser", "listener", "corpus"])
    arguments.add_argument("--runs", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--atheris", metavar="FOLDER", help="led by coverage; finds go to that folder")
    args = arguments.parse_args()
    began = time.monotonic()
    if args.what == "corpus":
        seeds.write()
        return
    if args.atheris:
        fuzz_parser_with_atheris(args.runs, args.seed, args.atheris)
    said = (fuzz_parser if args.what == "parser" else fuzz_listener)(args.runs, args.seed)
    print(f"{args.what}: {said}, in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
