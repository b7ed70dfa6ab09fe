"""transfer_cache_async: bytes, order, results of each config, workers. Three instances in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.transfers import (
    BLOCKS,
    LAYERS,
    OK,
    Always,
    Calling,
    Gates,
    link,
    moved,
    pattern,
    restore,
    start,
    to,
)
from torch_llm_datadist import LLMStatusCode, emulator
from torch_llm_datadist.layer_transfer import LayerTransfers

FAILED = LLMStatusCode.LLM_FAILED
INVALID = LLMStatusCode.LLM_PARAM_INVALID
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def three() -> Iterator[list[SimpleNamespace]]:
    """Cluster 1 is linked to 2 and 3."""
    made = [start(1 + i, i) for i in range(3)]
    link(made[0], made[1])
    link(made[0], made[2])
    yield made
    for each in made:
        each.datadist.finalize()


@pytest.fixture
def sender(three: list[SimpleNamespace]) -> SimpleNamespace:
    for each in three:
        restore(each)
    return three[0]


def send(sender: SimpleNamespace, synchronizer: datadist.LayerSynchronizer, configs: object, *blocks: object):  # type: ignore[no-untyped-def]
    return sender.manager.transfer_cache_async(sender.cache, synchronizer, configs, *blocks)


def content(state: SimpleNamespace) -> torch.Tensor:
    return instances.content(state)


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        (range(LAYERS), range(LAYERS)),
        (range(1), range(1)),
        (range(1, 3), range(1, 3)),
        (range(2, 4), range(2)),
        (range(0, 3), range(1, 4)),
        (range(3, 4), range(0, 1)),
    ],
)
def test_layer_src_start_plus_k_goes_to_layer_dst_start_plus_k(
    three: list[SimpleNamespace], sender: SimpleNamespace, src: range, dst: range
) -> None:
    """Mended: in the original only when the source range starts at 0."""
    task = send(sender, Always(), [to(2, src, dst)], [1, 2, 5], [4, 0, 3])

    assert task.synchronize(WAIT_MS) == OK
    assert task.get_results() == [OK]
    assert torch.equal(content(three[1]), moved(pattern(2), pattern(1), src, dst, [1, 2, 5], [4, 0, 3]))
    assert torch.equal(content(three[2]), pattern(3))


def test_two_destinations_get_their_own_layers(three: list[SimpleNamespace], sender: SimpleNamespace) -> None:
    synchronizer = Always()
    configs = (to(2, range(1, 3)), to(3, range(2, 4), range(2)))

    task = send(sender, synchronizer, configs, [0], [5])

    assert task.get_results(WAIT_MS) == [OK, OK]
    assert torch.equal(content(three[1]), moved(pattern(2), pattern(1), range(1, 3), range(1, 3), [0], [5]))
    assert torch.equal(content(three[2]), moved(pattern(3), pattern(1), range(2, 4), range(2), [0], [5]))
    assert synchronizer.asked == [(1, None), (2, None), (3, None)]  # once each, in order, and no other layer


def test_two_configs_for_one_cluster_have_a_result_each(
    three: list[SimpleNamespace], sender: SimpleNamespace
) -> None:
    """Mended: in the original the two share one."""
    task = send(sender, Always(), [to(2, range(1)), to(2, range(1, 2), model_id=9)], [0], [1])

    assert task.get_results(WAIT_MS) == [OK, NO_CACHE]
    assert task.synchronize() == NO_CACHE
    assert torch.equal(content(three[1]), moved(pattern(2), pattern(1), range(1), range(1), [0], [1]))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_destination_does_not_stop_the_others(
    three: list[SimpleNamespace], sender: SimpleNamespace, failing: int
) -> None:
    """Mended: in the original the whole task stops, and the others keep None."""
    configs = [to(2), to(3)]
    configs.insert(failing, to(9))

    task = send(sender, Always(), configs, [0, 1], [2, 3])

    results = task.get_results(WAIT_MS)
    assert results == [NOT_LINKED if i == failing else OK for i in range(3)]
    assert task.synchronize() == NOT_LINKED
    assert "no link to cluster 9" in task.details()[failing]
    assert "transfer_configs[" in task.details()[failing]
    for state in three[1:]:
        assert torch.equal(
            content(state),
            moved(pattern(state.cluster_id), pattern(1), range(LAYERS), range(LAYERS), [0, 1], [2, 3]),
        )


def test_an_exception_in_the_synchronizer_fails_the_configs_of_that_layer(
    three: list[SimpleNamespace], sender: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Mended: in the original it is printed, the results stay None and synchronize() says success."""

    def raise_at_2(layer: int) -> bool:
        if layer == 2:
            raise ValueError("the model is gone")
        return True

    task = send(sender, Calling(raise_at_2), [to(2), to(3, range(2))], [0], [0])

    assert task.get_results(WAIT_MS) == [FAILED, OK]
    assert task.synchronize() == FAILED
    assert "ValueError: the model is gone" in task.details()[0]
    assert "the synchronizer raised for layer 2" in caplog.text
    after = content(three[1])
    assert torch.equal(after[4:], pattern(2)[4:])  # what was not released was not sent
    assert torch.equal(content(three[2]), moved(pattern(3), pattern(1), range(2), range(2), [0], [0]))


@pytest.mark.races_on_purpose("looks at a cache that the layers before may still write")
@pytest.mark.parametrize("falsy", [False, None, 0])
def test_a_falsy_answer_ends_the_configs_that_carry_the_layer(
    three: list[SimpleNamespace], sender: SimpleNamespace, falsy: object
) -> None:
    """Mended: in the original the whole task stops."""
    asked: list[int] = []

    def answer(layer: int) -> object:
        asked.append(layer)
        return falsy if layer == 1 else True

    task = send(sender, Calling(answer), [to(2), to(3, range(2, 4))], [0], [0])

    assert task.get_results(WAIT_MS) == [INVALID, OK]
    assert asked == [0, 1, 2, 3]
    assert torch.equal(content(three[1])[2:], pattern(2)[2:])


def test_nobody_is_asked_when_every_destination_has_failed(sender: SimpleNamespace) -> None:
    synchronizer = Always()

    task = send(sender, synchronizer, [to(9)], [0], [0])

    assert task.synchronize(WAIT_MS) == NOT_LINKED
    assert synchronizer.asked == []


@pytest.mark.races_on_purpose("looks whether the layer is there already")
def test_a_layer_leaves_when_it_is_ready_and_no_earlier(
    three: list[SimpleNamespace], sender: SimpleNamespace
) -> None:
    """Lifted: in the original layers follow one another, each with a deadline of its own."""
    gates = Gates()
    task = send(sender, gates, [to(2)], [0], [0])
    whole = moved(pattern(2), pattern(1), range(LAYERS), range(LAYERS), [0], [0])

    for layer in range(LAYERS):
        assert gates.reached[layer].wait(30)
        assert not task.done()
        assert task.synchronize(0) == TIMEOUT
        assert task.get_results(0) == [TIMEOUT]
        assert torch.equal(content(three[1])[2 * layer :], pattern(2)[2 * layer :])
        gates.open[layer].set()
        arrived(three[1], whole, 2 * layer + 2)

    assert task.synchronize(WAIT_MS) == OK
    assert task.done()


def arrived(state: SimpleNamespace, wanted: torch.Tensor, tensors: int) -> None:
    """Waits until the first tensors hold what is wanted: a receiver is not told."""
    pause = threading.Event()
    for _ in range(3000):
        if torch.equal(content(state)[:tensors], wanted[:tensors]):
            return
        pause.wait(0.01)
    pytest.fail(f"the first {tensors} tensors have not arrived")


def test_a_config_that_has_ended_says_so_while_another_runs(sender: SimpleNamespace) -> None:
    """Mended: in the original all are LLM_TIMEOUT until the last has ended."""
    gates = Gates()
    gates.open[0].set()
    task = send(sender, gates, [to(9), to(2, range(1)), to(3)], [0], [0])

    assert gates.reached[1].wait(30)
    pause = threading.Event()
    for _ in range(3000):
        if task.get_results(0)[1] == OK:
            break
        pause.wait(0.01)

    assert task.get_results(0) == [NOT_LINKED, OK, TIMEOUT]
    assert task.synchronize(1) == TIMEOUT
    for gate in gates.open:
        gate.set()
    assert task.get_results(WAIT_MS) == [NOT_LINKED, OK, OK]


def test_no_configs_are_a_success(sender: SimpleNamespace) -> None:
    """3.2 row 11."""
    task = send(sender, Always(), [])

    assert task.synchronize(WAIT_MS) == OK
    assert task.get_results() == []


@pytest.mark.parametrize("method", ["synchronize", "get_results"])
@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_cache_task_refuses_bad_timeouts(
    sender: SimpleNamespace, method: str, timeout: object, error: type[Exception]
) -> None:
    task = send(sender, Always(), [])

    with pytest.raises(error):
        getattr(task, method)(timeout)


def test_a_task_can_be_awaited(sender: SimpleNamespace) -> None:
    gates = Gates()
    task = send(sender, gates, [to(2)], [0], [0])

    async def wait_for_it() -> LLMStatusCode:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_status(task), 0.02)
        for gate in gates.open:
            gate.set()
        return await task

    assert asyncio.run(wait_for_it()) == OK


async def _status(task: datadist.CacheTask) -> LLMStatusCode:
    return await task


def test_event_wait_in_a_synchronizer_orders_the_layer_as_event_synchronize_does(
    three: list[SimpleNamespace], sender: SimpleNamespace
) -> None:
    """The manual's own example calls ``event.wait()``, which blocks no host; 5.6 warns of it. Here the
    worker's stream is current in the synchronizer, and the layer leaves behind what is queued on it.

    Mended: in the original it orders nothing.
    """
    done = [torch.npu.Event() for _ in range(LAYERS)]
    layers = [torch.full_like(raw, 7) for raw in sender.raw[:2]]
    model = torch.npu.Stream(0)
    torch.npu.synchronize(0)
    with torch.npu.stream(model):
        emulator.delay_stream(0.3)
        for layer in range(LAYERS):
            for raw, new in zip(sender.raw[2 * layer : 2 * layer + 2], layers, strict=True):
                raw.copy_(new)
            done[layer].record()

    def wait_on_the_stream(layer: int) -> bool:
        done[layer].wait()
        return True

    task = send(sender, Calling(wait_on_the_stream), [to(2)], list(range(BLOCKS)), list(range(BLOCKS)))

    assert task.synchronize(WAIT_MS) == OK
    assert (content(three[1]) == 7).all()


def test_transfers_share_a_bounded_number_of_threads(sender: SimpleNamespace) -> None:
    """Mended: in the original each has a thread of its own."""
    synchronizer = Always()
    for _ in range(40):
        task = send(sender, synchronizer, [to(2), to(3)], [0], [0])
        assert task.synchronize(WAIT_MS) == OK

    assert len(synchronizer.threads) <= sender.manager._layer_transfers.pool.thread_count <= 16
    assert all(t.daemon and t.name.startswith("llm_datadist-1-transfer") for t in synchronizer.threads)


@pytest.mark.races_on_purpose("all transfers write the same bytes to the same blocks")
def test_many_transfers_at_once_all_end(three: list[SimpleNamespace], sender: SimpleNamespace) -> None:
    """More than the workers; a transfer takes none of the link's tickets, so there is no end of them."""
    gates = Gates()
    tasks = [send(sender, gates, [to(2), to(3)], [i % BLOCKS], [i % BLOCKS]) for i in range(60)]
    assert sender.manager._layer_transfers.pool.thread_count == 16  # the default of transfer_workers

    for gate in gates.open:
        gate.set()

    assert [task.synchronize(WAIT_MS) for task in tasks] == [OK] * 60
    for _ in range(300):
        assert send(sender, Always(), [to(2, range(1))], [0], [0]).synchronize(WAIT_MS) == OK
    blocks = list(range(BLOCKS))
    expected = moved(pattern(2), pattern(1), range(LAYERS), range(LAYERS), blocks, blocks)
    assert torch.equal(content(three[1]), expected)


def test_a_config_can_be_used_again_and_is_not_changed(sender: SimpleNamespace) -> None:
    """Mended: the original writes the range into it."""
    config = to(2, range(1, 2), range(3, 4))
    for _ in range(2):
        assert send(sender, Always(), [config], [0], [0]).synchronize(WAIT_MS) == OK

    assert (config.src_layer_range, config.dst_layer_range) == (range(1, 2), range(3, 4))


@pytest.mark.parametrize(
    ("configs", "blocks", "words"),
    [
        ([to(2, range(2), range(3, 5))], ([0], [0]), "layer"),
        ([to(2)], ([BLOCKS], [0]), str(BLOCKS)),
        ([to(2)], ([0], [BLOCKS]), str(BLOCKS)),
        ([to(2)], ([0, 1], [2, 2]), "2"),
        ([to(2)], ([0], [0], 128), "dst_block_memory_size is 128"),
    ],
    ids=["2.8 row 11", "2.8 row 10 source", "2.8 row 10 destination", "a destination twice", "2.8 row 9"],
)
def test_what_does_not_fit_the_destination_is_in_the_results(
    three: list[SimpleNamespace], sender: SimpleNamespace, configs: list[object], blocks: object, words: str
) -> None:
    """Mended: in the original it is undefined."""
    task = send(sender, Always(), configs, *blocks)  # type: ignore[misc]

    assert task.get_results(WAIT_MS) == [INVALID]
    assert words in task.details()[0]
    assert torch.equal(content(three[1]), pattern(2))


def test_a_paged_source_without_block_lists_sends_block_0_and_says_so(
    three: list[SimpleNamespace], sender: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """2.8: the shipped sample does that. Mended: the original does it without a word."""
    task = send(sender, Always(), [to(2, range(1))])

    assert task.synchronize(WAIT_MS) == OK
    assert "only block 0 is sent" in caplog.text
    assert torch.equal(content(three[1]), moved(pattern(2), pattern(1), range(1), range(1), [0], [0]))


def test_zero_bytes_per_block_is_as_left_out(three: list[SimpleNamespace], sender: SimpleNamespace) -> None:
    assert send(sender, Always(), [to(2)], [0], [0], 0).synchronize(WAIT_MS) == OK
    assert send(sender, Always(), [to(2)], [0], [0], 256).synchronize(WAIT_MS) == OK


def test_finalize_answers_a_transfer_whose_synchronizer_does_not_return() -> None:
    """Mended: in the original it is undefined."""
    here, there = start(11, 0), start(12, 1)
    link(here, there)
    gates = Gates()
    task = send(here, gates, [to(12)], [0], [0])
    late = send(here, Always(), [to(99)], [0], [0])
    assert gates.reached[0].wait(30)
    assert late.synchronize(WAIT_MS) == NOT_LINKED

    here.datadist.finalize()

    assert task.get_results(WAIT_MS) == [LLMStatusCode.LLM_ENGINE_FINALIZED]
    assert late.get_results() == [NOT_LINKED]
    for gate in gates.open:
        gate.set()  # its thread comes back to an instance that is gone
    with pytest.raises(datadist.LLMException):
        send(here, Always(), [to(12)], [0], [0])
    there.datadist.finalize()


def test_a_waiter_is_answered_when_the_worker_itself_fails(
    sender: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_stream(_: object) -> object:
        raise MemoryError("no stream is left")

    monkeypatch.setattr(LayerTransfers, "_stream", no_stream)

    task = send(sender, Always(), [to(2), to(3)], [0], [0])

    assert task.get_results(WAIT_MS) == [FAILED, FAILED]
    assert "no stream is left" in task.details()[1]


def test_a_peer_that_leaves_fails_its_config_only() -> None:
    here, leaving, staying = start(21, 0), start(22, 1), start(23, 2)
    link(here, leaving)
    link(here, staying)
    gates = Gates()
    task = send(here, gates, [to(22), to(23)], [0], [0])
    gates.open[0].set()
    assert gates.reached[1].wait(30)

    leaving.datadist.finalize()
    for gate in gates.open:
        gate.set()

    assert task.get_results(WAIT_MS) == [NOT_LINKED, OK]
    assert torch.equal(
        content(staying), moved(pattern(23), pattern(21), range(LAYERS), range(LAYERS), [0], [0])
    )
    here.datadist.finalize()
    staying.datadist.finalize()
