"""Links over CANN's HIXL engine, emulated: bytes go by TCP between registered memory of two processes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import caches, instances
from tests.caches import describe
from tests.links import LATE_S
from tests.peers import Peer, PeerError
from tests.test_engine_transports import why_lost
from tests.test_ordering import LAYERS, check_a_layered_forward
from tests.test_two_sided_links import free_base, rank_table
from torch_llm_datadist import BlocksCacheKey, LLMException, LLMRole, Placement, RegisterMemStatus
from torch_llm_datadist.emulator import libraries

TENSORS, BLOCKS, BLOCK_BYTES = 4, 16, 4096
HIXL = {"transfer_backend": "hixl"}
KEEP_ALIVE_MS = 1500


def library() -> ctypes.CDLL:
    """The emulated libcann_hixl.so of this process, with its faults and counts."""
    loaded = ctypes.CDLL(str(libraries.hixl_path()))
    loaded.emuHixlCalls.restype = ctypes.c_int64
    return loaded


def calls(state: SimpleNamespace, method: str) -> int:
    return int(library().emuHixlCalls(method.encode()))


def fail_next(state: SimpleNamespace, method: str, nth: int, code: int) -> None:
    assert library().emuHixlFailNext(method.encode(), nth, code) == 0


def hold(state: SimpleNamespace, after_bytes: int) -> None:
    library().emuHixlHold(ctypes.c_int64(after_bytes))


def until_held(state: SimpleNamespace) -> None:
    deadline = time.monotonic() + 20
    while library().emuHixlHeld() == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def transport(state: SimpleNamespace) -> list[str]:
    return [info.transport for info in state.datadist.links()]


def pattern(seed: int) -> torch.Tensor:
    return instances.pattern(seed, TENSORS, BLOCKS, BLOCK_BYTES)


def linked(peers: Any, **options: Any) -> tuple[Peer, Peer, int]:
    """Two processes, on two devices, with a cache each; linked over HIXL from the first to the second."""
    given = {**HIXL, "keep_alive_ms": KEEP_ALIVE_MS, **options}
    a, b = peers(2)
    a.call(instances.start, 1, 0, given)
    port = b.call(instances.start, 2, 1, given)
    a.call(instances.register, 10, TENSORS, BLOCKS, BLOCK_BYTES)
    b.call(instances.register, 20, TENSORS, BLOCKS, BLOCK_BYTES)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    return a, b, port


def test_blocks_are_pushed_and_pulled_bit_for_bit(peers):
    a, b, _ = linked(peers)
    assert a.call(transport) == b.call(transport) == ["hixl"]

    a.call(instances.push_blocks, 2, [0, 1, 5], [3, 4, 9])
    a.call(instances.pull_blocks, 2, [15, 2], [14, 7])
    b.call(instances.push_blocks, 1, [8], [8])

    ours, theirs = pattern(10), pattern(20)
    ours[:, [14, 7]] = theirs[:, [15, 2]]
    ours[:, 8] = theirs[:, 8]
    theirs[:, [3, 4, 9]] = pattern(10)[:, [0, 1, 5]]
    assert torch.equal(a.call(instances.content), ours)
    assert torch.equal(b.call(instances.content), theirs)
    assert a.call(calls, "TransferAsync") > 0


@pytest.mark.parametrize("local", list(Placement), ids=lambda placement: placement.name)
@pytest.mark.parametrize("remote", list(Placement), ids=lambda placement: placement.name)
def test_device_and_host_caches_reach_each_other(peers, local, remote):
    """Lifted: the original's backend moves device caches."""
    a, b = peers(2)
    a.call(instances.start, 1, 0, HIXL)
    port = b.call(instances.start, 2, 1, HIXL)
    for peer, seed, placement in ((a, 1, local), (b, 2, remote)):
        desc = describe(4, 8, 4096, placement)
        peer.call(add_blocks, seed, desc)
    a.call(instances.link, 2, port)
    b.call(instances.wait_linked, 1)

    a.call(push, 2, [1, 2], [5, 6])
    a.call(pull, 2, [0], [7])

    ours, theirs = (
        [whole.view(8, 4096) for whole in caches.bytes_of(seed, [8 * 4096] * 4)] for seed in (1, 2)
    )
    for one, other in zip(ours, theirs, strict=True):
        other[[5, 6]] = one[[1, 2]]
        one[7] = other[0]
    assert a.call(raw_is, ours)
    assert b.call(raw_is, theirs)


def add_blocks(state: SimpleNamespace, seed: int, desc: datadist.CacheDesc) -> None:
    key = BlocksCacheKey(state.cluster_id, 0)
    caches.add(state, "cache", seed, desc, is_blocks=True, key=key, remote_accessible=True)


def push(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> None:
    manager = state.datadist.cache_manager
    manager.push_blocks(BlocksCacheKey(cluster_id, 0), state.caches["cache"], src, dst)


def pull(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> None:
    manager = state.datadist.cache_manager
    manager.pull_blocks(BlocksCacheKey(cluster_id, 0), state.caches["cache"], src, dst)


def raw_is(state: SimpleNamespace, expected: list[torch.Tensor]) -> bool:
    torch.npu.synchronize(state.device)
    found = [raw.cpu().view(8, 4096) for raw in state.raw["cache"]]
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_layered_forward_goes_over_hixl(peers):
    a, b = peers(2)
    a.call(instances.start, 1, 0, HIXL)
    port = b.call(instances.start, 2, 1, HIXL)
    a.call(instances.register, 10, 2 * LAYERS, 24, 256)
    b.call(instances.register, 20, 2 * LAYERS, 24, 256)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)

    check_a_layered_forward(a, b)


def test_caches_that_came_after_the_link_are_reached(peers):
    """Lifted: HIXL reaches what was registered before it connected, so it connects anew."""
    a, b, _ = linked(peers)
    a.call(instances.push_blocks, 2, [0], [0])
    before = a.call(calls, "Connect")
    for peer, seed in ((a, 30), (b, 40)):
        peer.call(register_more, seed)

    a.call(push_until_known, 2, [3], [4])

    theirs = pattern(40)
    theirs[:, 4] = pattern(30)[:, 3]
    assert torch.equal(b.call(instances.content), theirs)
    assert a.call(calls, "Connect") > before


def register_more(state: SimpleNamespace, seed: int) -> None:
    instances.register(state, seed, TENSORS, BLOCKS, BLOCK_BYTES, model_id=7)


def push_until_known(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> None:
    """The peer's cache is announced a moment after it was registered."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return instances.push_blocks(state, cluster_id, src, dst, model_id=7)
        except datadist.KvCacheNotExistError:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_two_sided_links_and_a_listener_that_moves_are_there_with_this_backend_too(peers):
    """Lifted: both are LLM_FEATURE_NOT_ENABLED."""
    a, b = peers(2)
    base = free_base()
    for cluster_id, peer in ((1, a), (2, b)):
        peer.call(instances.start, cluster_id, cluster_id - 1, {**HIXL, "link_port": base})
        peer.call(instances.register, 10 * cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
        peer.call(begin_comm)
    for peer in (a, b):
        peer.call(until_comm_is_ok)

    assert a.call(transport) == ["hixl"]
    a.call(instances.push_blocks, 2, [3], [4])
    theirs = pattern(20)
    theirs[:, 4] = pattern(10)[:, 3]
    assert torch.equal(b.call(instances.content), theirs)
    for peer in (a, b):
        peer.call(end_comm)
    assert a.call(instances.link, 2, b.call(move_listener)) == ["LLM_SUCCESS"]


def begin_comm(state: SimpleNamespace) -> None:
    state.comm_id = state.datadist.link("comm", {1: 0, 2: 1}, rank_table([0, 1]))


def until_comm_is_ok(state: SimpleNamespace) -> None:
    state.datadist.wait_linked([3 - state.cluster_id], timeout_s=20)
    assert state.datadist.query_register_mem_status(state.comm_id) == RegisterMemStatus.OK


def end_comm(state: SimpleNamespace) -> None:
    state.datadist.unlink(state.comm_id)


def move_listener(state: SimpleNamespace) -> int:
    before = state.datadist.listen_port
    state.datadist.switch_role(LLMRole.DECODER, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert state.datadist.listen_port != before
    return int(state.datadist.listen_port)


@pytest.mark.parametrize("nth", [1, TENSORS])
def test_memory_that_the_engine_of_a_link_refuses_is_not_registered(peers, nth):
    """2.6, "transport refuses memory", with the engine's code. Nothing of it stays with the engine."""
    a, b, _ = linked(peers)
    before = {method: a.call(calls, method) for method in ("RegisterMem", "DeregisterMem")}
    a.call(fail_next, "RegisterMem", nth, 203900)

    with pytest.raises(PeerError, match=r"register_blocks_cache: (?s:.*)203900(?s:.*)Nothing was registered"):
        a.call(register_more, 30)

    made = a.call(calls, "RegisterMem") - before["RegisterMem"] - 1
    assert made == nth - 1
    assert a.call(calls, "DeregisterMem") - before["DeregisterMem"] == made
    with pytest.raises(PeerError, match="KvCacheNotExist"):
        b.call(instances.push_blocks, 1, [0], [0], 7)
    a.call(register_more, 30)  # again, and now it is taken
    b.call(register_more, 40)
    a.call(push_until_known, 2, [3], [4])
    theirs = pattern(40)
    theirs[:, 4] = pattern(30)[:, 3]
    assert torch.equal(b.call(instances.content), theirs)


def test_memory_that_an_engine_refuses_when_the_link_is_made_is_a_status_of_link_clusters(peers):
    """Mended, in its way: HIXL is asked link by link, so before the first one there is nobody to ask."""
    a, b, port = linked(peers)
    of_all = a.call(calls, "RegisterMem")
    a.call(unlink, 2)
    a.call(fail_next, "RegisterMem", of_all, 203900)  # the cache's last tensor

    assert a.call(instances.link, 2, port) == ["LLM_OUT_OF_MEMORY"]

    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    a.call(instances.push_blocks, 2, [0], [0])


def test_a_killed_peer_fails_the_push_in_time_and_a_new_one_is_linked(peers):
    a, b, _ = linked(peers)
    b.call(hold, 4096)
    a.send(status_of_push, 2)
    b.call(until_held)

    begun = time.monotonic()
    b.kill()
    code = a.answer()
    took = time.monotonic() - begun

    assert code != "LLM_SUCCESS"
    assert took < 2 * KEEP_ALIVE_MS / 1000 + LATE_S
    a.call(unlink, 2)
    (c,) = peers(1)
    port = c.call(instances.start, 2, 1, HIXL)
    c.call(instances.register, 20, TENSORS, BLOCKS, BLOCK_BYTES)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert a.call(status_of_push, 2) == "LLM_SUCCESS"
    assert torch.equal(c.call(instances.content)[:, 1], pattern(10)[:, 0])


def test_a_frozen_peer_is_noticed_and_what_it_gets_is_never_called_arrived(peers):
    a, b, _ = linked(peers)
    b.freeze()

    begun = time.monotonic()
    code = a.call(status_of_push, 2)
    took = time.monotonic() - begun

    assert code in ("LLM_TIMEOUT", "LLM_NOT_YET_LINK", "LLM_LINK_FAILED")
    assert took < 2 * KEEP_ALIVE_MS / 1000 + LATE_S
    b.thaw()


def told(state: SimpleNamespace, *keys: str) -> list[str | None]:
    asked = library().emuHixlOption
    asked.restype = ctypes.c_char_p
    said = [asked(key.encode()) for key in keys]
    return [None if value is None else value.decode() for value in said]


def test_options_of_hixl_reach_its_engine_by_its_names_for_them(peers):
    """Lifted: what would set up HCCL in the original sets up HIXL here."""
    mine = ("RdmaTrafficClass", "RdmaServiceLevel", "GlobalResourceConfig", "LocalCommRes", "BufferPool")
    resource = {"connect_pool.size": 2}
    a, b, _ = linked(
        peers,
        rdma_traffic_class=164,
        rdma_service_level=5,
        local_comm_res='{"version": "1.3"}',
        global_resource_config=json.dumps(resource),
    )
    a.call(instances.push_blocks, 2, [0], [0])

    for peer in (a, b):
        assert peer.call(told, *mine) == ["164", "5", json.dumps(resource), '{"version": "1.3"}', "0:0"]


def test_what_is_not_set_is_left_to_hixl(peers):
    a, _, _ = linked(peers, local_comm_res="")

    names = ("RdmaTrafficClass", "RdmaServiceLevel", "GlobalResourceConfig", "LocalCommRes")
    assert a.call(told, *names) == [None] * 4


def status_of_push(state: SimpleNamespace, cluster_id: int) -> str:
    try:
        instances.push_blocks(state, cluster_id, [0], [1])
    except LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


def unlink(state: SimpleNamespace, cluster_id: int) -> None:
    state.datadist.unlink_clusters([instances.cluster(cluster_id, 0)], timeout=2000, force=True)


def test_a_refused_batch_ends_the_link_with_hixls_code(peers):
    a, _b, _ = linked(peers)
    a.call(instances.push_blocks, 2, [0], [0])

    a.call(fail_next, "TransferAsync", 1, 203900)
    said = a.call(message_of_push, 2)

    assert "203900" in said
    assert "no resources are left" in said


def message_of_push(state: SimpleNamespace, cluster_id: int) -> str:
    for _ in range(1000):
        try:
            instances.push_blocks(state, cluster_id, [0], [1])
        except LLMException as error:
            if "203900" in str(error):
                return str(error)
    return "never refused"


def test_the_end_of_a_peers_process_is_the_reason_also_when_the_engine_fails_first(peers):
    """A process closes its sockets, which the engine reports, before it counts as ended."""
    a, b, _ = linked(peers)
    a.call(instances.push_blocks, 2, [0], [0])

    said = a.call(push_that_fails_as_the_peer_ends, 2, b.pid)

    assert "its process ended" in said
    assert "203900" not in said


def push_that_fails_as_the_peer_ends(state: SimpleNamespace, cluster_id: int, pid: int) -> str:
    begun = calls(state, "TransferAsync")
    fail_next(state, "TransferAsync", 1, 203900)
    pushing = threading.Thread(target=status_of_push, args=(state, cluster_id))
    pushing.start()
    while calls(state, "TransferAsync") == begun:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    pushing.join()
    return why_lost(state, cluster_id)


def test_without_a_port_of_its_own_the_link_is_refused_with_hixls_code(peers):
    a, b = peers(2)
    a.call(instances.start, 1, 0, HIXL)
    port = b.call(instances.start, 2, 1, HIXL)
    a.call(fail_next, "Initialize", 1, 103905)

    assert a.call(instances.link, 2, port) == ["LLM_FEATURE_NOT_ENABLED"]
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]


def test_it_listens_and_connects_by_ipv6(peers):
    a, b = peers(2)
    given = {**HIXL, "listen_ip_info": "[::1]:0"}
    a.call(instances.start, 1, 0, given)
    port = b.call(instances.start, 2, 1, given)
    a.call(instances.register, 10, TENSORS, BLOCKS, BLOCK_BYTES)
    b.call(instances.register, 20, TENSORS, BLOCKS, BLOCK_BYTES)

    assert a.call(instances.link, 2, port, 10_000, "::1") == ["LLM_SUCCESS"]

    b.call(instances.wait_linked, 1)
    assert a.call(transport) == ["hixl"]
    a.call(instances.push_blocks, 2, [3], [4])
    b.call(instances.push_blocks, 1, [5], [6])
    assert torch.equal(b.call(instances.content)[:, 4], pattern(10)[:, 3])
    assert torch.equal(a.call(instances.content)[:, 6], pattern(20)[:, 5])


def test_each_code_of_hixl_is_a_status(peers):
    a, b = peers(2)
    a.call(instances.start, 1, 0, HIXL)
    port = b.call(instances.start, 2, 1, HIXL)
    a.call(instances.register, 10, TENSORS, BLOCKS, BLOCK_BYTES)
    statuses = {
        103900: "LLM_PARAM_INVALID",
        103901: "LLM_TIMEOUT",
        103902: "LLM_NOT_YET_LINK",
        103903: "LLM_LINK_FAILED",
        103904: "LLM_FAILED",
        103905: "LLM_FEATURE_NOT_ENABLED",
        203900: "LLM_OUT_OF_MEMORY",
        503900: "LLM_FAILED",
    }

    said = {}
    for code in statuses:
        a.call(fail_next, "RegisterMem", 1, code)
        (said[code],) = a.call(instances.link, 2, port)

    assert said == statuses
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"listen_ip_info": ""}, "listen_ip_info is not set; transfer_backend needs it"),
        ({"enable_cache_manager": False}, "enable_cache_manager is off; transfer_backend needs it"),
        (
            {"enable_remote_cache_accessible": False},
            "enable_remote_cache_accessible is off; transfer_backend needs it",
        ),
        ({"transfer_backend": "hccl"}, "transfer_backend is 'hccl', expected 'hixl'"),
        ({"transport": "nixl"}, "transfer_backend is 'hixl' and transport is 'nixl'"),
    ],
)
def test_the_backend_needs_what_the_original_says(peers, options, named):
    (a,) = peers(1)

    with pytest.raises(PeerError, match=named):
        a.call(instances.start, 1, 0, {**HIXL, **options})
