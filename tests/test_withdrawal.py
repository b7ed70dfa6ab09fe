"""Withdrawing a cache under a transfer: its memory is held, counted and listed until nobody can touch it."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.peers import Peer
from torch_llm_datadist import LLMException, emulator, ops

WITHIN_S = 20.0
KEEP_ALIVE_MS = 20_000  # a slow copy is no lost peer
CACHE_BYTES = links.TENSORS * links.BLOCKS * links.BLOCK_BYTES


@pytest.fixture
def pair(peers: Any) -> tuple[Peer, Peer]:
    """Cluster 1 moves the bytes, cluster 2 is the other end."""
    mover, other, _ = links.linked_pair(peers, {"keep_alive_ms": KEEP_ALIVE_MS})
    return mover, other


def begin(state: SimpleNamespace, what: str) -> None:
    """A transfer that runs until ``go_on``; returns when it has begun."""
    torch.npu.set_device(state.device)
    state.link = state.datadist.link_id(2)
    state.status = torch.zeros(1, dtype=torch.int32).npu()
    torch.npu.synchronize()
    emulator.set_task_delay(0.3)
    state.waiter = datadist.binding._native.load().transfer_create()
    move(state, what, state.waiter)
    torch.npu.current_stream().synchronize()  # the stream does not wait for it, but has come to its start


def move(state: SimpleNamespace, what: str, waiter: int) -> None:
    ids = torch.arange(links.BLOCKS)
    spread = ids.roll(1)  # no two blocks move as one copy
    getattr(ops, what)(
        state.status, state.cache.tensors, ids, spread[torch.randperm(len(ids))], link=state.link,
        num_layers=1, hold_stream=False, transfer=waiter, timeout_ms=60_000,
    )  # fmt: skip


def move_again(state: SimpleNamespace, what: str) -> str:
    """The same caches and layers as before, of which the link remembers where they lie."""
    with pytest.raises(LLMException) as raised:
        move(state, what, 0)
    return raised.value.status_code.name


def go_on(state: SimpleNamespace) -> tuple[int, str]:
    emulator.set_task_delay(0)
    return datadist.binding._native.load().transfer_wait(state.waiter)  # type: ignore[no-any-return]


def withdraw(state: SimpleNamespace, what: str | None = None) -> tuple[list[str], int]:
    """Unregisters its cache and forgets its tensors; for whom it is held, and the bytes it holds. No transfer
    like ``what``, which runs, begins any more."""
    state.allocated = torch.npu.memory_allocated(state.device)
    began = time.monotonic()
    state.datadist.cache_manager.unregister_cache(state.cache.cache_id)
    assert time.monotonic() - began < 5  # at once: the transfer runs on
    if what is not None:
        assert move_again(state, what) == "LLM_KV_CACHE_NOT_EXIST"
    state.cache = state.raw = None
    gc.collect()
    other = 3 - state.cluster_id
    state.datadist._running.links.sync(other, 10)  # the control thread has seen it
    return held(state)


def held(state: SimpleNamespace) -> tuple[list[str], int]:
    found = state.datadist.cache_manager.held_caches()
    return [name for cache in found for name in cache.waiting_for], sum(c.length_bytes for c in found)


def until_released(state: SimpleNamespace) -> int:
    """How many bytes went back to the allocator: soon after the cache is off the list, on another thread."""
    deadline = time.monotonic() + WITHIN_S
    while state.datadist.cache_manager.held_caches():
        assert time.monotonic() < deadline, held(state)
        time.sleep(0.01)
    while (released := state.allocated - torch.npu.memory_allocated(state.device)) < CACHE_BYTES:
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.01)
    return released  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["push_blocks", "pull_blocks"])
def test_the_far_end_of_a_running_transfer_is_held_until_it_has_ended(
    pair: tuple[Peer, Peer], what: str
) -> None:
    mover, other = pair
    mover.call(begin, what)

    names, length = other.call(withdraw)

    assert len(names) == 1
    assert str(mover.pid) in names[0]
    assert length == CACHE_BYTES
    assert mover.call(move_again, what) == "LLM_KV_CACHE_NOT_EXIST"
    assert mover.call(go_on) == (0, "")
    assert other.call(until_released) >= CACHE_BYTES
    assert mover.call(links.push, 2, [0], [0]).startswith("LLM_KV_CACHE_NOT_EXIST")


@pytest.mark.parametrize("what", ["push_blocks", "pull_blocks"])
def test_the_own_end_of_a_running_transfer_is_held_until_it_has_ended(
    pair: tuple[Peer, Peer], what: str
) -> None:
    mover, _ = pair
    mover.call(begin, what)

    assert mover.call(withdraw, what)[1] == CACHE_BYTES

    assert mover.call(go_on) == (0, "")
    assert mover.call(until_released) >= CACHE_BYTES


@pytest.mark.parametrize("what", ["push_blocks", "pull_blocks"])
def test_a_cache_that_a_dead_peer_used_is_released(pair: tuple[Peer, Peer], what: str) -> None:
    mover, other = pair
    mover.call(begin, what)
    assert other.call(withdraw)[1] == CACHE_BYTES

    mover.kill()

    assert other.call(until_released) >= CACHE_BYTES


def finalize_quickly(state: SimpleNamespace) -> tuple[float, int]:
    began = time.monotonic()
    state.datadist.finalize()
    return time.monotonic() - began, left_over(state)


def left_over(state: SimpleNamespace) -> int:
    from torch_llm_datadist.registry import left_over_caches

    return sum(cache.length_bytes for cache in left_over_caches())


def until_nothing_is_left_over(state: SimpleNamespace) -> None:
    deadline = time.monotonic() + WITHIN_S
    while left_over(state):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_finalize_leaves_what_a_frozen_peer_may_write_and_counts_it(pair: tuple[Peer, Peer]) -> None:
    mover, other = pair
    mover.freeze()

    seconds, length = other.call(finalize_quickly)

    assert seconds < 30
    assert length == CACHE_BYTES
    mover.kill()
    other.call(until_nothing_is_left_over)


def test_a_published_cache_may_be_withdrawn_and_the_pull_says_that_it_is_gone(
    pair: tuple[Peer, Peer],
) -> None:
    puller, holder = pair
    ticket = holder.call(publish)

    holder.call(withdraw)

    assert puller.call(pull, ticket).startswith("LLM_KV_CACHE_NOT_EXIST")
    assert holder.call(until_released) >= CACHE_BYTES
    puller.call(give_back, ticket)
    assert holder.call(how_it_ended) == datadist.LLMStatusCode.LLM_FAILED


def publish(state: SimpleNamespace) -> int:
    torch.npu.set_device(state.device)
    state.publication = state.datadist.cache_manager.publish(state.raw[0], state.cache, None, 1)
    return state.publication.ticket  # type: ignore[no-any-return]


def pull(state: SimpleNamespace, ticket: int) -> str:
    return links.status_of(lambda: instances.pull_blocks(state, 2, [0], [0], ticket=ticket))


def give_back(state: SimpleNamespace, ticket: int) -> None:
    datadist.discard(ticket)


def how_it_ended(state: SimpleNamespace) -> int:
    deadline = time.monotonic() + WITHIN_S
    while not state.publication.state().has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return state.publication.state().code  # type: ignore[no-any-return]
