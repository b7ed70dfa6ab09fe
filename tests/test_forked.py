"""A process that was forked from one with an instance: calls are refused with a reason, and nothing hangs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import torch

import torch_llm_datadist as datadist
from tests import instances, links
from torch_llm_datadist import _native, ops

CHILD_HAS_S = 20


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except (datadist.LLMException, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def call_everything(state) -> dict[str, str]:
    other = datadist.LLMDataDist(datadist.LLMRole.MIX, 9)
    manager = state.manager
    ids = torch.tensor([0])
    calls: dict[str, Callable[[], object]] = {
        "init": lambda: other.init({"ge.exec.deviceId": "0"}),
        "links": state.datadist.links,
        "push_blocks": lambda: manager.push_blocks(datadist.BlocksCacheKey(2), state.cache, [0], [0]),
        "unregister_cache": lambda: manager.unregister_cache(state.cache.cache_id),
        "op": lambda: ops.push_blocks(state.status, state.cache.tensors, ids, ids, link=state.link),
        "Binding": lambda: datadist.Binding(0, [0]),
        "ticket_state": lambda: datadist.ticket_state(state.ticket),
        "discard": lambda: datadist.discard(state.ticket),
        "finalize": state.datadist.finalize,
        "at exit": state.datadist._finalize_at_exit,
        "stop_all": _native.load().stop_all,
    }
    return {name: said(call) for name, call in calls.items()}


def ask_a_child(state) -> dict[str, str]:
    state.manager = state.datadist.cache_manager
    state.link = state.datadist.link_id(2)
    state.status = torch.zeros(1, dtype=torch.int32).to(f"npu:{state.device}")
    key = datadist.BlocksCacheKey(2)
    state.task = state.manager.prepare_push(key, state.cache, [0], [0])
    state.ticket = state.task.ticket
    torch.npu.synchronize(state.device)
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_HAS_S)  # a call that hangs ends the child without an answer
        try:
            os.write(writes, json.dumps(call_everything(state)).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {}  # type: ignore[no-any-return]


def test_the_child_of_a_fork_is_told_so_by_every_call_and_the_parent_goes_on(peers) -> None:
    client, server, _ = links.linked_pair(peers)

    found = client.call(ask_a_child)

    assert found, "the child hung"
    quiet = {name for name, text in found.items() if text == "done"}
    assert quiet == {"finalize", "at exit", "stop_all"}  # what is the parent's stays the parent's
    for name in found.keys() - quiet:
        assert "was forked from one that had an instance" in found[name], name
    assert client.call(links.push, 2, [4], [5]) == "LLM_SUCCESS"
    assert torch.equal(server.call(instances.content)[:, 5], links.pattern(1)[:, 4])
