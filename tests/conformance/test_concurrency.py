"""7.3 item 11: two pulls on two links, a pull and a transfer on one link, finalize during a transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.transfers import LAYERS, Always, HeldMove, link, pattern, start, to
from torch_llm_datadist import BlocksCacheKey, LLMStatusCode

OK = LLMStatusCode.LLM_SUCCESS
WAIT_S = 20


@pytest.fixture
def three() -> Iterator[tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]]:
    """One that is linked with two others; a held copy is no reason for it to give up."""
    one = start(1, 0, sync_kv_timeout=60_000)
    others = start(2, 1), start(3, 2)
    for other in others:
        link(one, other)
    yield one, *others
    for state in (one, *others):
        state.datadist.finalize()


class Running:
    """A call on a thread of its own, and how it ended."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.code: LLMStatusCode | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
            self.code = OK
        except datadist.LLMException as error:
            self.code = error.status_code

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> LLMStatusCode | None:
        self._thread.join(WAIT_S)
        return self.code


def pull(one: SimpleNamespace, cluster_id: int, src: int, dst: int) -> None:
    one.manager.pull_blocks(BlocksCacheKey(cluster_id), one.cache, [src], [dst])


@pytest.mark.races_on_purpose("looks at a cache that a held copy has yet to write")
def test_a_pull_ends_while_one_on_another_link_stands_still(three: tuple[SimpleNamespace, ...]) -> None:
    one, slow, _ = three
    held = HeldMove(slow.raw[0])
    first = Running(lambda: pull(one, 2, 0, 1))
    held.wait(WAIT_S)

    second = Running(lambda: pull(one, 3, 0, 2))
    assert second.end() == OK
    assert first.is_running()
    assert torch.equal(instances.content(one)[:, 2], pattern(3)[:, 0])

    held.disarm()
    assert first.end() == OK
    assert torch.equal(instances.content(one)[:, 1], pattern(2)[:, 0])


@pytest.mark.parametrize("how", ["push_blocks", "transfer_cache_async"])
def test_a_push_ends_while_one_to_another_peer_stands_still(
    three: tuple[SimpleNamespace, ...], how: str
) -> None:
    """Mended: in the original one mutex of the engine orders all of them."""
    one, slow, other = three
    held = HeldMove(slow.raw[0])
    first = Running(lambda: send(one, 2, how, 0, 0))
    held.wait(WAIT_S)

    second = Running(lambda: send(one, 3, how, 0, 2))
    assert second.end() == OK
    assert first.is_running()
    assert torch.equal(instances.content(other)[:, 2], pattern(1)[:, 0])

    held.disarm()
    assert first.end() == OK
    assert torch.equal(instances.content(slow)[:, 0], pattern(1)[:, 0])


def send(one: SimpleNamespace, cluster_id: int, how: str, src: int, dst: int) -> None:
    if how == "push_blocks":
        one.manager.push_blocks(BlocksCacheKey(cluster_id), one.cache, [src], [dst])
    else:
        task = one.manager.transfer_cache_async(one.cache, Always(), [to(cluster_id)], [src], [dst])
        assert task.synchronize(WAIT_S * 1000) == OK


def test_pulls_and_a_transfer_share_a_link(three: tuple[SimpleNamespace, ...]) -> None:
    """The transfer waits for its layers; pulls on the same link do not wait for it."""
    one, other, _ = three
    gate = threading.Event()

    class Late(Always):
        def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
            return gate.wait(WAIT_S)

    task = one.manager.transfer_cache_async(one.cache, Late(), [to(2, range(LAYERS))], [5], [4])
    for block in range(3):
        assert Running(lambda block=block: pull(one, 2, block, block)).end() == OK
    assert not task.done()
    gate.set()

    assert task.synchronize(WAIT_S * 1000) == OK
    assert torch.equal(instances.content(one)[:, :3], pattern(2)[:, :3])
    assert torch.equal(instances.content(other)[:, 4], pattern(1)[:, 5])


@pytest.mark.parametrize("name", ["push_blocks", "pull_blocks"])
def test_finalize_during_a_blocking_call_answers_it(name: str) -> None:
    """At the end whose call it is: an error or, since it may end first, a success; never a hang."""
    one, other = start(1, 0, sync_kv_timeout=60_000), start(2, 1)
    link(one, other)
    held = HeldMove(other.raw[0])
    call = getattr(one.manager, name)
    running = Running(lambda: call(BlocksCacheKey(2), one.cache, [0], [0]))
    held.wait(WAIT_S)

    ending = Running(one.datadist.finalize)
    assert running.end() in (LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_FAILED)
    held.disarm()
    assert ending.end() == OK

    with pytest.raises(datadist.LLMException):
        call(BlocksCacheKey(2), one.cache, [0], [1])
    other.datadist.finalize()


def test_finalize_of_the_peer_during_a_blocking_call_answers_it(three: tuple[SimpleNamespace, ...]) -> None:
    one, leaving, _ = three
    held = HeldMove(leaving.raw[0])
    running = Running(lambda: pull(one, 2, 0, 1))
    held.wait(WAIT_S)

    leaving.datadist.finalize()
    held.disarm()

    assert running.end() in (OK, LLMStatusCode.LLM_NOT_YET_LINK)
    assert Running(lambda: pull(one, 3, 0, 2)).end() == OK
    assert torch.equal(instances.content(one)[:, 2], pattern(3)[:, 0])
