"""Short runs of the fuzzers, always the same ones, and what they find when it is put there. ``make fuzz``
runs long ones."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import mutate, parser, planner, seeds
from tests.fuzz.listener import Attack
from tests.nodes import OK, link
from tests.recording_core import Node
from torch_llm_datadist import _native, wire
from torch_llm_datadist.control import Control


def test_the_corpus_holds_every_kind_of_message() -> None:
    kinds = {type(wire.decode(data)) for data in seeds.corpus()}

    assert kinds == set(parser.KINDS)


def parse_many(runs: int) -> int:
    chance, corpus = random.Random(3), seeds.corpus()
    return sum(parser.one_input(mutate.mutate(chance, corpus)) for _ in range(runs))


def test_any_bytes_are_a_message_or_one_of_two_errors() -> None:
    assert 100 < parse_many(5000) < 4000


def test_another_error_of_the_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = wire.decode

    def careless(data: bytes) -> wire.Message:
        message = decode(data)
        if isinstance(message, (wire.Sync, wire.Synced)) and message.serial >= 2**31:
            raise OverflowError
        return message

    monkeypatch.setattr(wire, "decode", careless)

    with pytest.raises(OverflowError):
        parse_many(5000)


def test_inputs_led_by_coverage_find_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", "parser", "--runs", "20000", "--atheris", str(tmp_path)]
    ended = subprocess.run(command, text=True, capture_output=True, timeout=240)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Done 20000 runs" in ended.stderr
    assert list(tmp_path.iterdir())  # inputs that reached what no other one had


def plan_many(runs: int) -> int:
    chance, corpus = random.Random(3), seeds.corpus_plans()
    return sum(planner.one_input(mutate.damage(chance, chance.choice(corpus), corpus)) for _ in range(runs))


def test_any_bytes_are_a_plan_of_their_pairs_or_are_refused_for_the_right_reason() -> None:
    assert {path.stem for path in seeds.PLANS.glob("*.bin")} == set(seeds.plans())
    assert 300 < plan_many(2000) < 1800


@pytest.mark.parametrize("wrong", ["a copy is missing", "a copy is wider", "a pair is not refused"])
def test_a_plan_that_moves_other_bytes_is_found(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    native = _native.load()
    plan_copies = native.plan_copies

    def careless(tensors: Any, src: Any, dst: Any, src_count: int, dst_count: int) -> Any:
        if wrong == "a pair is not refused":
            dst_count += 1
        copies = plan_copies(tensors, src, dst, src_count, dst_count)
        if wrong == "a copy is missing":
            return copies[:9]
        if wrong == "a copy is wider":
            return [(s, d, w + tensors[0][2] * (h == 4), h, *more) for s, d, w, h, *more in copies]
        return copies

    monkeypatch.setattr(native, "plan_copies", careless)

    with pytest.raises(AssertionError):
        plan_many(2000)


def attack(node: Callable[..., Node], messages: int) -> int:
    server, good = node(1, listens=True), node(9)
    server.register(1)

    def is_well() -> None:
        assert link(good, server) == OK
        assert good.links.unlink([1], 10.0, force=False) == [OK]

    attack = Attack(server.port, 1, is_well)
    attack.run(messages, well_every=200)
    return attack.sent


def test_a_listener_survives_hostile_sequences_and_serves_a_good_peer(node: Callable[..., Node]) -> None:
    assert attack(node, 600) >= 600


def test_an_error_that_nobody_foresaw_is_found(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Control._on_router_message

    def careless(control: Control, router: Any, frames: list[Any]) -> None:
        handle(control, router, frames)
        wire.decode(b"".join(frame.bytes for frame in frames[1:]))

    monkeypatch.setattr(Control, "_on_router_message", careless)

    with pytest.raises(AssertionError, match=r"MalformedMessageError|OtherProtocolError"):
        attack(node, 600)
