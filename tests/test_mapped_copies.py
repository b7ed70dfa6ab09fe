"""Copies of a link that maps memory are tasks of its streams: how many there are, what a refused one costs.

What engines do instead is in test_engine_transports.py, test_hixl.py and tests/cpp/test_pump.cpp.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.entries import TENSORS, THERE, linked_peers
from tests.test_failures import bind_ticket, expected, pair, refuse_then_push, wait_for_layers
from tests.test_ordering import DST, LAYERS, SRC, prepare
from tests.test_push_blocks import linked_pair
from torch_llm_datadist import CacheKeyByIdAndIndex, emulator, ops

__all__ = ["pair"]


def copies_of(state, call):
    """How many copies to the peer a call makes."""
    counter = emulator.fail_task(1 << 40, 507013, direction="peer")
    call()
    copies = counter.hits
    counter.disarm()
    return copies


def count_copies(state, src, dst):
    return copies_of(state, lambda: instances.push_blocks(state, 2, src, dst))


def test_neighbouring_blocks_travel_as_one_copy(peers):
    a, _ = linked_pair(peers, 4, 64, apart=True)
    a.call(instances.push_blocks, 2, [0], [0])

    runs = a.call(count_copies, [7, 3, 4, 5, 20], [9, 3, 4, 5, 21])

    assert runs == 4 * 2  # tensors x (3..5, and 7 with 20 as two rows)
    assert a.call(count_copies, list(range(24)), list(range(24))) == 4
    assert a.call(count_copies, list(range(24)), list(reversed(range(24)))) == 4 * 24


def pull_entry(state: SimpleNamespace, remote: int, local: int) -> int:
    """Returns how many copies that took."""
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    return copies_of(
        state, lambda: state.datadist.cache_manager.pull_cache(key, state.caches["batch"], local)
    )


def push_entry(state: SimpleNamespace, remote: int, local: int) -> int:
    key = CacheKeyByIdAndIndex(THERE, 1, remote)
    return copies_of(
        state, lambda: state.datadist.cache_manager.push_cache(key, state.caches["batch"], local)
    )


def test_an_entry_travels_with_at_most_one_copy_per_tensor(peers: Any) -> None:
    a, _ = linked_peers(peers, "RA")

    pulled = a.call(pull_entry, 1, 0)
    pushed = a.call(push_entry, 2, 1)

    assert 1 <= pulled == pushed <= TENSORS


@pytest.mark.parametrize("nth", [1, 2, 17, 32])
def test_the_kth_refused_copy_stops_the_plan_and_the_link_stays_usable(pair, nth):
    a, b = pair

    code, message = a.call(refuse_then_push, "aclrtMemcpyAsync", nth)

    # The watchdog copies, too: which submit is the nth is not ours to say, but a refusal is never silent.
    moved = torch.equal(b.call(instances.content), expected([0, 2, 4, 6], [7, 5, 3, 1]))
    assert (code == "LLM_SUCCESS") == moved
    if code != "LLM_SUCCESS":
        assert "aclrtMemcpyAsync returned 207005" in message
    a.call(instances.push_blocks, 2, SRC, DST)
    assert torch.equal(b.call(instances.content)[:, DST], expected(SRC, DST)[:, DST])


def bind_then_refuse(state, nth):
    torch.npu.set_device(state.device)
    state.binding = datadist.Binding(state.device, range(LAYERS))
    emulator.fail_next("aclrtMemcpyAsync", nth, 207005)
    state.binding.bind([state.task], timeout_s=10.0)
    deadline = time.monotonic() + 10
    while not state.task.state().has_ended and time.monotonic() < deadline:
        pass
    emulator.fail_next("aclrtMemcpyAsync", 0, 0)
    for layer in range(LAYERS):
        ops.push_layer(state.status, state.status, layer, state.binding.id)
    ops.finish(state.status, state.status, state.binding.id)
    torch.npu.synchronize()
    return state.status.item(), state.task.state().detail


@pytest.mark.parametrize("nth", [1, 9, 24])  # of 8 tensors x 3 runs
def test_a_refused_copy_of_a_layered_push_fails_on_both_sides_and_is_never_announced(pair, nth):
    a, b = pair
    b.call(bind_ticket, a.call(prepare), 60.0)
    b.send(wait_for_layers)

    sent, detail = a.call(bind_then_refuse, nth)

    assert sent == -1  # LLM_FAILED
    assert "aclrtMemcpyAsync returned 207005" in detail
    received, _, computed = b.answer()
    assert received == -1
    assert computed == 64
    a.call(instances.push_blocks, 2, SRC, DST)
    assert torch.equal(b.call(instances.content)[:, DST], expected(SRC, DST)[:, DST])
