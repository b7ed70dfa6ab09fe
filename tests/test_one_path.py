"""Blocking transfers: one op call for all layers, and a wait on the host alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import caches, instances
from tests.transfers import until
from torch_llm_datadist import BlocksCacheKey, CacheKeyByIdAndIndex
from torch_llm_datadist.emulator import faults

LAYERS, ENTRIES, BYTES = 40, 3, 32
WAIT_S = 20


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    here, there = SimpleNamespace(), SimpleNamespace()
    instances.start(here, 1, 0, {"sync_kv_timeout": 60_000})
    port = instances.start(there, 2, 1)
    desc = caches.describe(2 * LAYERS, ENTRIES, BYTES)
    for state in (here, there):
        caches.add(state, "blocks", 1, desc, is_blocks=True, key=BlocksCacheKey(state.cluster_id))
        caches.add(state, "batch", 2, desc)
    assert instances.link(here, 2, port) == ["LLM_SUCCESS"]
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def calls(pair: Any) -> dict[str, tuple[str, Callable[[], None], str]]:
    """Of each blocking transfer of all layers its op, the call, and what it reads or writes there."""
    here, there = pair
    manager, blocks, batch = here.datadist.cache_manager, here.caches["blocks"], here.caches["batch"]
    by_model, by_id = BlocksCacheKey(2), CacheKeyByIdAndIndex(2, there.caches["batch"].cache_id, 1)
    return {
        "push_blocks": ("push_blocks", lambda: manager.push_blocks(by_model, blocks, [0], [1]), "blocks"),
        "pull_blocks": ("pull_blocks", lambda: manager.pull_blocks(by_model, blocks, [0], [2]), "blocks"),
        "push_cache": ("push_cache", lambda: manager.push_cache(by_id, batch), "batch"),
        "pull_cache": ("pull_cache", lambda: manager.pull_cache(by_id, batch), "batch"),
        "pull_blocks of an entry": (
            "pull_cache",
            lambda: manager.pull_blocks(by_id, blocks, [], [0]),
            "batch",
        ),
    }


NAMES = ["push_blocks", "pull_blocks", "push_cache", "pull_cache", "pull_blocks of an entry"]


class Ops(TorchDispatchMode):
    """Keeps the names of this package's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "torch_llm_datadist":
            self.called.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_blocking_transfer_of_all_layers_is_one_op_call(pair: Any, name: str) -> None:
    op, call, _ = calls(pair)[name]

    with Ops() as seen:
        call()

    assert seen.called == [op]


@pytest.mark.parametrize("name", NAMES)
def test_a_blocking_transfer_queues_no_wait_on_the_callers_stream(pair: Any, name: str) -> None:
    """Its thread is on the default stream, as executor threads are; what others queue there goes on."""
    _, there = pair
    _, call, cache = calls(pair)[name]
    held = faults.hold_copy(
        after=0, address=there.raw[cache][0].data_ptr() + BYTES * int(name != "pull_blocks")
    )
    waiting = threading.Thread(target=call, daemon=True)
    waiting.start()
    try:
        held.wait(WAIT_S)
        with torch.npu.device(0):
            assert torch.npu.current_stream() == torch.npu.default_stream()
            kernel, event = torch.zeros(1, device="npu:0").fill_(3), torch.npu.Event()
            event.record()
            until(event.query)

        assert waiting.is_alive()
        assert kernel.item() == 3
    finally:
        held.disarm()
        waiting.join(WAIT_S)
    assert not waiting.is_alive()
