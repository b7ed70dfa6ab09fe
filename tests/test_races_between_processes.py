"""What a linked prefill or decode may forget, found in their traces, and the same with nothing forgotten.

The checker goes by what tasks waited for, so nothing here is slowed down to make the bytes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests.peers import Peer
from tests.streams import standing_still
from tests.test_ordering import LAYERS, NEW, prepare
from tests.test_push_blocks import linked_pair
from torch_llm_datadist import ops
from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.emulator.race_checker import Checker, Race
from torch_llm_datadist.emulator.trace_tail import TraceTail

ALL = range(LAYERS)
COPIES = {"aclrtMemcpyAsync", "aclrtMemcpy2dAsync"}


class Traced(SimpleNamespace):
    prefill: Peer
    decode: Peer
    traces: TraceTail

    def races(self) -> list[Race]:
        """Those since the last look."""
        for peer in (self.prefill, self.decode):
            peer.call(flush)
        return Checker().run(self.traces.read())


@pytest.fixture(scope="module")
def traced_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    directory = tmp_path_factory.mktemp("traces")
    started: list[Peer] = []

    def start(count: int) -> list[Peer]:
        started.extend(Peer(afresh=True) for _ in range(count))
        return started

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_LLM_DATADIST_EMULATE_TRACE", str(directory))
        environment.setenv("TORCH_LLM_DATADIST_EMULATE_RACES", "1")
        environment.setenv("TORCH_LLM_DATADIST_EMULATE_RACE_REPORTS", "")
        prefill, decode = linked_pair(start, 2 * LAYERS, 256)
    yield Traced(prefill=prefill, decode=decode, traces=TraceTail(directory))
    for peer in started:
        peer.stop()


@pytest.fixture
def pair(traced_pair: Traced) -> Traced:
    assert traced_pair.races() == []  # the link, and what the test before left
    return traced_pair


def flush(_: Any) -> None:
    torch.npu.synchronize()
    libraries.runtime().emuFlush()


def reported(_: Any) -> int:
    """How many races the process has found by itself so far."""
    libraries.runtime().emuForgetRaces()
    return int(libraries.runtime().emuRaces())


def write(state: Any, layer: int) -> None:
    for tensor in state.raw[2 * layer : 2 * layer + 2]:
        tensor.fill_(NEW)


def push(state: Any, layer: int, binding: datadist.Binding) -> None:
    ops.push_layer(state.status, state.raw[2 * layer], layer, binding.id)


def written_then_pushed(state: Any, layer: int, binding: datadist.Binding) -> None:
    write(state, layer)
    push(state, layer, binding)


def pushed_before_it_is_written(state: Any, layer: int, binding: datadist.Binding) -> None:
    push(state, layer, binding)
    write(state, layer)


def pushed_from_another_stream(state: Any, layer: int, binding: datadist.Binding) -> None:
    write(state, layer)
    with torch.npu.stream(state.side):
        push(state, layer, binding)


def pushed_from_another_stream_that_waited(state: Any, layer: int, binding: datadist.Binding) -> None:
    write(state, layer)
    state.side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(state.side):
        push(state, layer, binding)
    torch.npu.current_stream().wait_stream(state.side)


def send(
    state: Any,
    each: Callable[[Any, int, datadist.Binding], None] = written_then_pushed,
    finish_first: bool = True,
) -> None:
    torch.npu.set_device(state.device)
    state.side = torch.npu.Stream()
    binding = datadist.Binding(state.device, ALL)
    binding.bind([state.task])
    with standing_still():  # all is queued before anything runs: what the host sees ended is in order
        for layer in ALL:
            each(state, layer, binding)
        if finish_first:
            ops.finish(state.status, state.raw[0], binding.id)
        for tensor in state.raw:  # the blocks are used again
            tensor.fill_(0)
        if not finish_first:
            ops.finish(state.status, state.raw[0], binding.id)
    torch.npu.synchronize()
    assert state.status.item() == 0


def receive(state: Any, ticket: int, waits_for: Callable[[int], list[int]]) -> None:
    """Reads each layer behind the waits; queues everything at once."""
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, ALL)
    binding.bind([ticket])
    state.seen = []
    for layer in ALL:
        for awaited in waits_for(layer):
            ops.wait_layer(state.status, state.status, awaited, binding.id)
        state.seen += [tensor + 0 for tensor in state.raw[2 * layer : 2 * layer + 2]]
    _ = torch.npu.current_stream().npu_stream  # all is on the stream: what comes later is in order


def its_own(layer: int) -> list[int]:
    return [layer]


def nothing(layer: int) -> list[int]:
    return []


def the_first(layer: int) -> list[int]:
    return [0]


def the_one_before(layer: int) -> list[int]:
    return [max(layer - 1, 0)]


def the_last(layer: int) -> list[int]:
    return [LAYERS - 1]


def transfer(pair: Traced, waits_for: Callable[[int], list[int]], *how: object) -> list[Race]:
    ticket = pair.prefill.call(prepare)
    pair.decode.call(receive, ticket, waits_for)
    pair.prefill.call(send, *how)
    return pair.races()


@pytest.mark.parametrize("waits_for", [its_own, the_last])
def test_a_decode_that_waits_for_what_it_reads_does_not_race(
    pair: Traced, waits_for: Callable[[int], list[int]]
) -> None:
    assert transfer(pair, waits_for) == []


@pytest.mark.parametrize("waits_for", [nothing, the_first, the_one_before])
def test_a_decode_that_skips_a_wait_is_found_with_both_origins(
    pair: Traced, waits_for: Callable[[int], list[int]]
) -> None:
    races = transfer(pair, waits_for)

    assert races
    for race in races:
        ends = {race.earlier["pid"]: race.earlier, race.later["pid"]: race.later}
        assert ends[pair.prefill.pid]["name"] in COPIES
        assert ends[pair.decode.pid]["name"] == "aten::add.Tensor"
    assert pair.decode.call(reported) == 0  # by itself it does not see what the other one writes


@pytest.mark.parametrize("each", [written_then_pushed, pushed_from_another_stream_that_waited])
def test_a_prefill_that_pushes_what_it_has_written_does_not_race(pair: Traced, each: Any) -> None:
    before = pair.prefill.call(reported)

    assert transfer(pair, its_own, each) == []

    assert pair.prefill.call(reported) == before


@pytest.mark.parametrize("each", [pushed_before_it_is_written, pushed_from_another_stream])
def test_a_prefill_that_pushes_too_early_is_found_in_its_trace_and_by_itself(pair: Traced, each: Any) -> None:
    before = pair.prefill.call(reported)

    races = transfer(pair, its_own, each)

    assert races
    for race in races:
        assert (race.earlier["pid"], race.later["pid"]) == (pair.prefill.pid, pair.prefill.pid)
        assert len({race.earlier["name"], race.later["name"]} & COPIES) == 1
        assert "aten::fill_.Scalar" in (race.earlier["name"], race.later["name"])
    assert pair.prefill.call(reported) > before


def test_blocks_that_are_used_again_before_the_push_has_finished_are_found(pair: Traced) -> None:
    before = pair.prefill.call(reported)

    races = transfer(pair, its_own, written_then_pushed, False)

    assert races
    assert pair.prefill.call(reported) > before
