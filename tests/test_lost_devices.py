"""A device is lost, or the process that holds the bytes is just dying: every call is answered, soon, and with
what is true."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.peers import Peer
from tests.transfers import until
from torch_llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, Placement, ops
from torch_llm_datadist.emulator import faults

ENDS_WITHIN_S = 20.0  # on a machine that has better things to do; the answer takes about a second
ANSWERED_WITHIN_S = 10.0  # each call, once the device is lost
SRC, DST = [0, 1], [2, 3]


@pytest.fixture
def pair(peers: Any) -> tuple[Peer, Peer]:
    """Cluster 1, whose device is lost, and a healthy peer."""
    here, there, _ = links.linked_pair(peers)
    return here, there


def answer_of(call: Any) -> str:
    try:
        found = call()
    except LLMException as error:
        return error.status_code.name
    except RuntimeError as error:  # torch's own calls fail as well on a device that is lost
        return f"torch: {error}"
    return str(found)


def push(state: SimpleNamespace) -> tuple[str, float]:
    torch.npu.set_device(state.device)
    began = time.monotonic()
    answer = answer_of(lambda: instances.push_blocks(state, 2, SRC, DST))
    return answer, time.monotonic() - began


def wait_on_the_device(state: SimpleNamespace) -> str:
    torch.npu.set_device(state.device)
    return answer_of(torch.npu.synchronize)


def unlink(state: SimpleNamespace, force: bool) -> tuple[str, float]:
    began = time.monotonic()
    codes = state.datadist.unlink_clusters([state.peer], timeout=10_000, force=force)[1]
    return codes[0].name, time.monotonic() - began


def finalize(state: SimpleNamespace) -> float:
    began = time.monotonic()
    state.datadist.finalize()
    return time.monotonic() - began


def state_of_the_task(state: SimpleNamespace) -> tuple[bool, int]:
    return tuple(state.task.state()[:2])  # type: ignore[return-value]


def lose(peer: Peer) -> None:
    faults.of(peer.pid).lose_device(0)


def prepare_and_hold(state: SimpleNamespace) -> int:
    """A push by layers, of which no layer is released: a stream of the device waits for its end."""
    torch.npu.set_device(state.device)
    state.status = torch.zeros(1, dtype=torch.int32).npu()
    state.task = state.datadist.cache_manager.prepare_push(BlocksCacheKey(2), state.cache, SRC, DST)
    state.binding = datadist.Binding(state.device, range(1))
    waits = faults.calls("aclrtValueWait")
    state.binding.bind([state.task], timeout_s=60)
    until(lambda: faults.calls("aclrtValueWait") > waits)  # of the link's stream, for the layer
    instances.push_blocks(state, 2, [4], [5])  # the same thread fills that stream: it is through with ours
    ops.finish(state.status, state.status, state.binding.id)
    return state.task.ticket  # type: ignore[no-any-return]


def wait_for_layer(state: SimpleNamespace, ticket: int) -> None:
    """A forward of the healthy peer."""
    torch.npu.set_device(state.device)
    state.arrived = torch.zeros(1, dtype=torch.int32).npu()
    state.binding = datadist.Binding(state.device, range(1))
    state.binding.bind([ticket], timeout_s=60)
    ops.wait_layer(state.arrived, state.arrived, 0, state.binding.id)


def arrived(state: SimpleNamespace) -> int:
    torch.npu.synchronize()
    return int(state.arrived.item())


def test_every_call_is_answered_after_the_device_was_lost(pair: tuple[Peer, Peer]) -> None:
    here, there = pair
    ticket = here.call(prepare_and_hold)
    there.call(wait_for_layer, ticket)
    there.send(arrived)
    lose(here)

    pushed, took_s = here.call(push, within_s=ENDS_WITHIN_S)
    assert pushed in ("LLM_FAILED", "LLM_NOT_YET_LINK") or "5070" in pushed
    assert took_s < ANSWERED_WITHIN_S
    assert "5070" in here.call(wait_on_the_device, within_s=ENDS_WITHIN_S)
    assert there.answer(ENDS_WITHIN_S) != 0  # the other end's forward goes on, with a code
    for force in (False, True):
        code, took_s = here.call(unlink, force, within_s=ENDS_WITHIN_S)
        assert code == "LLM_SUCCESS"  # the link has died with the device
        assert took_s < ANSWERED_WITHIN_S
    assert here.call(finalize, within_s=ENDS_WITHIN_S) < ANSWERED_WITHIN_S
    assert there.call(links.wait_unlinked, 1, ENDS_WITHIN_S).startswith("LLM_NOT_YET_LINK")


def test_finalize_comes_back_when_nothing_else_has_noticed_the_loss(pair: tuple[Peer, Peer]) -> None:
    here, _ = pair
    lose(here)

    assert here.call(finalize, within_s=ENDS_WITHIN_S) < ANSWERED_WITHIN_S


def hold_who_ends_streams(state: SimpleNamespace) -> None:
    """The control thread closes the link; and who asks for the state of a stream ends one that is refused."""
    state.go_on = threading.Event()
    state.datadist._running.links._loop.post(lambda: state.go_on.wait(ENDS_WITHIN_S))
    state.looks = faults.delay_call("aclrtStreamQuery", ENDS_WITHIN_S, times=0)


def let_them_go(state: SimpleNamespace) -> None:
    state.looks.disarm()
    state.go_on.set()


def until_it_failed(state: SimpleNamespace) -> None:
    give_up_at = time.monotonic() + ENDS_WITHIN_S
    while not state.task.state().code:
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def test_a_task_has_ended_without_a_watchdog_when_its_streams_are_gone_and_no_earlier(
    pair: tuple[Peer, Peer],
) -> None:
    here, _ = pair
    here.call(prepare_and_hold)
    here.call(hold_who_ends_streams)
    lose(here)
    here.call(until_it_failed, within_s=ENDS_WITHIN_S)
    assert here.call(state_of_the_task)[0] is False  # its stream is there, whatever a lost device does
    here.call(let_them_go)

    here.call(finalize, within_s=ENDS_WITHIN_S)

    has_ended, code = here.call(state_of_the_task)
    assert has_ended
    assert code != 0


def finish_on_host(state: SimpleNamespace) -> tuple[int, str]:
    """Blocks until the push has ended."""
    code = torch.zeros(1, dtype=torch.int32)
    ops.finish(code, code, state.binding.id)
    return int(code.item()), state.task.state().detail


def prepare_on_host(state: SimpleNamespace) -> None:
    torch.npu.set_device(state.device)
    manager = state.datadist.cache_manager
    state.host = [torch.zeros(4, links.BLOCK_BYTES, dtype=torch.uint8) for _ in range(2)]
    desc = CacheDesc(2, [4, links.BLOCK_BYTES], DataType.DT_UINT8, Placement.HOST)
    source = manager.register_blocks_cache(desc, state.host, BlocksCacheKey(1, 5), remote_accessible=True)
    state.task = manager.prepare_push(BlocksCacheKey(2), source, SRC, DST)
    state.binding = datadist.Binding(state.device, range(1))
    state.binding.bind([state.task], timeout_s=60)


def test_a_host_that_waits_for_a_push_is_told_when_the_watchdog_is_gone(pair: tuple[Peer, Peer]) -> None:
    """Nobody is left who could write the status: it never reads as a success."""
    here, _ = pair
    here.call(prepare_on_host)
    here.send(finish_on_host)
    lose(here)

    code, detail = here.answer(ENDS_WITHIN_S)

    assert code != 0
    assert "cannot be released any more" in detail
    assert "the watchdog of device 0 stopped" in detail


# A process that dies loses its memory before it counts as dead.


def pull(state: SimpleNamespace) -> str:
    torch.npu.set_device(state.device)
    return links.status_of(lambda: instances.pull_blocks(state, 2, SRC, DST))


def refuse_imports(peer: Peer) -> faults.Armed:
    found = faults.of(peer.pid).fail_next("aclrtIpcMemImportByKey", 1, 507022, times=0)
    assert found is not None
    return found


def test_a_pull_from_a_holder_that_is_dying_says_that_the_link_is_gone(peers: Any) -> None:
    here, there, _ = links.linked_pair(peers, {"keep_alive_ms": 20_000})
    refused = refuse_imports(here)
    there.freeze()
    here.send(pull)
    refused.wait()

    there.kill()

    said = here.answer(ENDS_WITHIN_S)
    assert said.startswith("LLM_NOT_YET_LINK"), said
    assert "its process ended" in said


def test_memory_of_a_living_holder_that_cannot_be_mapped_is_a_failure_of_its_own(
    pair: tuple[Peer, Peer],
) -> None:
    here, _ = pair
    refuse_imports(here)

    said = here.call(pull)

    assert said.startswith("LLM_FAILED"), said
