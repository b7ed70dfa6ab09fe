"""Runs one of the fuzzers."""

from __future__ import annotations

import argparse
import importlib
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import mutate, seeds

Mutate = Callable[[random.Random, list[bytes]], bytes]
MAY_GROW = 64 << 10  # KiB: an input has 1 MiB at most, and nothing of it stays


def target_of(what: str) -> tuple[Callable[[bytes], bool], list[bytes], Path, Mutate]:
    """What takes an input, the corpus and where it lies, and what makes another input of some."""
    if what == "parser":
        from tests.fuzz import parser

        return parser.one_input, seeds.corpus(), seeds.CORPUS, mutate.mutate
    from tests.fuzz import planner

    return planner.one_input, seeds.corpus_plans(), seeds.PLANS, damaged


def damaged(chance: random.Random, corpus: list[bytes]) -> bytes:
    return mutate.damage(chance, chance.choice(corpus), corpus)


def fuzz(what: str, runs: int, seed: int) -> str:
    one_input, corpus, _, mutate_any = target_of(what)
    chance = random.Random(seed)
    valid = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(runs):
        data = mutate_any(chance, corpus)
        try:
            valid += one_input(data)
        except BaseException:
            print(f"run {number} of seed {seed}: {data!r}")
            raise
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MAY_GROW, f"the process has grown by {grown} KiB"
    return f"{runs} inputs, {valid} of them {'messages' if what == 'parser' else 'plans'}"


def fuzz_with_atheris(what: str, runs: int, seed: int, found: str) -> None:
    """Does not return: libFuzzer ends the process. What it found interesting goes to the folder ``found``."""
    import atheris

    # Loaded once more, so that each of their branches counts. What decides in msgspec's C code and in the
    # planner's C++ is not seen, but for the planner what its copies are compared with is: half of the inputs
    # are our own mutations, which get past the first checks.
    names = ["tests.fuzz.parser", "torch_llm_datadist.wire"] if what == "parser" else ["tests.fuzz.planner"]
    target_of(what)
    for name in names:
        sys.modules.pop(name)
    with atheris.instrument_imports(include=names):
        *_, watched = (importlib.import_module(name) for name in reversed(names))
    _, corpus, folder, mutate_any = target_of(what)

    def one_input(data: bytes) -> None:
        watched.one_input(data)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, max_size))
        return mutate_any(random.Random(seed), [data, *corpus])[:max_size]

    # libFuzzer judges by the highest there ever was, to which also the process counts that started this one.
    highest_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    arguments = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={8192 if what == 'parser' else 512}",
        f"-rss_limit_mb={highest_mb + (256 if what == 'parser' else 3072)}",
        "-malloc_limit_mb=64",
        f"-artifact_prefix={found}/",
    ]
    atheris.Setup([sys.argv[0], *arguments, found, str(folder)], one_input, custom_mutator=mutated)
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
    arguments.add_argument("what", choices=["parser", "planner", "listener", "corpus"])
    arguments.add_argument("--runs", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--atheris", metavar="FOLDER", help="led by coverage; finds go to that folder")
    args = arguments.parse_args()
    began = time.monotonic()
    if args.what == "corpus":
        seeds.write()
        return
    if args.atheris:
        fuzz_with_atheris(args.what, args.runs, args.seed, args.atheris)
    listens = args.what == "listener"
    said = fuzz_listener(args.runs, args.seed) if listens else fuzz(args.what, args.runs, args.seed)
    print(f"{args.what}: {said}, in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
