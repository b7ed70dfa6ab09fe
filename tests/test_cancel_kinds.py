"""``cancel`` of what is no plain task or ticket: publications, transfers by layers, numbers of nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from tests import instances
from tests.transfers import (
    LAYERS,
    Always,
    Calling,
    Gates,
    error_of,
    hold_cut_off,
    link,
    restore,
    start,
    to,
    until,
)
from torch_llm_datadist import (
    BlocksCacheKey,
    LLMException,
    LLMStatusCode,
    StreamLayerSynchronizer,
    ticket_state,
)
from torch_llm_datadist.emulator import faults

Pair = tuple[SimpleNamespace, SimpleNamespace]
WITHIN_S = 20.0
FAILED = LLMStatusCode.LLM_FAILED
SRC, DST = [0, 1], [2, 3]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    here, there = start(1, 0, sync_kv_timeout=20_000), start(2, 1, sync_kv_timeout=20_000)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.reset()


def hold(here: SimpleNamespace) -> faults.Armed:
    return faults.hold_copy(after=0, direction="peer", address=here.raw[0][SRC[0]].data_ptr())


# A number that no ticket has.


def test_cancel_of_a_number_that_the_peer_never_issued_says_so_and_is_forgotten(pair: Pair) -> None:
    here, there = pair
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, SRC, DST)
    until(lambda: ticket_state(task.ticket).detail == "nobody waits for it yet")
    of_nobody = task.ticket + 5  # the same slot, uses of it later

    error = error_of(lambda: there.manager.cancel(of_nobody, timeout_s=WITHIN_S))

    assert error.status_code == LLMStatusCode.LLM_PARAM_INVALID
    assert "has issued none of that number" in str(error)
    assert ticket_state(of_nobody).detail == "not confirmed by its sender yet"
    assert ticket_state(task.ticket).detail == "nobody waits for it yet"
    here.manager.cancel(task, timeout_s=WITHIN_S)


# Publications.


def publish(here: SimpleNamespace) -> object:
    with torch.npu.device(here.device):
        return here.manager.publish(here.raw[0], here.cache, None, 2)


def test_a_publication_that_is_cancelled_says_by_whom(pair: Pair) -> None:
    here, _ = pair
    publication = publish(here)

    here.manager.cancel(publication, timeout_s=WITHIN_S)

    assert publication.state() == (True, FAILED, "cancelled by its holder")  # type: ignore[attr-defined]


def test_a_publication_that_is_cancelled_while_it_is_read_names_what_is_read(pair: Pair) -> None:
    here, there = pair
    restore(here)
    held = hold(here)
    publication = publish(here)
    errors: list[LLMException] = []

    def pull() -> None:
        torch.npu.set_device(there.device)
        ticket = publication.ticket  # type: ignore[attr-defined]
        errors.append(
            error_of(
                lambda: there.manager.pull_blocks(BlocksCacheKey(1), there.cache, SRC, DST, ticket=ticket)
            )
        )

    pulling = threading.Thread(target=pull)
    pulling.start()
    held.wait()
    cut_off = hold_cut_off()

    error = error_of(lambda: here.manager.cancel(publication, timeout_s=0.1))

    assert error.status_code == LLMStatusCode.LLM_TIMEOUT
    assert "may still be read; nothing is written" in str(error)
    assert "written" not in str(error).replace("nothing is written", "")
    cut_off.disarm()
    here.manager.cancel(publication, timeout_s=WITHIN_S)
    pulling.join(WITHIN_S)
    assert len(errors) == 1


# Transfers by layers.


def test_a_transfer_by_layers_is_cancelled_before_a_layer_is_ready(pair: Pair) -> None:
    here, there = pair
    restore(here)
    before = restore(there)
    gates = Gates()
    task = here.manager.transfer_cache_async(here.cache, gates, [to(2)], SRC, DST)
    assert gates.reached[0].wait(WITHIN_S)

    here.manager.cancel(task, timeout_s=WITHIN_S)

    assert task.get_results(0) == [FAILED]
    assert "cancelled by its sender" in task.details()[0]
    for opened in gates.open:
        opened.set()  # the layer is ready now, and nobody sends it
    until(task.is_settled)
    assert torch.equal(instances.content(there), before)
    assert not gates.reached[1].is_set()


def test_a_transfer_by_layers_that_copies_is_cut_off_and_until_then_in_doubt(pair: Pair) -> None:
    here, there = pair
    restore(here)
    before = restore(there)
    held = hold(here)
    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], SRC, DST)
    held.wait()
    cut_off = hold_cut_off()

    error = error_of(lambda: here.manager.cancel(task, timeout_s=0.1))

    assert error.status_code == LLMStatusCode.LLM_TIMEOUT
    assert [(list(d.blocks), d.cluster_id) for d in error.blocks_in_doubt] == [(DST, 2)]
    assert not task.is_settled()
    cut_off.disarm()
    here.manager.cancel(task, timeout_s=WITHIN_S)
    assert task.is_settled()
    assert torch.equal(instances.content(there), before)
    assert here.manager.blocks_in_doubt() == []


def test_one_that_has_ended_stays_as_it_is(pair: Pair) -> None:
    here, _ = pair
    task = here.manager.transfer_cache_async(here.cache, Always(), [to(2)], SRC, DST)
    assert task.synchronize(20_000) == LLMStatusCode.LLM_SUCCESS

    here.manager.cancel(task)

    assert task.get_results(0) == [LLMStatusCode.LLM_SUCCESS]


def test_a_transfer_that_a_stream_releases_is_cancelled(pair: Pair) -> None:
    here, there = pair
    restore(here)
    before = restore(there)
    with torch.npu.device(here.device):
        synchronizer = StreamLayerSynchronizer(here.device, range(LAYERS))
        task = here.manager.transfer_cache_async(here.cache, synchronizer, [to(2)], SRC, DST)

        here.manager.cancel(task, timeout_s=WITHIN_S)

        assert task.get_results(0) == [FAILED]
        for layer in range(LAYERS):
            synchronizer.record_layer(layer, here.raw[0])
        torch.npu.synchronize()
    assert torch.equal(instances.content(there), before)


def test_a_synchronizer_may_cancel_its_own_transfer(pair: Pair) -> None:
    """From the worker itself, which holds nothing meanwhile."""
    here, _ = pair
    given: list[object] = []
    has_task = threading.Event()

    def cancel(layer: int) -> bool:
        assert has_task.wait(WITHIN_S)
        here.manager.cancel(given[0], timeout_s=WITHIN_S)
        return True

    task = here.manager.transfer_cache_async(here.cache, Calling(cancel), [to(2)], SRC, DST)
    given.append(task)
    has_task.set()

    assert task.synchronize(20_000) == FAILED
