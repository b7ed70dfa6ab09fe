"""What the survivor does at each stage: called in its process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.links import BLOCKS, TENSORS, push_until_it_fails, status_of, unlink
from tests.reliability.cases import ENDS_WITHIN_S
from torch_llm_datadist import BlocksCacheKey, LLMStatusCode, emulator, ops
from torch_llm_datadist.handshake import Handshake

VICTIM, BYSTANDER = 2, 3
LAYERS = TENSORS // 2
Seen = tuple[str, float]  # what was seen, and after how many seconds


def name_of(code: int) -> str:
    return LLMStatusCode(code & 0xFFFFFFFF).name


def timed(call: Callable[[], str]) -> Seen:
    began = time.monotonic()
    said = call()
    return said, time.monotonic() - began


# In the process of the victim.


def fail_in_handshake(state: SimpleNamespace, signal_number: int) -> None:
    """When the last message of the handshake has come."""

    def on_join(self: Handshake, *_: object) -> None:
        os.kill(os.getpid(), signal_number)

    Handshake.on_join = on_join  # type: ignore[method-assign]


def swallow_join(state: SimpleNamespace) -> None:
    """The last message of the handshake comes, and is never answered."""
    state.join_came, state.on_join = threading.Event(), Handshake.on_join
    Handshake.on_join = lambda *_: state.join_came.set()  # type: ignore[method-assign]


def await_join(state: SimpleNamespace) -> None:
    assert state.join_came.wait(ENDS_WITHIN_S)
    Handshake.on_join = state.on_join  # type: ignore[method-assign]


def prepare(state: SimpleNamespace) -> int:
    """A push to the survivor, of which nothing is sent yet; its ticket."""
    key = BlocksCacheKey(1)
    state.task = state.datadist.cache_manager.prepare_push(key, state.cache, [0], [0])
    return int(state.task.ticket)


# In that of the survivor.


def connect(state: SimpleNamespace, port: int, address: str = "127.0.0.1") -> Seen:
    return timed(lambda: instances.link(state, VICTIM, port, 1500, address)[0])


def push_meanwhile(state: SimpleNamespace) -> None:
    """To the bystander, over and over, on a thread and a stream of its own."""
    state.is_over, state.pauses = threading.Event(), []

    def push_on_and_on() -> None:
        torch.npu.set_device(state.device)
        with torch.npu.stream(torch.npu.Stream(state.device)):
            last = time.monotonic()
            while not state.is_over.is_set():
                said = status_of(lambda: instances.push_blocks(state, BYSTANDER, [2], [2]))
                now = time.monotonic()
                state.pauses.append((now - last, said))
                last = now
                state.is_over.wait(0.01)

    state.pushing = threading.Thread(target=push_on_and_on, daemon=True)
    state.pushing.start()


def longest_pause(state: SimpleNamespace) -> float:
    """Between two of those pushes; each of them has arrived."""
    state.is_over.set()
    state.pushing.join(ENDS_WITHIN_S)
    assert not state.pushing.is_alive()
    assert {said for _, said in state.pauses} == {"LLM_SUCCESS"}
    return max(pause for pause, _ in state.pauses)


def push_on(state: SimpleNamespace) -> Seen:
    """Until it fails; what a frozen peer has in shared memory can be written until its link is lost."""
    said, after_s = push_until_it_fails(state, VICTIM, 20.0)
    return said.partition(":")[0], after_s


def queue_pushes(state: SimpleNamespace, behind_s: float = 0.3) -> None:
    torch.npu.set_device(state.device)
    blocks = torch.arange(BLOCKS)
    link = state.datadist.link_id(VICTIM)
    state.statuses = [torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}") for _ in range(20)]
    emulator.delay_stream(behind_s)
    for status in state.statuses:
        ops.push_blocks(status, state.cache.tensors, blocks, blocks, link=link, timeout_ms=20_000)


def read_statuses(state: SimpleNamespace) -> Seen:
    def read() -> str:
        torch.npu.synchronize(state.device)
        return " or ".join(sorted({name_of(int(status.item())) for status in state.statuses}))

    return timed(read)


def address_of_first_block(state: SimpleNamespace) -> int:
    return int(state.raw[0].data_ptr())


def push_once(state: SimpleNamespace) -> Seen:
    return timed(lambda: status_of(lambda: instances.push_blocks(state, VICTIM, [0], [5])).partition(":")[0])


def bind_ticket(state: SimpleNamespace, ticket: int) -> None:
    state.binding = datadist.Binding(state.device, range(LAYERS))
    state.binding.bind([ticket], timeout_s=60.0)


def wait_for_layers(state: SimpleNamespace) -> Seen:
    torch.npu.set_device(state.device)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")

    def wait() -> str:
        for layer in range(LAYERS):
            ops.wait_layer(status, status, layer, state.binding.id)
        torch.npu.synchronize(state.device)
        return name_of(int(status.item()))

    return timed(wait)


def ask_to_unlink(state: SimpleNamespace, port: int) -> Seen:
    def ask() -> str:
        polite = unlink(state, VICTIM, port, 1500, False)[0]
        if polite == "LLM_SUCCESS":
            return polite
        return f"{polite}, then with force {unlink(state, VICTIM, port, 1500, True)[0]}"

    return timed(ask)


def finalize(state: SimpleNamespace) -> Seen:
    def end() -> str:
        state.datadist.finalize()
        return "it returned"

    return timed(end)
