"""What Binding, tasks, tickets, watches and waits refuse: no call shows the words of another library, and
none goes on for ever."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests.conformance.case import INVALID, check_raises, row
from tests.transfers import LAYERS, link, start
from torch_llm_datadist import Binding, TransferWatch, discard, ops, ticket_state

NO_TICKET = 2**70
SRC, DST = [0], [1]
# What the core, torch and Python say where nobody has looked before them.
NOT_OURS = (
    "incompatible function arguments",
    "not supported between",
    "not iterable",
    "device id must",
    "c10_npu",
)


@pytest.fixture(scope="module")
def state() -> Iterator[SimpleNamespace]:
    here, there = start(1, 0), start(2, 1)
    link(here, there)
    here.binding = Binding(0, range(LAYERS))
    here.task = here.manager.prepare_push(datadist.BlocksCacheKey(2), here.cache, SRC, DST)
    here.publication = here.manager.publish(here.raw[0], here.cache, None, 2)
    here.watch = TransferWatch()
    yield here
    here.datadist.finalize()
    there.datadist.finalize()


def synchronizer(*arguments: Any) -> Callable[[Any], object]:
    return lambda state: datadist.StreamLayerSynchronizer(*arguments)


def binding(*arguments: Any) -> Callable[[Any], object]:
    return lambda state: Binding(*arguments)


def bind(*arguments: Any, **named: Any) -> Callable[[Any], object]:
    return lambda state: state.binding.bind(*arguments, **named)


def wait_linked(*arguments: Any, **named: Any) -> Callable[[Any], object]:
    return lambda state: state.datadist.wait_linked(*arguments, **named)


def push_layers(**named: Any) -> Callable[[Any], object]:
    def call(state: SimpleNamespace) -> None:
        ids = torch.tensor([0])
        ops.push_blocks(state.status, state.cache.tensors, ids, ids, link=state.datadist.link_id(2), **named)

    return call


ROWS = [
    row("a device's name", TypeError, binding("x", [0])),
    row("a device that is not there", INVALID, binding(99, [0])),
    row("a negative device", INVALID, binding(-1, [0])),
    row("no layers but a number", TypeError, binding(0, 3)),
    row("no layers but None", TypeError, binding(0, None)),
    row("no layers but a str", TypeError, binding(0, "01")),
    row("a layer's name", TypeError, binding(0, ["a"])),
    row("a negative layer", ValueError, binding(0, [-1])),
    row("a layer beyond any model", ValueError, binding(0, [10**6])),
    row("a layer beyond any int", ValueError, binding(0, [NO_TICKET])),
    row("a million layers", ValueError, binding(0, range(10**6))),
    row("layers without an end", ValueError, binding(0, count())),
    row("no layer at all", INVALID, binding(0, [])),
    row("a layer twice", INVALID, binding(0, [1, 1])),
    row("time as a str", TypeError, binding(0, [0], "x")),
    row("time None", TypeError, binding(0, [0], None)),
    row("time True", TypeError, binding(0, [0], True)),
    row("time nan", ValueError, binding(0, [0], math.nan)),
    row("time inf", ValueError, binding(0, [0], math.inf)),
    row("time 0", ValueError, binding(0, [0], 0)),
    row("bind a float", TypeError, bind(5.0)),
    row("bind a ticket without a list", TypeError, bind(5)),
    row("bind a str", TypeError, bind("5")),
    row("bind names", TypeError, bind(["x"])),
    row("bind a number beyond tickets", ValueError, bind([NO_TICKET])),
    row("bind a negative number", ValueError, bind([-1])),
    row("open layers by name", TypeError, bind([], open_layers=["x"])),
    row("open layers as a number", TypeError, bind([], open_layers=3)),
    row("open layers beyond the binding", INVALID, bind([], open_layers=[LAYERS])),
    row("bind for a time as a str", TypeError, bind([], timeout_s="x")),
    row("bind for nan", ValueError, bind([], timeout_s=math.nan)),
    row("state of a number beyond tickets", ValueError, lambda state: ticket_state(NO_TICKET)),
    row("state of 0", ValueError, lambda state: ticket_state(0)),
    row("state of a float", TypeError, lambda state: ticket_state(1.5)),  # type: ignore[arg-type]
    row("discard a number beyond tickets", ValueError, lambda state: discard(NO_TICKET)),
    row("discard None", TypeError, lambda state: discard(None)),  # type: ignore[arg-type]
    row("wait for a publication, a str", TypeError, lambda state: state.publication.wait_taken("x")),
    row("wait for a publication, nan", ValueError, lambda state: state.publication.wait_taken(math.nan)),
    row("watch a number beyond tickets", ValueError, lambda state: state.watch.add("x", NO_TICKET)),
    row("watch 0", ValueError, lambda state: state.watch.add("x", 0)),
    row("watch a str", TypeError, lambda state: state.watch.add("x", "y")),
    row("watch under a list", TypeError, lambda state: state.watch.add([], state.task)),
    row("wait for a link to a number", TypeError, wait_linked(5)),
    row("wait for a link to a str", TypeError, wait_linked("5")),
    row("wait for a link, a str", TypeError, wait_linked([7], timeout_s="x")),
    row("wait for a link, None", TypeError, wait_linked([7], timeout_s=None)),
    row("wait for a link, nan", ValueError, wait_linked([7], timeout_s=math.nan)),
    row("wait for a link, -1", ValueError, wait_linked([7], timeout_s=-1)),
    row("record layers of a device's name", TypeError, synchronizer("x", range(2))),
    row("record layers of a device that is not there", INVALID, synchronizer(99, range(2))),
    row("push a layer that is not there", INVALID, push_layers(src_layer=99)),
    row("push more layers than there are", INVALID, push_layers(num_layers=2**62)),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "call"), ROWS)
def test_a_bad_value_is_refused_in_our_own_words(state: SimpleNamespace, expected: Any, call: Any) -> None:
    said = check_raises(expected, lambda: call(state))

    assert not any(words in said for words in NOT_OURS)
    assert "expected" in said or "which has" in said
    assert len(state.watch) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"src_layer": 99}, "all layers from 99 on are not in the local cache"),
        ({"src_layer": 1, "num_layers": 2**62}, f"{2**62} layers from 1 on are not in the local cache"),
    ],
)
def test_layers_outside_are_named_as_they_were_given(
    state: SimpleNamespace, given: dict[str, int], words: str
) -> None:
    assert words in check_raises(INVALID, lambda: push_layers(**given)(state))


def test_what_one_bad_number_would_silence_is_still_reported(state: SimpleNamespace) -> None:
    watch: TransferWatch[str] = TransferWatch()
    task = state.manager.prepare_push(datadist.BlocksCacheKey(2), state.cache, SRC, DST)
    watch.add("good", task)
    with pytest.raises(ValueError, match=r"TransferWatch\.add: transfer"):
        watch.add("bad", NO_TICKET)

    state.manager.cancel(task)

    assert set(watch.poll().failed) == {"good"}
