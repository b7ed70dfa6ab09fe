"""TransferWatch: tasks, tickets and transfers by layers, polled in one call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests.transfers import LAYERS, Always, Gates, link, start, to
from torch_llm_datadist import LLMStatusCode, TransferWatch, ops
from torch_llm_datadist.transfer_watch import Finished

SRC, DST = [0, 1], [2, 3]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = start(1, 0), start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def prepare(here: SimpleNamespace) -> datadist.Task:
    key = datadist.BlocksCacheKey(2)
    return here.manager.prepare_push(key, here.cache, SRC, DST)  # type: ignore[no-any-return]


def binding(state: SimpleNamespace, transfer: Any) -> datadist.Binding:
    bound = datadist.Binding(state.device, range(LAYERS))
    bound.bind([transfer], timeout_s=20)
    return bound


def forward(state: SimpleNamespace, bound: datadist.Binding, op: Any) -> None:
    with torch.npu.device(state.device):
        for layer in range(LAYERS):
            op(state.status, state.status, layer, bound.id)
        torch.npu.synchronize()


def poll_until(watch: TransferWatch[str], count: int) -> Finished[str]:
    """Polls until so many have ended; what it says in all."""
    found: Finished[str] = Finished()
    pause = threading.Event()
    for _ in range(3000):
        new = watch.poll()
        found.sent.update(new.sent)
        found.arrived.update(new.arrived)
        found.failed.update(new.failed)
        if len(found.sent) + len(found.arrived) + len(found.failed) == count:
            return found
        pause.wait(0.01)
    pytest.fail(f"only {found} has ended")


def test_poll_says_what_was_sent_and_what_has_arrived_once(pair: Any) -> None:
    here, there = pair
    task = prepare(here)
    watch: TransferWatch[str] = TransferWatch()
    watch.add("sender", task, blocks=SRC)
    watch.add("receiver", task.ticket, blocks=DST)
    watch.add("layers", here.manager.transfer_cache_async(here.cache, Always(), [to(2)], [4], [5]))
    waits = binding(there, task.ticket)
    sends = binding(here, task)
    assert poll_until(watch, 1) == Finished(sent={"layers"})
    assert watch.poll() == Finished()

    forward(here, sends, ops.push_layer)
    forward(there, waits, ops.wait_layer)

    assert poll_until(watch, 2) == Finished(sent={"sender"}, arrived={"receiver"})
    assert watch.poll() == Finished()
    assert len(watch) == 0


def test_a_failure_comes_with_its_code_and_blocks_and_hides_no_other(pair: Any) -> None:
    here, there = pair
    watch: TransferWatch[str] = TransferWatch()
    gates = Gates()
    running = here.manager.transfer_cache_async(here.cache, gates, [to(2)], [0], [0])
    watch.add("no such ticket", 1 << 40, blocks=(7,))
    watch.add("nowhere", here.manager.transfer_cache_async(here.cache, Always(), [to(9)], [0], [0]), [0])
    watch.add("running", running)
    given_up = prepare(here)
    watch.add("given up", given_up.ticket, DST)
    waits = binding(there, given_up.ticket)
    del given_up

    found = poll_until(watch, 3)

    assert not found.sent
    assert not found.arrived
    assert {name: failed.blocks for name, failed in found.failed.items()} == {
        "no such ticket": (7,), "nowhere": (0,), "given up": (2, 3),
    }  # fmt: skip
    assert found.failed["nowhere"].code == LLMStatusCode.LLM_NOT_YET_LINK
    assert "cluster 9" in found.failed["nowhere"].detail
    assert len(watch) == 1
    for gate in gates.open:
        gate.set()
    assert poll_until(watch, 1) == Finished(sent={"running"})
    waits.close()


def test_a_name_that_was_forgotten_is_not_reported(pair: Any) -> None:
    watch: TransferWatch[str] = TransferWatch()
    watch.add("x", 1 << 40)

    watch.forget("x")
    watch.forget("y")

    assert watch.poll() == Finished()


def test_add_refuses_what_is_no_transfer_and_a_name_in_use() -> None:
    watch: TransferWatch[str] = TransferWatch()
    for wrong in (None, True, "1", 1.0):
        with pytest.raises(TypeError):
            watch.add("x", wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        watch.add("x", 1, blocks=[None])  # type: ignore[list-item]
    watch.add("x", 1)
    with pytest.raises(ValueError, match="watched already"):
        watch.add("x", 2)


def test_a_ticket_that_was_discarded_has_not_arrived(pair: Any) -> None:
    here, _ = pair
    task = prepare(here)
    watch: TransferWatch[str] = TransferWatch()
    watch.add("it", task.ticket, blocks=DST)

    datadist.discard(task.ticket)

    found = poll_until(watch, 1)
    assert found.arrived == set()
    assert (found.failed["it"].detail, found.failed["it"].blocks) == ("discarded", tuple(DST))
