"""A process that was forked from one with an instance: calls are refused with a reason, and nothing hangs."""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

import torch_llm_datadist as datadist
from tests import instances, links
from tests.transfers import Calling
from torch_llm_datadist import _native, ops

CHILD_HAS_S = 30
LAYERS = 1  # of two tensors

# Public classes that only hold values, or that a caller implements: there is nothing to wait for.
VALUES = {
    "BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "DataType", "KvCache",
    "LLMClusterInfo", "LLMConfig", "LLMException", "LLMRole", "LLMStatusCode", "LayerSynchronizer",
    "LlmConfig",
    "MemInfo", "Memtype", "Placement", "RegisterMemStatus", "Status", "TransferConfig",
    "TransferWithCacheKeyConfig",
}  # fmt: skip
# Of the older role-bound API, whose methods are those of the manager.
SAME = {"KvCacheManager"}

# What asks nobody, so that it may answer in the child, and why.
QUIET = {
    "LLMDataDist.finalize": "what is the parent's stays the parent's",
    "LLMDataDist._finalize_at_exit": "likewise",
    "_C.stop_all": "likewise",
    "CacheManager.close": "likewise",
    "Binding.close": "likewise",
    "CacheTask.done": "what the parent knew at the fork",
    "TransferWatch.add": "notes a name",
    "TransferWatch.forget": "forgets it",
    "StreamLayerSynchronizer.synchronize_layer": "is refused in any process",
}


def make_objects(state: SimpleNamespace) -> None:
    """Whatever a process may have made before it forks."""
    state.manager = manager = state.datadist.cache_manager
    state.link = state.datadist.link_id(2)
    state.status = torch.zeros(1, dtype=torch.int32).to(f"npu:{state.device}")
    state.key = datadist.BlocksCacheKey(2)
    state.by_id = datadist.CacheKeyByIdAndIndex(2, 1)
    task = manager.prepare_push(state.key, state.cache, [0], [0])
    state.ticket = task.ticket
    layers = range(LAYERS)
    state.config = datadist.TransferWithCacheKeyConfig(state.key, layers, layers)
    synchronizer = datadist.StreamLayerSynchronizer(state.device, layers)
    watch = datadist.TransferWatch()
    watch.add("watched", task)
    state.goes_on = threading.Event()
    is_asked = threading.Event()
    waits = Calling(lambda layer: is_asked.set() or state.goes_on.wait(60))
    state.objects = {
        "LLMDataDist": state.datadist,
        "CacheManager": manager,
        "Task": task,
        "Publication": manager.publish(state.raw[0], state.cache, None, 2),
        "Binding": datadist.Binding(state.device, layers),
        "TransferWatch": watch,
        "StreamLayerSynchronizer": synchronizer,
        "StreamTask": manager.transfer_cache_async(state.cache, synchronizer, [state.config], [1], [1]),
        "CacheTask": manager.transfer_cache_async(state.cache, waits, [state.config], [2], [2]),
    }
    assert is_asked.wait(30)  # it is under way, with a task of its own
    torch.npu.synchronize(state.device)


def arguments(state: SimpleNamespace) -> dict[str, tuple[Any, ...]]:
    """How a method that needs some is called."""
    desc, raw, key, cache = state.cache.cache_desc, state.raw, state.key, state.cache
    info = instances.cluster(2, 1)
    status, ids = state.status, torch.tensor([0])
    cpu = datadist.Cache.create_cpu_cache(
        datadist.CacheDesc(2, list(desc.shape), desc.data_type, datadist.Placement.HOST), [4096, 8192]
    )
    return {
        "LLMDataDist.check_link_status": (2,),
        "LLMDataDist.init": ({},),
        "LLMDataDist.link": ("name", {1: 0, 2: 1}, "{}"),
        "LLMDataDist.link_clusters": ([info],),
        "LLMDataDist.link_group": ({2: "127.0.0.1:1"},),
        "LLMDataDist.link_id": (2,),
        "LLMDataDist.query_register_mem_status": (1,),
        "LLMDataDist.switch_role": (datadist.LLMRole.MIX,),
        "LLMDataDist.unlink": (1,),
        "LLMDataDist.unlink_clusters": ([info],),
        "LLMDataDist.wait_linked": ([2], 5.0),
        "CacheManager.allocate_blocks_cache": (desc,),
        "CacheManager.allocate_cache": (desc,),
        "CacheManager.assign_blocks": (state.ticket, cache, [0]),
        "CacheManager.cancel": (state.ticket,),
        "CacheManager.copy_blocks": (cache, {0: [1]}),
        "CacheManager.copy_cache": (cache, cache),
        "CacheManager.deallocate_blocks_cache": (cache,),
        "CacheManager.deallocate_cache": (cache,),
        "CacheManager.expect": (state.ticket, [0]),
        "CacheManager.prepare_push": (key, cache, [0], [0]),
        "CacheManager.publish": (raw[0], cache, None, 2),
        "CacheManager.pull_blocks": (key, cache, [0], [0]),
        "CacheManager.pull_cache": (state.by_id, cache),
        "CacheManager.push_blocks": (key, cache, [0], [0]),
        "CacheManager.push_cache": (state.by_id, cache),
        "CacheManager.register_blocks_cache": (desc, raw),
        "CacheManager.register_cache": (desc, raw),
        "CacheManager.remap_registered_memory": (
            datadist.MemInfo(datadist.Memtype.MEM_TYPE_DEVICE, 4096, 1),
        ),
        "CacheManager.remove_cache_key": (datadist.CacheKey(1, 1),),
        "CacheManager.swap_blocks": (cpu, cache, {0: 1}),
        "CacheManager.transfer_cache_async": (cache, Calling(bool), [state.config], [0], [0]),
        "CacheManager.unregister_cache": (cache.cache_id,),
        "CacheManager.wait_arrival": (2, "tag"),
        "CacheTask.give_up": ("it was",),
        "StreamTask.give_up": ("it was",),
        "Publication.wait_taken": (5.0,),
        "TransferWatch.add": ("more", state.ticket),
        "TransferWatch.forget": ("more",),
        "StreamLayerSynchronizer.finish": (status,),
        "StreamLayerSynchronizer.record_layer": (0, status),
        "StreamLayerSynchronizer.synchronize_layer": (0, None),
        "Binding": (state.device, [0]),
        "StreamLayerSynchronizer": (state.device, [0]),
        "discard": (state.ticket,),
        "ticket_state": (state.ticket,),
        "ops.push_blocks": (status, cache.tensors, ids, ids),
    }


def public_methods(name: str, found: object) -> Iterator[tuple[str, Callable[..., object]]]:
    for method, _ in inspect.getmembers(type(found), inspect.isfunction):
        if not method.startswith("_"):
            yield f"{name}.{method}", getattr(found, method)


def every_call(state: SimpleNamespace) -> Iterator[tuple[str, Callable[[], object]]]:
    """All methods of all public classes, so that a new one cannot be forgotten."""
    public = {name: getattr(datadist, name) for name in datadist.__all__}
    classes = {name for name, found in public.items() if inspect.isclass(found)}
    with_a_life = state.objects.keys() - {"StreamTask"}  # which is a CacheTask
    assert classes == with_a_life | VALUES | SAME, "a class is new: is it to be refused in a child?"
    given = arguments(state)
    calls: dict[str, Callable[..., object]] = {
        "Binding": datadist.Binding,
        "StreamLayerSynchronizer": datadist.StreamLayerSynchronizer,
        "ops.push_blocks": lambda *given: ops.push_blocks(*given, link=state.link),
        "LLMDataDist._finalize_at_exit": state.datadist._finalize_at_exit,
        "_C.stop_all": _native.load().stop_all,
    }
    calls |= {name: found for name, found in public.items() if inspect.isfunction(found)}
    for name, found in state.objects.items():
        calls |= dict(public_methods(name, found))
    for name in ("CacheTask", "StreamTask"):
        calls[f"await {name}"] = lambda task=state.objects[name]: list(task.__await__())
    ends = ("LLMDataDist.finalize", "CacheManager.close", "Binding.close")
    for name in sorted(calls, key=lambda name: name in ends):  # those last, after which others say so
        yield name, lambda name=name: calls[name](*given.get(name, ()))


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def call_everything(state: SimpleNamespace, answer: int) -> None:
    for name, call in every_call(state):
        os.write(answer, json.dumps([name, ""]).encode() + b"\n")  # who hangs is the last one
        os.write(answer, json.dumps([name, said(call)]).encode() + b"\n")
    os.write(answer, b'["", "the end"]\n')


def ask_a_child(state: SimpleNamespace) -> list[list[str]]:
    make_objects(state)
    reads, writes = os.pipe()
    changing = state.datadist.cache_manager._changing
    pid = os.fork()
    if pid == 0:
        changing.acquire()  # as if a thread had been registering a cache, which is not there in the child
        signal.alarm(CHILD_HAS_S)  # a call that hangs ends the child
        try:
            call_everything(state, writes)
        except BaseException as error:
            os.write(writes, json.dumps(["every_call", repr(error)]).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as answer:
        lines = answer.read().splitlines()
    os.waitpid(pid, 0)
    state.goes_on.set()
    return [json.loads(line) for line in lines]


def test_the_child_of_a_fork_is_told_so_by_every_call_and_the_parent_goes_on(peers) -> None:
    client, server, _ = links.linked_pair(peers)

    answers = client.call(ask_a_child)

    assert answers[-1] == ["", "the end"], f"the child hung, or failed: {answers[-1]}"
    found = {name: text for name, text in answers[:-1] if text}
    answered = {
        name for name, text in found.items() if "was forked from one that had an instance" not in text
    }
    assert answered == set(QUIET), {name: found[name] for name in answered ^ set(QUIET) if name in found}
    assert client.call(links.push, 2, [4], [5]) == "LLM_SUCCESS"
    assert torch.equal(server.call(instances.content)[:, 5], links.pattern(1)[:, 4])
