"""Caches in host memory, between processes: the table of placements (2.8 of the API's description) as it is
served.

Three kinds of memory: "device"; "pool", host memory that was allocated from host_mem_pool_cfg and that peers
map; "plain", CPU tensors of the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.conformance.case import check_raises
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    LLMStatusCode,
    Placement,
    emulator,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
HERE, THERE = 1, 2
TENSORS, BATCH, ENTRY = 2, 3, 600
BLOCKS, BLOCK = 6, 200
KINDS = ["device", "pool", "plain", "pinned"]
MODEL = {kind: i for i, kind in enumerate(KINDS)}
POOL = json.dumps({"memory_size": 1 << 25, "page_shift": 12})
BIG = (9 << 19) + 1234  # more than twice a staging buffer


def serve(
    state: SimpleNamespace, cluster_id: int, device: int, mode: str, options: dict[str, Any] | None = None
) -> int:
    more = {"host_mem_pool_cfg": POOL, **(options or {})}
    port = instances.start(state, cluster_id, device, {**caches.MODES[mode], **more})
    state.manager = state.datadist.cache_manager
    for kind in KINDS:
        add(state, f"batch {kind}", kind, False, BATCH, ENTRY)
        add(state, f"blocks {kind}", kind, True, BLOCKS, BLOCK)
    return port


def add(state: SimpleNamespace, name: str, kind: str, is_blocks: bool, entries: int, size: int) -> int:
    placement = Placement.DEVICE if kind == "device" else Placement.HOST
    desc = caches.describe(TENSORS, entries, size, placement)
    key = BlocksCacheKey(state.cluster_id, MODEL[kind] + (100 if size == BIG else 0)) if is_blocks else None
    seed = seed_of(state.cluster_id, name)
    if kind != "pinned":
        return caches.add(
            state, name, seed, desc,
            is_blocks=is_blocks, key=key, allocate=kind == "pool", remote_accessible=kind != "pool" or None,
        )  # fmt: skip
    raw = [t.pin_memory() for t in caches.bytes_of(seed, desc.tensor_sizes)]
    tensors = [t.view(entries, size) for t in raw]
    register = state.manager.register_blocks_cache if is_blocks else state.manager.register_cache
    arguments = (key, True) if is_blocks else ((), True)
    state.caches[name], state.raw[name] = register(desc, tensors, *arguments), raw
    return state.caches[name].cache_id


def seed_of(cluster_id: int, name: str) -> int:
    return 1000 * cluster_id + sum(map(ord, name))


def content(cluster_id: int, name: str, entries: int, size: int) -> list[torch.Tensor]:
    return caches.rows(caches.bytes_of(seed_of(cluster_id, name), [entries * size] * TENSORS), entries)


@pytest.fixture(params=list(caches.MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def linked(peers: Any, mode: str) -> Any:
    a, b = peers(2)
    a.call(serve, HERE, 0, mode)
    port = b.call(serve, THERE, 1, mode)
    assert a.call(instances.link, THERE, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, HERE)
    return a, b


def cache_id_of(state: SimpleNamespace, name: str) -> int:
    cache_id: int = state.caches[name].cache_id
    return cache_id


# Every pair of kinds, and every way to move: bytes as plain torch moves them.


def move(state: SimpleNamespace, here: str, there: str, cache_id: int, how: str) -> None:
    manager = state.manager
    batch, blocks = (state.caches[f"{name} {here}"] for name in ("batch", "blocks"))
    entry, key = CacheKeyByIdAndIndex(THERE, cache_id, 1), BlocksCacheKey(THERE, MODEL[there])
    if how == "pull_cache":
        manager.pull_cache(entry, batch, 2)
    elif how == "pull_blocks":
        manager.pull_blocks(key, blocks, [0, 1, 4], [3, 4, 0])
    elif how == "C2B":
        manager.pull_blocks(entry, blocks, [], [5, 2])
    elif how == "push_cache":
        manager.push_cache(CacheKeyByIdAndIndex(THERE, cache_id, 2), batch, 0)
    else:
        manager.push_blocks(key, blocks, [1, 2], [5, 2])


def move_all(state: SimpleNamespace, ids: dict[str, int], mode: str) -> dict[str, str]:
    """Pulls, and pushes where they are on, from and to each kind; returns what failed."""
    failed = {}
    ways = ["pull_cache", "pull_blocks", "C2B", *(["push_cache", "push_blocks"] if mode == "RA" else [])]
    for here, there, how in itertools.product(KINDS, KINDS, ways):
        try:
            move(state, here, there, ids[f"batch {there}"], how)
        except datadist.LLMException as error:
            failed[f"{how} {here} {there}"] = error.status_code.name
    return failed


def replay(mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``move_all`` does, in plain torch."""
    here = {f"batch {k}": content(HERE, f"batch {k}", BATCH, ENTRY) for k in KINDS}
    here |= {f"blocks {k}": content(HERE, f"blocks {k}", BLOCKS, BLOCK) for k in KINDS}
    there = {f"batch {k}": content(THERE, f"batch {k}", BATCH, ENTRY) for k in KINDS}
    there |= {f"blocks {k}": content(THERE, f"blocks {k}", BLOCKS, BLOCK) for k in KINDS}
    for own, others in itertools.product(KINDS, KINDS):
        for t in range(TENSORS):
            batch, blocks = here[f"batch {own}"][t], here[f"blocks {own}"][t]
            far_batch, far_blocks = there[f"batch {others}"][t], there[f"blocks {others}"][t]
            batch[2] = far_batch[1]
            blocks[[3, 4, 0]] = far_blocks[[0, 1, 4]]
            if not is_refused(mode, own, others):
                blocks[[5, 2]] = far_batch[1].view(3, BLOCK)[:2]
            if mode == "RA":
                far_batch[2] = batch[0]
                far_blocks[[5, 2]] = blocks[[1, 2]]
    return here, there


def is_refused(mode: str, here: str, there: str) -> bool:
    """2.8: without remote access a host entry does not go into device blocks."""
    return mode == "non-RA" and here == "device" and there != "device"


def test_every_pair_of_placements_moves_the_bytes(peers: Any, mode: str) -> None:
    """Of 2.8 all that is "ok", without any staging pool (lifted), and H2H (a deviation: the original has
    none).
    """
    a, b = linked(peers, mode)

    move_and_compare(a, b, mode)


def move_and_compare(a: Any, b: Any, mode: str) -> None:
    """``a`` moves by each way that there is, and both ends hold what plain torch would have left there."""
    ids = {f"batch {kind}": b.call(cache_id_of, f"batch {kind}") for kind in KINDS}

    failed = a.call(move_all, ids, mode)

    refused = {f"C2B {h} {t}" for h, t in itertools.product(KINDS, KINDS) if is_refused(mode, h, t)}
    assert failed == dict.fromkeys(refused, "LLM_PARAM_INVALID")
    for peer, expected in zip((a, b), replay(mode), strict=True):
        for name, tensors in expected.items():
            assert caches.equal(peer.call(caches.look, name), tensors), (peer is a, name)


# Long copies go in pieces.


def move_big(state: SimpleNamespace, here: str, there: str) -> None:
    key = BlocksCacheKey(THERE, MODEL[there] + 100)
    local = state.caches[f"big {here}"]
    state.manager.pull_blocks(key, local, [1], [0])
    state.manager.push_blocks(key, local, [1], [0])


@pytest.mark.parametrize("there", ["device", "pool", "plain"])
def test_blocks_larger_than_the_staging_buffers_arrive_whole(peers: Any, there: str) -> None:
    a, b = linked(peers, "RA")
    for here in ("device", "plain"):
        for peer, kind in ((a, here), (b, there)):
            peer.call(add, f"big {kind}", kind, True, 2, BIG)
        expected = content(HERE, f"big {here}", 2, BIG), content(THERE, f"big {there}", 2, BIG)
        for ours, theirs in zip(*expected, strict=True):
            ours[0], theirs[0] = theirs[1].clone(), ours[1].clone()

        a.call(move_big, here, there)

        assert caches.equal(a.call(caches.look, f"big {here}"), expected[0])
        assert caches.equal(b.call(caches.look, f"big {there}"), expected[1])
        for peer, kind in ((a, here), (b, there)):
            peer.call(drop, f"big {kind}")


def drop(state: SimpleNamespace, name: str) -> None:
    state.manager.unregister_cache(state.caches.pop(name).cache_id)


# How: what is direct, and what is not.


def count(state: SimpleNamespace, here: str, there: str) -> int:
    """Copies that a pull of one block of two tensors submits, once everything is mapped."""
    key = BlocksCacheKey(THERE, MODEL[there])
    for _ in range(2):
        before = emulator.calls("aclrtMemcpyAsync"), emulator.calls("aclrtLaunchHostFunc")
        state.manager.pull_blocks(key, state.caches[f"blocks {here}"], [0], [0])
    return emulator.calls("aclrtMemcpyAsync") - before[0]


def test_memory_of_a_pool_is_copied_without_staging(peers: Any) -> None:
    """Device memory here and a pool there meet in one copy per tensor; everything else takes a stop or
    two.
    """
    a, _ = linked(peers, "RA")

    assert a.call(count, "device", "pool") == TENSORS
    assert a.call(count, "pool", "device") == 2 * TENSORS  # over a device buffer
    assert a.call(count, "pool", "pool") == 0  # a host function
    assert a.call(count, "plain", "device") == 2 * TENSORS  # and one host function each
    assert a.call(count, "device", "plain") == TENSORS  # likewise


# Who may reach what.


def register_host(state: SimpleNamespace, model_id: int, remote_accessible: bool | None) -> bool:
    desc = caches.describe(TENSORS, BLOCKS, BLOCK, Placement.HOST)
    caches.add(
        state, "late", 5, desc, is_blocks=True, key=BlocksCacheKey(THERE, model_id),
        remote_accessible=remote_accessible,
    )  # fmt: skip
    accessible: bool = state.caches["late"].remote_accessible
    return accessible


def try_pull(state: SimpleNamespace, model_id: int) -> str:
    try:
        state.manager.pull_blocks(BlocksCacheKey(THERE, model_id), state.caches["blocks device"], [0], [0])
    except datadist.LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


def test_the_default_of_remote_accessible_for_host_memory(peers: Any, mode: str) -> None:
    """1.8: False while remote access is on. Lifted: True without it, where nothing checks it (1.7)."""
    a, b = linked(peers, mode)

    assert b.call(register_host, 70, None) == (mode == "non-RA")
    assert a.call(try_pull, 70) == ("LLM_SUCCESS" if mode == "non-RA" else "LLM_KV_CACHE_NOT_EXIST")
    assert b.call(register_host, 71, False) is False
    assert a.call(try_pull, 71) == "LLM_KV_CACHE_NOT_EXIST"
    assert b.call(register_host, 72, True) is True
    assert a.call(try_pull, 72) == "LLM_SUCCESS"


def use_a_local_one(state: SimpleNamespace) -> None:
    register_host(state, 73, None)
    key, cache = BlocksCacheKey(THERE, MODEL["device"]), state.caches["late"]
    for call in (state.manager.push_blocks, state.manager.pull_blocks):
        message = check_raises(INVALID, lambda call=call: call(key, cache, [0], [0]))
        assert "the default of host memory" in message


def test_with_remote_access_a_host_cache_says_so_when_it_is_registered(peers: Any) -> None:
    """2.8 row 12: both ends need remote_accessible."""
    a, _ = linked(peers, "RA")
    a.call(use_a_local_one)


def layered(state: SimpleNamespace, here: str, there: str) -> str:
    task = state.manager.prepare_push(
        BlocksCacheKey(THERE, MODEL[there]), state.caches[f"blocks {here}"], [1, 2], [5, 0],
        tensor_num_per_layer=1,
    )  # fmt: skip
    binding = datadist.Binding(0, range(TENSORS))
    binding.bind([task], timeout_s=10)
    for layer in range(TENSORS):
        datadist.ops.push_layer(state.status, state.status, layer, binding.id)
    datadist.ops.finish(state.status, state.status, binding.id)
    return LLMStatusCode(int(state.status.item())).name


def test_layered_pushes_go_from_and_to_every_kind_of_memory(peers: Any) -> None:
    """Without a stop on the way, over a device buffer, over a page-locked one, by host functions alone."""
    a, b = linked(peers, "RA")
    expected = {kind: content(THERE, f"blocks {kind}", BLOCKS, BLOCK) for kind in KINDS}

    for here, there in itertools.product(KINDS, KINDS):
        assert a.call(layered, here, there) == "LLM_SUCCESS", (here, there)
        ours = content(HERE, f"blocks {here}", BLOCKS, BLOCK)
        for to, of in zip(expected[there], ours, strict=True):
            to[[5, 0]] = of[[1, 2]]

        assert caches.equal(b.call(caches.look, f"blocks {there}"), expected[there]), (here, there)


# Order, failures, lifetimes.


def ops_in_order(state: SimpleNamespace) -> list[torch.Tensor]:
    """Without a host wait: a host function that carries the bytes is ordered like a copy."""
    link = state.datadist.link_id(THERE)
    ids = torch.tensor([0])
    tensors, out = state.caches["blocks device"].tensors, state.caches["blocks plain"].tensors
    for tensor in tensors:
        tensor.fill_(5)
    # Up to a CPU tensor there and back into one here, all on the stream.
    datadist.ops.push_blocks(
        state.status, tensors, ids, ids, link=link, model_id=MODEL["plain"], tensors_per_layer=1
    )
    for tensor in tensors:
        tensor.fill_(6)
    datadist.ops.pull_blocks(
        state.status, tensors, ids, ids + 1, link=link, model_id=MODEL["plain"], tensors_per_layer=1
    )
    datadist.ops.pull_blocks(
        state.status, out, ids, ids, link=link, model_id=MODEL["plain"], tensors_per_layer=1
    )
    torch.npu.synchronize(0)
    assert int(state.status.item()) == 0
    assert all(bool((t.view(torch.uint8)[1] == 5).all()) for t in tensors)
    return [t.view(torch.uint8)[0].clone() for t in out]


def test_host_transfers_are_ordered_on_the_callers_stream(peers: Any) -> None:
    a, _ = linked(peers, "RA")

    assert all(bool((t == 5).all()) for t in a.call(ops_in_order))


def pull_from_the_dead(state: SimpleNamespace) -> tuple[str, int]:
    manager, cache = state.manager, state.caches["blocks plain"]
    key = BlocksCacheKey(THERE, MODEL["plain"])
    try:
        while True:
            manager.pull_blocks(key, cache, [0], [0])
    except datadist.LLMException as error:
        return error.status_code.name, int(state.status.item())


def test_a_peer_that_dies_ends_transfers_of_its_host_memory(peers: Any) -> None:
    a, b = linked(peers, "RA")
    a.send(pull_from_the_dead)

    b.kill()

    code, _ = a.answer(10)
    assert code in ("LLM_NOT_YET_LINK", "LLM_FAILED")


def failing_host_copy(state: SimpleNamespace) -> tuple[str, int]:
    """The file of the peer's memory is closed under the transfer: the copy fails, and nobody is told of
    success.
    """
    import os

    key = BlocksCacheKey(THERE, MODEL["plain"])
    cache = state.caches["blocks device"]
    state.manager.pull_blocks(key, cache, [0], [0])
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").endswith("/mem"):
                with open("/dev/null") as nothing:
                    os.dup2(nothing.fileno(), int(name))
        except OSError:
            continue
    ids = torch.tensor([0])
    datadist.ops.pull_blocks(
        state.status, cache.tensors, ids, ids, link=state.datadist.link_id(THERE), model_id=MODEL["plain"],
        tensors_per_layer=1,
    )  # fmt: skip
    status = int(state.status.item())
    try:
        state.manager.pull_blocks(key, cache, [0], [0])
    except datadist.LLMException as error:
        return error.status_code.name, status
    return "LLM_SUCCESS", status


def test_a_host_copy_that_fails_is_never_taken_for_a_success(peers: Any) -> None:
    a, _ = linked(peers, "RA")

    assert a.call(failing_host_copy) == ("LLM_FAILED", -1)


def bind_ticket(state: SimpleNamespace, ticket: int) -> None:
    state.binding = datadist.Binding(1, range(TENSORS))
    state.binding.bind([ticket], timeout_s=20)


def wait_for_a_layer(state: SimpleNamespace) -> str:
    status = torch.zeros(1, dtype=torch.int32)
    datadist.ops.wait_layer(status, status, 0, state.binding.id)
    return LLMStatusCode(int(status.item()) & 0xFFFFFFFF).name


def prepare_into_nowhere(state: SimpleNamespace) -> int:
    """A push whose first copy to the peer's plain memory fails: its file is replaced by a full one."""
    import os

    key = BlocksCacheKey(THERE, MODEL["plain"])
    state.manager.push_blocks(key, state.caches["blocks device"], [0], [0])
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").endswith("/mem"):
                with open("/dev/full", "wb", buffering=0) as full:
                    os.dup2(full.fileno(), int(name))
    state.task = state.manager.prepare_push(
        key, state.caches["blocks device"], [1, 2], [5, 0], tensor_num_per_layer=1
    )
    ticket: int = state.task.ticket
    return ticket


def push_into_nowhere(state: SimpleNamespace) -> int:
    binding = datadist.Binding(0, range(TENSORS))
    binding.bind([state.task], timeout_s=20)
    for layer in range(TENSORS):
        datadist.ops.push_layer(state.status, state.status, layer, binding.id)
    datadist.ops.finish(state.status, state.status, binding.id)
    return int(state.status.item())


def test_a_layer_whose_host_copy_failed_is_not_announced(peers: Any) -> None:
    """A host function cannot stop its stream, so the flag behind it waits for a look at its outcome."""
    a, b = linked(peers, "RA")
    b.call(bind_ticket, a.call(prepare_into_nowhere))
    b.send(wait_for_a_layer)

    assert a.call(push_into_nowhere) == -1  # LLM_FAILED

    assert b.answer(20) == "LLM_FAILED"


def held(state: SimpleNamespace) -> int:
    import time

    deadline = time.monotonic() + 10
    while state.manager.held_caches() and time.monotonic() < deadline:
        time.sleep(0.005)
    return len(state.manager.held_caches())


def test_host_caches_are_withdrawn_and_their_pools_unmapped(peers: Any) -> None:
    a, b = linked(peers, "RA")
    assert a.call(try_pull, MODEL["pool"]) == "LLM_SUCCESS"
    assert a.call(mapped_pools) == 2  # its own, and the peer's

    for kind in ("pool", "plain"):
        b.call(drop, f"blocks {kind}")
        b.call(drop, f"batch {kind}")

    assert b.call(held) == 0
    assert a.call(try_pull, MODEL["pool"]) == "LLM_KV_CACHE_NOT_EXIST"
    assert a.call(mapped_pools) == 1


def mapped_pools(state: SimpleNamespace) -> int:
    with open("/proc/self/maps") as maps:
        return len({line.split()[4] for line in maps if "torch_llm_datadist_host_pool" in line})


# Two instances of one process: no mapping at all.


def test_placements_within_one_process() -> None:
    here, there = SimpleNamespace(), SimpleNamespace()
    serve(here, HERE, 0, "RA")
    port = serve(there, THERE, 1, "RA")
    assert instances.link(here, THERE, port) == ["LLM_SUCCESS"]
    ids = {f"batch {kind}": there.caches[f"batch {kind}"].cache_id for kind in KINDS}

    assert move_all(here, ids, "RA") == {}

    for state, expected in zip((here, there), replay("RA"), strict=True):
        for name, tensors in expected.items():
            assert caches.equal(caches.look(state, name), tensors), (state.cluster_id, name)
    here.datadist.finalize()
    there.datadist.finalize()
