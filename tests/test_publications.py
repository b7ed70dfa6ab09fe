"""``publish`` and *taken*: a pull that waits until its holder's blocks are ready, and a holder that learns
when they were pulled."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.peers import Peer
from tests.streams import standing_still
from tests.transfers import BLOCKS, LAYERS, link, pattern, restore, start, until
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    LLMException,
    LLMStatusCode,
    Placement,
    Publication,
    TransferWatch,
    discard,
    emulator,
    ops,
    ticket_state,
)

Pair = tuple[SimpleNamespace, SimpleNamespace]
INVALID = LLMStatusCode.LLM_PARAM_INVALID
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
FAILED = LLMStatusCode.LLM_FAILED
ENDS_WITHIN_S = 20.0
SHORT_MS = 300


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The holder, cluster 1, and the one that pulls, cluster 2."""
    here, there = start(1, 0, max_in_flight=4), start(2, 1)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def publish(here: SimpleNamespace, to: int = 2, **arguments: Any) -> Publication:
    layers = arguments.pop("layers", None)
    with torch.npu.device(here.device):
        return here.manager.publish(here.raw[0], here.cache, layers, to, **arguments)  # type: ignore[no-any-return]


def pull(there: SimpleNamespace, ticket: int, src: int = 0, dst: int = 1, **arguments: Any) -> None:
    with torch.npu.device(there.device):
        key = BlocksCacheKey(1)
        there.manager.pull_blocks(key, there.cache, [src], [dst], ticket=ticket, **arguments)


def until_ended(state: Callable[[], datadist.binding.TransferState]) -> tuple[int, str]:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not (found := state()).has_ended:
        assert time.monotonic() < deadline, "it has not ended"
        threading.Event().wait(0.002)
    return found.code, found.detail


def keep_busy(state: SimpleNamespace, seconds: float) -> None:
    with torch.npu.device(state.device):
        emulator.delay_stream(seconds)


@contextlib.contextmanager
def holder_standing_still(here: SimpleNamespace) -> Iterator[None]:
    """What is published inside is not ready."""
    with torch.npu.device(here.device):
        stream = torch.npu.current_stream()
    with standing_still(stream):
        yield


def code_of(call: Callable[[], object]) -> tuple[LLMStatusCode | None, str]:
    try:
        call()
    except LLMException as error:
        return error.status_code, str(error)
    return None, ""


def fill_late(here: SimpleNamespace, value: int, seconds: float) -> None:
    """As a forward would: its kernel is queued, and writes long after the call."""
    with torch.npu.device(here.device):
        emulator.delay_stream(seconds)
        for raw in here.raw:
            raw.fill_(value)


def test_a_pull_with_a_ticket_waits_for_the_kernel_that_writes_the_blocks(pair: Pair) -> None:
    here, there = pair
    restore(here)
    restore(there)
    fill_late(here, 7, 0.2)
    publication = publish(here)
    assert instances.content(there)[0, 1].tolist() == pattern(2)[0, 1].tolist()

    pull(there, publication.ticket)

    expected = pattern(2)
    expected[:, 1] = 7
    assert torch.equal(instances.content(there), expected)


@pytest.mark.races_on_purpose("reads what a kernel is still to write")
def test_without_a_ticket_the_pull_reads_what_is_there(pair: Pair) -> None:
    """The control of the test above: nothing else holds the pull up."""
    here, there = pair
    sent = restore(here)
    restore(there)

    with holder_standing_still(here):
        fill_late(here, 7, 0)
        with torch.npu.device(there.device):
            there.manager.pull_blocks(BlocksCacheKey(1), there.cache, [0], [1])
    torch.npu.synchronize(here.device)

    assert torch.equal(instances.content(there)[:, 1], sent[:, 0])


def test_a_publication_ends_when_it_was_pulled_and_no_earlier(pair: Pair) -> None:
    here, there = pair
    watch: TransferWatch[str] = TransferWatch()
    publication = publish(here)
    watch.add("holder", publication, blocks=[0])
    watch.add("puller", publication.ticket, blocks=[1])

    with pytest.raises(LLMException, match="has not been pulled within") as raised:
        publication.wait_taken(0.03)
    assert raised.value.status_code == TIMEOUT
    assert not publication.state().has_ended
    assert not watch.poll().sent

    pull(there, publication.ticket)

    publication.wait_taken(ENDS_WITHIN_S)
    assert publication.state() == (True, 0, "")
    assert until_ended(lambda: ticket_state(publication.ticket)) == (0, "")
    found = watch.poll()
    assert found.sent == {"holder"}
    assert found.arrived == {"puller"}


def test_an_op_with_a_ticket_holds_its_stream_and_not_the_host(pair: Pair) -> None:
    here, there = pair
    restore(there)
    ids = torch.tensor([3])

    with holder_standing_still(here), torch.npu.device(there.device):
        fill_late(here, 9, 0)
        publication = publish(here)
        ops.pull_blocks(
            there.status, there.cache.tensors, ids, ids, link=there.datadist.link_id(1),
            ticket=publication.ticket, num_layers=LAYERS,
        )  # fmt: skip
        seen = there.raw[-1][3].clone()
        assert not publication.state().has_ended
    torch.npu.synchronize(there.device)

    assert there.status.item() == 0
    assert set(seen.tolist()) == {9}
    publication.wait_taken(ENDS_WITHIN_S)


def test_a_part_of_the_layers(pair: Pair) -> None:
    here, there = pair
    sent = restore(here)
    restore(there)
    publication = publish(here, layers=range(1, 3))

    pull(there, publication.ticket, src_layer_range=range(2, 3), dst_layer_range=range(0, 1))

    expected = pattern(2)
    expected[0:2, 1] = sent[4:6, 0]
    assert torch.equal(instances.content(there), expected)
    publication.wait_taken(ENDS_WITHIN_S)


def test_what_a_ticket_is_not_for_is_refused_and_the_ticket_stays_good(pair: Pair) -> None:
    here, there = pair
    desc = datadist.CacheDesc(2 * LAYERS, [BLOCKS, 256], datadist.DataType.DT_UINT8)
    tensors = [torch.zeros(BLOCKS, 256, dtype=torch.uint8).to("npu:0") for _ in range(2 * LAYERS)]
    other = here.manager.register_blocks_cache(desc, tensors, BlocksCacheKey(1, 5))
    publication = publish(here, layers=range(1, 3))
    push = here.manager.prepare_push(BlocksCacheKey(2), here.cache, [0], [0])
    ticket = publication.ticket
    bound = datadist.Binding(1, range(LAYERS))

    with torch.npu.device(1):
        refused = {
            "another cache": lambda: there.manager.pull_blocks(
                BlocksCacheKey(1, 5), there.cache, [0], [0], ticket=ticket
            ),
            "all layers": lambda: pull(there, ticket),
            "layers before": lambda: pull(
                there, ticket, src_layer_range=range(0, 2), dst_layer_range=range(0, 2)
            ),
            "layers behind": lambda: pull(
                there, ticket, src_layer_range=range(2, 4), dst_layer_range=range(0, 2)
            ),
            "a push": lambda: pull(there, push.ticket),
            "no ticket": lambda: pull(there, 2**52),
            "bound": lambda: bound.bind([ticket]),
        }
        said = {name: code_of(call) for name, call in refused.items()}

    assert {name for name, (code, _) in said.items() if code != INVALID} == set(), said
    assert f"cache {here.cache.cache_id} there is ready" in said["another cache"][1]
    assert "4 tensors from 2 on are ready" in said["all layers"][1]
    assert "that of a push" in said["a push"][1]
    assert "is a publication" in said["bound"][1]
    with pytest.raises(TypeError):
        pull(there, "1")  # type: ignore[arg-type]
    pull(there, ticket, src_layer_range=range(1, 3), dst_layer_range=range(0, 2))
    publication.wait_taken(ENDS_WITHIN_S)
    assert "used up" in code_of(lambda: pull(there, ticket))[1]
    discard(push)
    bound.close()
    here.manager.unregister_cache(other.cache_id)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"layers": range(0, LAYERS + 1)}, LLMException),
        ({"layers": [0]}, TypeError),
        ({"timeout_s": 0}, ValueError),
        ({"timeout_s": None}, TypeError),
        ({"tensor_num_per_layer": 3}, LLMException),
        ({"to": 9}, LLMException),
    ],
)
def test_publish_refuses_what_makes_no_sense(pair: Pair, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        publish(pair[0], **arguments)


def test_publish_refuses_to_be_ordered_on_another_device(pair: Pair) -> None:
    here, _ = pair
    for elsewhere in (torch.zeros(1).to("npu:1"), torch.zeros(1)):
        with pytest.raises(LLMException, match=rf"is on {elsewhere.device}, the cache is on npu:0"):
            here.manager.publish(elsewhere, here.cache, None, 2)


def test_what_lies_in_host_memory_is_published_with_a_tensor_of_the_host(pair: Pair) -> None:
    here, there = pair
    desc = datadist.CacheDesc(2, [BLOCKS, 256], datadist.DataType.DT_UINT8, Placement.HOST)
    ready = [torch.full((BLOCKS, 256), 7, dtype=torch.uint8) for _ in range(2)]
    cache = here.manager.register_blocks_cache(desc, ready, BlocksCacheKey(1, 6), True)
    into = [torch.zeros(BLOCKS, 256, dtype=torch.uint8).to("npu:1") for _ in range(2)]
    device_desc = datadist.CacheDesc(2, [BLOCKS, 256], datadist.DataType.DT_UINT8)
    landed = there.manager.register_blocks_cache(device_desc, into, BlocksCacheKey(2, 6))

    publication = here.manager.publish(torch.zeros(1), cache, None, 2)
    there.manager.pull_blocks(BlocksCacheKey(1, 6), landed, [0], [3], ticket=publication.ticket)

    assert all((tensor[3] == 7).all() for tensor in into)
    publication.wait_taken(ENDS_WITHIN_S)
    here.manager.unregister_cache(cache.cache_id)
    there.manager.unregister_cache(landed.cache_id)


def test_a_pull_that_comes_too_early_ends_at_its_deadline_and_writes_nothing(pair: Pair) -> None:
    here, there = pair
    restore(there)

    with holder_standing_still(here), instances.in_a_hurry(there, SHORT_MS):
        publication = publish(here)
        code, message = code_of(lambda: pull(there, publication.ticket))

    assert code == TIMEOUT, message
    assert until_ended(publication.state)[0] != 0
    torch.npu.synchronize(here.device)
    assert torch.equal(instances.content(there), pattern(2))
    again = publish(here)
    pull(there, again.ticket)
    again.wait_taken(ENDS_WITHIN_S)


def test_a_publication_that_nobody_pulls_ends_at_its_deadline(pair: Pair) -> None:
    here, there = pair
    publication = publish(here, timeout_s=0.05)

    code, detail = until_ended(publication.state)

    assert code == TIMEOUT
    assert "was not taken within 50 ms" in detail
    assert "used up" in code_of(lambda: pull(there, publication.ticket))[1]
    with pytest.raises(LLMException, match="was not taken") as raised:
        publication.wait_taken(1.0)
    assert raised.value.status_code == TIMEOUT


def test_a_holder_may_discard_what_it_published_and_the_pull_ends_with_a_code(pair: Pair) -> None:
    here, there = pair
    restore(there)
    found: list[Any] = []
    pulling = threading.Thread(target=lambda: found.append(code_of(lambda: pull(there, publication.ticket))))
    with holder_standing_still(here):
        publication = publish(here)
        pulling.start()
        until(lambda: ticket_state(publication.ticket).detail == "")  # until it is claimed

        discard(publication)
        discard(publication)
        pulling.join(ENDS_WITHIN_S)  # what the stream goes on with is too late then

    assert found[0][0] == FAILED
    assert "gave the transfer up" in found[0][1]
    assert until_ended(publication.state) == (FAILED, "discarded")
    torch.npu.synchronize(here.device)
    assert torch.equal(instances.content(there), pattern(2))


def test_a_puller_may_discard_the_ticket_and_the_holder_learns_of_it(pair: Pair) -> None:
    here, there = pair
    publication = publish(here)

    discard(publication.ticket)
    discard(publication.ticket)

    code, detail = until_ended(publication.state)
    assert code == FAILED
    assert "discarded it" in detail
    assert until_ended(lambda: ticket_state(publication.ticket)) == (0, "discarded")
    discard(publication.ticket)
    assert code_of(lambda: discard(publication))[0] == INVALID
    assert "used up" in code_of(lambda: pull(there, publication.ticket))[1]


def test_a_discarded_task_gives_its_slot_back_and_tells_the_receiver(pair: Pair) -> None:
    here, _ = pair
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, [0], [0])
    waiting = datadist.Binding(1, range(LAYERS))
    waiting.bind([task.ticket], timeout_s=30)

    discard(task)
    discard(task)

    assert until_ended(task.state) == (FAILED, "discarded")
    code, detail = until_ended(lambda: ticket_state(task.ticket))
    assert code == FAILED
    assert "gave the transfer up" in detail
    waiting.close()


def test_a_bound_task_is_not_discarded(pair: Pair) -> None:
    here, _ = pair
    task = here.manager.prepare_push(BlocksCacheKey(2), here.cache, [0], [0])
    sending = datadist.Binding(0, range(LAYERS))
    sending.bind([task])

    assert "is bound to a forward" in code_of(lambda: discard(task))[1]

    with torch.npu.device(0):
        for layer in range(LAYERS):
            ops.push_layer(here.status, here.raw[0], layer, sending.id)
    assert until_ended(task.state) == (0, "")
    assert "has ended already" in code_of(lambda: discard(task))[1]
    discard(task.ticket)
    sending.close()


def test_discarded_publications_and_tickets_give_their_slots_back(pair: Pair) -> None:
    """More of them, one after the other, than the four slots."""
    here, _ = pair
    for i in range(12):
        publication = publish(here)
        discard(publication if i % 2 else publication.ticket)
        until_ended(publication.state)


def test_more_publications_than_slots_say_so(pair: Pair) -> None:
    here, _ = pair
    made = []

    def publish_on() -> None:
        for _ in range(9):
            made.append(publish(here))

    code, message = code_of(publish_on)

    assert code == LLMStatusCode.LLM_LINK_BUSY
    assert "all 4 transfers that may be in flight" in message
    for publication in made:
        discard(publication)
    for publication in made:
        until_ended(publication.state)


def test_what_was_read_while_its_holder_gave_it_up_is_not_a_success(pair: Pair) -> None:
    """All bytes may be here by then, and some of them may be of what came next."""
    here, there = pair
    publication = publish(here)
    with torch.npu.device(there.device), standing_still():
        there.status.zero_()
        ids = torch.tensor([3])
        ops.pull_blocks(
            there.status, there.cache.tensors, ids, ids, link=there.datadist.link_id(1),
            ticket=publication.ticket, num_layers=LAYERS,
        )  # fmt: skip
        discard(publication)
        until(lambda: ticket_state(publication.ticket).code == FAILED)
    torch.npu.synchronize(there.device)

    assert there.status.item() == -1  # LLM_FAILED
    assert until_ended(publication.state) == (FAILED, "discarded")
    there.status.zero_()


def test_a_publication_outlives_its_handle(pair: Pair) -> None:
    here, there = pair
    ticket = publish(here).ticket

    pull(there, ticket)

    assert until_ended(lambda: ticket_state(ticket)) == (0, "")


# Batch entries, and caches in host memory.


@pytest.fixture(scope="module")
def entries() -> Iterator[Pair]:
    here, there = start(1, 2), start(2, 3)
    link(here, there)
    for state, fill in ((here, 1), (there, 0)):
        state.batch = [torch.full((3, 512), fill, dtype=torch.uint8).to(f"npu:{state.device}") for _ in "kv"]
        desc = datadist.CacheDesc(2, [3, 512], datadist.DataType.DT_UINT8)
        state.entries = state.manager.register_cache(desc, state.batch)
        state.host = [torch.full((BLOCKS, 256), fill, dtype=torch.uint8) for _ in range(2 * LAYERS)]
        host = datadist.CacheDesc(
            2 * LAYERS, [BLOCKS, 256], datadist.DataType.DT_UINT8, datadist.Placement.HOST
        )
        state.on_host = state.manager.register_blocks_cache(
            host, state.host, BlocksCacheKey(state.cluster_id, 3), True
        )
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.mark.parametrize("into_blocks", [False, True])
def test_a_batch_entry_is_pulled_with_a_ticket(entries: Pair, into_blocks: bool) -> None:
    here, there = entries
    with torch.npu.device(here.device):
        emulator.delay_stream(0.1)
        for tensor in here.batch:
            tensor[2].fill_(5 + into_blocks)
        publication = here.manager.publish(here.batch[0], here.entries, None, 2)
    key = CacheKeyByIdAndIndex(1, here.entries.cache_id, 2)

    with torch.npu.device(there.device):
        if into_blocks:
            layer = range(0, 1)
            there.manager.pull_blocks(
                key, there.cache, dst_blocks=[4, 2], ticket=publication.ticket, src_layer_range=layer,
                dst_layer_range=layer,
            )  # fmt: skip
            landed = instances.content(there)[0:2, [4, 2]]
        else:
            there.manager.pull_cache(key, there.entries, 1, ticket=publication.ticket)
            landed = torch.stack([tensor[1].cpu() for tensor in there.batch])

    assert set(landed.flatten().tolist()) == {5 + into_blocks}
    publication.wait_taken(ENDS_WITHIN_S)


def test_a_pull_over_staging_waits_without_holding_up_others(entries: Pair) -> None:
    """What goes over the link's buffers shares one stream: nobody may wait there."""
    here, there = entries
    waiting = threading.Thread(
        target=lambda: there.manager.pull_blocks(
            BlocksCacheKey(1), there.on_host, [1], [1], ticket=publication.ticket
        )
    )
    with holder_standing_still(here):
        publication = publish(here)
        waiting.start()
        until(lambda: ticket_state(publication.ticket).detail == "")

        there.manager.pull_blocks(BlocksCacheKey(1), there.on_host, [0], [0])

        assert not publication.state().has_ended
    waiting.join(ENDS_WITHIN_S)
    for tensor, sent in zip(there.host, pattern(1), strict=True):
        assert torch.equal(tensor[1], sent[1])
    publication.wait_taken(ENDS_WITHIN_S)


# Other processes: their deaths.


def start_peer(state: SimpleNamespace, cluster_id: int, device: int) -> int:
    port = instances.start(state, cluster_id, device, {"keep_alive_ms": 1000})
    state.manager = state.datadist.cache_manager
    instances.register(state, cluster_id, 2 * LAYERS, BLOCKS, 256)
    return port


def publish_here(state: SimpleNamespace, timeout_s: float) -> int:
    state.publication = publish(state, timeout_s=timeout_s)
    return state.publication.ticket  # type: ignore[no-any-return]


def how_it_ended(state: SimpleNamespace) -> tuple[int, str]:
    return until_ended(state.publication.state)


def has_ended(state: SimpleNamespace) -> bool:
    return state.publication.state().has_ended  # type: ignore[no-any-return]


def pull_there(state: SimpleNamespace, ticket: int) -> str:
    code, message = code_of(lambda: pull(state, ticket))
    return f"{code.name if code else 'OK'}: {message}"


@pytest.fixture
def processes(peers: Any) -> tuple[Peer, Peer]:
    holder, puller = peers(2)
    port = holder.call(start_peer, 1, 0)
    puller.call(start_peer, 2, 1)
    assert puller.call(instances.link, 1, port) == ["LLM_SUCCESS"]
    holder.call(instances.wait_linked, 2)
    return holder, puller


def test_between_processes_the_bytes_are_those_of_the_publication(processes: tuple[Peer, Peer]) -> None:
    holder, puller = processes
    holder.call(fill_late, 7, 0.1)
    ticket = holder.call(publish_here, 60.0)

    assert puller.call(pull_there, ticket) == "OK: "

    assert set(puller.call(instances.content)[:, 1].flatten().tolist()) == {7}
    assert holder.call(how_it_ended) == (0, "")


def test_a_puller_that_dies_ends_the_publication(processes: tuple[Peer, Peer]) -> None:
    holder, puller = processes
    holder.call(publish_here, 60.0)

    puller.kill()

    code, detail = holder.call(how_it_ended)
    assert code == LLMStatusCode.LLM_NOT_YET_LINK
    assert "its process ended" in detail


def test_blocks_are_not_free_while_a_frozen_puller_may_still_read_them(processes: tuple[Peer, Peer]) -> None:
    holder, puller = processes
    holder.call(publish_here, 0.05)
    puller.freeze()

    holder.call(until_given_up)

    assert not holder.call(has_ended)
    puller.kill()
    assert holder.call(how_it_ended)[0] in (TIMEOUT, LLMStatusCode.LLM_NOT_YET_LINK)


def until_given_up(state: SimpleNamespace) -> None:
    """Its deadline has passed, and the link is down."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while state.datadist.links() or not state.publication.state().code:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_holder_that_dies_ends_the_pull(processes: tuple[Peer, Peer]) -> None:
    holder, puller = processes
    assert puller.call(pull_there, holder.call(publish_here, 60.0)) == "OK: "  # its memory is mapped
    holder.call(keep_busy, 30.0)
    ticket = holder.call(publish_here, 60.0)
    puller.send(pull_there, ticket)

    holder.kill()

    assert puller.answer().startswith("LLM_NOT_YET_LINK")
