"""What is said of a transfer that did not end well: which one, what was expected, how the link stands, what
to do next, and only of what is queued that it may still write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.streams import standing_still
from tests.test_messages import STATES
from tests.transfers import LAYERS, error_of, link, restore, start, until, until_announced
from torch_llm_datadist import BlocksCacheKey, discard, emulator, ops, ticket_state
from torch_llm_datadist.emulator import faults

Pair = tuple[SimpleNamespace, SimpleNamespace]
SHORT_MS = 300
SRC, DST = [0, 1], [2, 3]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The sender, cluster 1, and the receiver, cluster 2."""
    here, there = (start(n + 1, n) for n in range(2))
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


@pytest.fixture(autouse=True)
def no_faults(pair: Pair) -> Iterator[None]:
    yield
    faults.reset()
    for each in pair:
        restore(each)


def check_whole(text: str, *words: str) -> None:
    """It reads as a row of the table does, and names what went wrong."""
    states = "|".join(map(re.escape, STATES))
    assert re.search(rf", (expected|which) .+\. ({states}): .+\.", text), text
    for word in words:
        assert word in text, text


def prepare(here: SimpleNamespace) -> datadist.Task:
    return here.manager.prepare_push(BlocksCacheKey(2), here.cache, SRC, DST)  # type: ignore[no-any-return]


def wait_for(there: SimpleNamespace, ticket: int, timeout_s: float) -> datadist.Binding:
    binding = datadist.Binding(there.device, range(LAYERS))
    binding.bind([ticket], timeout_s=timeout_s)
    with torch.npu.device(there.device):
        ops.wait_layer(there.status, there.status, 0, binding.id)
    return binding


def test_a_pull_of_what_is_published_late_queued_nothing_and_says_so(pair: Pair) -> None:
    here, there = pair
    key = BlocksCacheKey(1)
    with torch.npu.device(here.device), standing_still():
        publication = here.manager.publish(here.raw[0], here.cache, None, 2)
        with torch.npu.device(there.device), instances.in_a_hurry(there, SHORT_MS):
            error = error_of(
                lambda: there.manager.pull_blocks(key, there.cache, SRC, DST, ticket=publication.ticket)
            )

    until(lambda: not there.manager.blocks_in_doubt())
    check_whole(str(error), f"did not end within {SHORT_MS} ms", f"into cache {there.cache.cache_id}")
    assert ("may still write" in str(error)) == bool(error.blocks_in_doubt)
    torch.npu.synchronize(here.device)


def test_a_push_that_stands_still_names_its_blocks_until_they_are_through(pair: Pair) -> None:
    here, there = pair
    held = faults.hold_copy(after=0, direction="peer", address=here.raw[0][SRC[0]].data_ptr())
    with torch.npu.device(here.device), instances.in_a_hurry(here, SHORT_MS):
        key = BlocksCacheKey(2)
        error = error_of(lambda: here.manager.push_blocks(key, here.cache, SRC, DST))

    check_whole(str(error), f"into cache {there.cache.cache_id} there (blocks 2 to 3)", "may still write")
    assert error.blocks_in_doubt[0].blocks == tuple(DST)
    held.disarm()
    here.manager.wait_until_settled()


def test_a_task_whose_deadline_passed_says_when_nothing_of_it_is_queued_any_more(pair: Pair) -> None:
    here, _ = pair
    task = prepare(here)
    binding = datadist.Binding(here.device, range(LAYERS))

    binding.bind([task], timeout_s=0.2)  # and no forward comes

    until(lambda: task.state().has_ended)
    check_whole(task.state().detail, "did not end within 200 ms", "Nothing of it is queued any more")


def test_a_ticket_that_is_late_and_the_task_behind_it_say_what_was_expected(pair: Pair) -> None:
    here, there = pair
    task = prepare(here)
    until_announced(task.ticket)

    waits = wait_for(there, task.ticket, 0.2)

    until(lambda: ticket_state(task.ticket).has_ended and task.state().has_ended)
    late = f"ticket {task.ticket}: not all of layers 0 to {LAYERS - 1} from cluster 1"
    check_whole(ticket_state(task.ticket).detail, late, "within 200 ms")
    check_whole(task.state().detail, "cluster 2", f"waits no longer for it: ticket {task.ticket}")
    there.status.zero_()
    waits.close()


def test_a_ticket_whose_sender_gave_up_says_so(pair: Pair) -> None:
    here, there = pair
    task = prepare(here)
    waits = wait_for(there, task.ticket, 60)

    here.manager.cancel(task)

    until(lambda: ticket_state(task.ticket).has_ended)
    check_whole(ticket_state(task.ticket).detail, "cluster 1", "gave the transfer up", "code 4294967295")
    there.status.zero_()
    waits.close()


def test_a_publication_that_its_receiver_discards_says_so(pair: Pair) -> None:
    here, _ = pair
    publication = here.manager.publish(here.raw[0], here.cache, None, 2)

    discard(publication.ticket)

    error = error_of(lambda: publication.wait_taken(20))
    check_whole(str(error), "discarded it", str(publication.ticket))


def test_a_layer_that_never_comes_is_named(pair: Pair) -> None:
    here, _ = pair
    task = prepare(here)
    binding = datadist.Binding(here.device, range(LAYERS))
    binding.bind([task], timeout_s=60)

    binding.bind(())

    until(lambda: task.state().has_ended)
    check_whole(task.state().detail, "its binding was bound again before layer 0 was pushed")


def test_a_copy_that_fails_ends_the_link_and_every_word_of_that_is_whole(peers) -> None:
    client, _, _ = links.linked_pair(peers)

    said = client.call(push_a_copy_that_fails)

    for text in said:
        check_whole(text, "the link to cluster 2", "is down", "507057")


def push_a_copy_that_fails(state: SimpleNamespace) -> list[str]:
    emulator.fail_task(1, 507057, address=state.raw[0].data_ptr())
    return [str(error_of(lambda: instances.push_blocks(state, 2, [0], [0]))) for _ in range(2)]
