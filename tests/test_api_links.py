"""Links between real processes on several devices: made, used, ended, lost and made again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.peers import Peer, PeerError

TENSORS, BLOCKS, BLOCK_BYTES = 2, 8, 4096
KEEP_ALIVE_S = 1.0
Peers = Callable[[int], list[Peer]]


def start(state: SimpleNamespace, cluster_id: int, device: int, options: dict[str, Any]) -> int:
    """An instance and a cache; returns its port. ``options`` go to ``LLMConfig``."""
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    config.keep_alive_ms = int(KEEP_ALIVE_S * 1000)
    for name, value in options.items():
        setattr(config, name, value)
    state.cluster_id, state.device = cluster_id, device
    state.datadist = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    state.datadist.init(config.generate_options())
    instances.register(state, cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
    return state.datadist.listen_port or 0


def pattern(cluster_id: int) -> torch.Tensor:
    return instances.pattern(cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)


def push(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> str:
    """Pushes; returns the name of the status code and what was said."""
    return status_of(lambda: instances.push_blocks(state, cluster_id, src, dst))


def status_of(call: Callable[[], object]) -> str:
    try:
        call()
    except datadist.LLMException as error:
        return f"{error.status_code.name}: {error}"
    return "LLM_SUCCESS"


def unlink(state: SimpleNamespace, cluster_id: int, port: int, timeout: int, force: bool) -> list[str]:
    info = instances.cluster(cluster_id, port)
    return [code.name for code in state.datadist.unlink_clusters([info], timeout=timeout, force=force)[1]]


def push_until_it_fails(state: SimpleNamespace, cluster_id: int, within_s: float) -> tuple[str, float]:
    """Pushes over and over; returns the first failure that says that the link is lost, and when it came."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        said = push(state, cluster_id, [0], [0])
        if said.startswith("LLM_NOT_YET_LINK"):
            return said, time.monotonic() - began
    return f"no failure within {within_s} s, last {said}", within_s


def wait_unlinked(state: SimpleNamespace, cluster_id: int, within_s: float) -> str:
    """Waits until there is no link; returns what a caller is told about it."""
    table = state.datadist._running.links.table
    with table._changed:
        assert table._changed.wait_for(lambda: cluster_id not in table._links, within_s)
    return status_of(lambda: state.datadist.link_id(cluster_id))


def linked_pair(peers: Peers, options: dict[str, Any] | None = None) -> tuple[Peer, Peer, int]:
    """The client is cluster 1, the server cluster 2; returns both and the server's port."""
    client, server = peers(2)
    client.call(start, 1, 0, options or {})
    port = server.call(start, 2, 1, options or {})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    return client, server, port


def test_blocks_move_both_ways_over_one_link(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)

    assert client.call(push, 2, [1, 2], [6, 3]) == "LLM_SUCCESS"
    assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"
    server.call(instances.pull_blocks, 1, [5], [1])

    ours, theirs = pattern(1), pattern(2)
    theirs[:, [6, 3]] = ours[:, [1, 2]]
    theirs[:, 1] = ours[:, 5]
    ours[:, 0] = theirs[:, 0]
    assert torch.equal(client.call(instances.content), ours)
    assert torch.equal(server.call(instances.content), theirs)


@pytest.mark.parametrize("force", [False, True])
def test_a_link_that_was_unlinked_can_be_made_again(peers: Peers, force: bool) -> None:
    client, server, port = linked_pair(peers)

    for _ in range(3):
        assert client.call(unlink, 2, port, 5000, force) == ["LLM_SUCCESS"]
        assert client.call(push, 2, [0], [0]).startswith("LLM_NOT_YET_LINK")
        assert server.call(wait_unlinked, 1, 10).startswith("LLM_NOT_YET_LINK")
        assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
        assert client.call(push, 2, [0], [1]) == "LLM_SUCCESS"
        assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"


def test_a_killed_server_fails_pushes_and_can_be_replaced_at_its_address(peers: Peers) -> None:
    client, server, port = linked_pair(peers)
    pid = server.pid

    server.kill()
    said, after_s = client.call(push_until_it_fails, 2, 10.0)

    assert f"cluster 2 (127.0.0.1:{port}, pid {pid})" in said
    assert after_s < KEEP_ALIVE_S + 1
    assert client.call(linked_to) == []
    assert client.call(unlink, 2, port, 1000, False) == ["LLM_SUCCESS"]
    (again,) = peers(1)
    again.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [4], [5]) == "LLM_SUCCESS"
    assert torch.equal(again.call(instances.content)[:, 5], pattern(1)[:, 4])


def test_a_killed_client_can_be_replaced_without_the_servers_help(peers: Peers) -> None:
    client, server, port = linked_pair(peers)

    client.kill()
    (again,) = peers(1)
    again.call(start, 1, 0, {})

    assert again.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert again.call(push, 2, [4], [5]) == "LLM_SUCCESS"
    assert server.call(push, 1, [4], [5]) == "LLM_SUCCESS"


def test_the_death_of_one_peer_leaves_the_other_links_alone(peers: Peers) -> None:
    hub, *spokes = peers(4)
    hub.call(start, 1, 0, {})
    for i, spoke in enumerate(spokes):
        port = spoke.call(start, 10 + i, 1 + i, {})
        assert hub.call(instances.link, 10 + i, port) == ["LLM_SUCCESS"]

    spokes[0].kill()
    said, _ = hub.call(push_until_it_fails, 10, 10.0)

    assert said.startswith("LLM_NOT_YET_LINK")
    for cluster_id in (11, 12):
        assert hub.call(push, cluster_id, [0], [0]) == "LLM_SUCCESS"
    assert sorted(hub.call(linked_to)) == [11, 12]


def linked_to(state: SimpleNamespace) -> list[int]:
    return [info.cluster_id for info in state.datadist.links() if info.state == "linked"]


def test_a_frozen_peer_ends_the_link_within_the_keep_alive_bound(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)

    server.freeze()
    began = time.monotonic()
    said = client.call(wait_unlinked, 2, 10)

    assert time.monotonic() - began < 2 * KEEP_ALIVE_S + 1
    assert said.startswith("LLM_NOT_YET_LINK")
    assert str(server.pid) in said


def test_memory_is_held_for_a_frozen_peer_until_it_is_dead(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    server.freeze()
    client.call(wait_unlinked, 2, 10)

    assert str(server.pid) in client.call(unregister)[0]
    server.kill()

    assert client.call(wait_released, 10.0) == []


def unregister(state: SimpleNamespace) -> list[str]:
    """Returns for whom the memory is still held."""
    state.datadist.cache_manager.unregister_cache(state.cache.cache_id)
    assert state.datadist._running.links.sync(99, 5) is False  # the control thread has seen it
    return [name for held in state.datadist.cache_manager.held_caches() for name in held.waiting_for]


def wait_released(state: SimpleNamespace, within_s: float) -> list[Any]:
    pause = threading.Event()
    deadline = time.monotonic() + within_s
    while state.datadist.cache_manager.held_caches() and time.monotonic() < deadline:
        pause.wait(0.02)
    return state.datadist.cache_manager.held_caches()


def test_a_cache_unregistered_under_a_link_is_released_when_the_peer_has_confirmed(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"  # the peer's memory is mapped

    server.call(unregister)

    assert server.call(wait_released, 10.0) == []
    said = client.call(push, 2, [0], [0])
    assert said.startswith("LLM_KV_CACHE_NOT_EXIST"), said
    server.call(instances.register, 2, TENSORS, BLOCKS, BLOCK_BYTES)
    assert client.call(push, 2, [1], [0]) == "LLM_SUCCESS"  # registered after linking, and found
    assert torch.equal(server.call(instances.content)[:, 0], pattern(1)[:, 1])


def test_a_cache_of_a_killed_peers_link_is_released(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"

    server.kill()
    client.call(unregister)

    assert client.call(wait_released, 10.0) == []


def test_memory_that_a_frozen_peer_may_write_outlives_the_instance(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)
    server.freeze()
    client.call(wait_unlinked, 2, 10)

    client.call(finalize)

    assert [str(server.pid) in name for name in client.call(left_over)] == [True]
    server.kill()
    assert client.call(left_over) == []


def left_over(state: SimpleNamespace) -> list[str]:
    from torch_llm_datadist.registry import left_over_caches

    return [name for held in left_over_caches() for name in held.waiting_for]


def test_linking_to_a_frozen_server_ends_at_the_timeout(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {})
    server.freeze()

    began = time.monotonic()
    codes = client.call(instances.link, 2, port, 500)

    assert codes[0] in ("LLM_LINK_FAILED", "LLM_TIMEOUT")  # before or after the connection stood
    assert time.monotonic() - began < 3
    server.thaw()
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"


def test_a_server_killed_while_linking_ends_at_the_timeout(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {})
    server.freeze()
    client.send(instances.link, 2, port, 700)

    server.kill()

    assert client.answer(10) == ["LLM_LINK_FAILED"]
    (again,) = peers(1)
    again.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]


def test_several_instances_live_in_one_process(peers: Peers) -> None:
    one, two = peers(2)

    assert one.call(several_in_one_process) == ["LLM_SUCCESS"] * 3

    ports = one.call(ports_of_several)
    two.call(start, 7, 3, {})
    for cluster_id, port in ports.items():
        assert two.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
        assert two.call(push, cluster_id, [3], [3]) == "LLM_SUCCESS"
    assert one.call(third_blocks_of_several) == [True] * 3


def several_in_one_process(state: SimpleNamespace) -> list[str]:
    state.several = [SimpleNamespace() for _ in range(3)]
    for i, each in enumerate(state.several):
        start(each, 1 + i, i, {})
    codes = []
    for near, far in ((0, 1), (0, 2), (1, 2)):
        client, server = state.several[near], state.several[far]
        codes += instances.link(client, server.cluster_id, server.datadist.listen_port)
        instances.push_blocks(client, server.cluster_id, [near], [near])
        assert torch.equal(instances.content(server)[:, near], pattern(client.cluster_id)[:, near])
    return codes


def ports_of_several(state: SimpleNamespace) -> dict[int, int]:
    return {each.cluster_id: each.datadist.listen_port for each in state.several}


def third_blocks_of_several(state: SimpleNamespace) -> list[bool]:
    equal = [torch.equal(instances.content(each)[:, 3], pattern(7)[:, 3]) for each in state.several]
    for each in state.several:
        each.datadist.finalize()
    return equal


def test_threads_push_over_several_links_at_the_same_time(peers: Peers) -> None:
    hub, *spokes = peers(4)
    hub.call(start, 1, 0, {})
    for i, spoke in enumerate(spokes):
        port = spoke.call(start, 10 + i, 1 + i, {})
        assert hub.call(instances.link, 10 + i, port) == ["LLM_SUCCESS"]

    assert hub.call(push_from_threads, [10, 11, 12], 20) == []

    for spoke in spokes:
        assert torch.equal(spoke.call(instances.content)[:, :4], pattern(1)[:, 4:])


def push_from_threads(state: SimpleNamespace, cluster_ids: list[int], times: int) -> list[str]:
    errors: list[str] = []

    def run(cluster_id: int, block: int) -> None:
        for _ in range(times):
            said = push(state, cluster_id, [4 + block], [block])
            if said != "LLM_SUCCESS":
                errors.append(said)

    threads = [threading.Thread(target=run, args=(c, b)) for c in cluster_ids for b in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_remote_access_must_be_the_same_at_both_ends(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {"enable_remote_cache_accessible": False})
    port = server.call(start, 2, 1, {})

    assert client.call(instances.link, 2, port) == ["LLM_PARAM_INVALID"]


def test_links_over_ipv6(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {"listen_ip_info": "[::1]:0"})

    assert client.call(link_ipv6, 2, port) == "LLM_SUCCESS"
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"


def link_ipv6(state: SimpleNamespace, cluster_id: int, port: int) -> str:
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("::1", 0)
    info.append_remote_ip_info("::1", port)
    return state.datadist.link_clusters([info], timeout=5000)[0].name


def test_finalize_tells_the_peers_and_init_starts_anew(peers: Peers) -> None:
    client, server, _ = linked_pair(peers)

    server.call(finalize)

    assert "the peer left: finalized" in client.call(wait_unlinked, 2, 10)
    port = server.call(start, 2, 1, {})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"


def finalize(state: SimpleNamespace) -> None:
    state.datadist.finalize()
    state.datadist.finalize()


def test_finalize_is_bounded_with_a_frozen_peer(peers: Peers) -> None:
    client, server, _ = linked_pair(peers, {"keep_alive_ms": 60_000})
    server.freeze()

    began = time.monotonic()
    client.call(finalize)

    assert time.monotonic() - began < 8
    server.thaw()
    assert server.call(wait_unlinked, 1, 10).startswith("LLM_NOT_YET_LINK")


LEFT_RUNNING = """
import sys
from types import SimpleNamespace
from torch_llm_datadist import emulator
if {is_emulated}: emulator.enable()
from tests import instances, test_api_links as t
states = [SimpleNamespace(), SimpleNamespace()]
for i, state in enumerate(states):
    t.start(state, i + 1, i, {{}})
print(instances.link(states[0], 2, states[1].datadist.listen_port))
print(t.push(states[0], 2, [0], [0]), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "states[1].datadist.finalize()"])
def test_a_process_that_forgets_to_finalize_exits_cleanly(end: str) -> None:
    from torch_llm_datadist import emulator

    code = LEFT_RUNNING.format(is_emulated=emulator.is_enabled(), end=end)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout.split() == ["['LLM_SUCCESS']", "LLM_SUCCESS"]
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_cluster_calls_refuse_bad_arguments(peers: Peers) -> None:
    (one,) = peers(1)
    one.call(start, 1, 0, {})

    one.call(check_cluster_arguments)


def check_cluster_arguments(state: SimpleNamespace) -> None:
    """2.4, and 3.2 rows 13 and 18."""
    instance = state.datadist
    good = instances.cluster(2, 1)
    no_id = datadist.LLMClusterInfo()
    no_id.append_local_ip_info("127.0.0.1", 0)
    no_local = datadist.LLMClusterInfo()
    no_local.remote_cluster_id = 2
    two_remotes = instances.cluster(2, 1)
    two_remotes.append_remote_ip_info("127.0.0.1", 2)
    invalid = datadist.LLMStatusCode.LLM_PARAM_INVALID
    for call in (instance.link_clusters, instance.unlink_clusters):
        assert call([]) == (invalid, [])
        assert call([two_remotes]) == (invalid, [invalid])
        for wrong in (None, good, [None], [good, 3], "x"):
            with pytest.raises(TypeError):
                call(wrong)
        with pytest.raises(TypeError):
            call([no_id])
        for wrong_type in (None, 1.5, "3000", True):
            with pytest.raises(TypeError):
                call([good], timeout=wrong_type)
        with pytest.raises(ValueError, match="timeout"):
            call([good], timeout=2**31)
        for too_small in (0, -1):
            with pytest.raises(datadist.LLMException) as raised:
                call([good], timeout=too_small)
            assert raised.value.status_code == invalid
    with pytest.raises(datadist.LLMException, match="local address"):
        instance.link_clusters([no_local])
    assert instance.unlink_clusters([no_local], force=True) == (
        datadist.LLMStatusCode.LLM_SUCCESS,
        [datadist.LLMStatusCode.LLM_SUCCESS],
    )
    for wrong_force in (1, None, "x"):
        with pytest.raises(TypeError):
            instance.unlink_clusters([good], force=wrong_force)


def test_calls_before_init_are_runtime_errors() -> None:
    """2.4: everything but init, finalize and cluster_id."""
    instance = datadist.LLMDataDist(datadist.LLMRole.PROMPT, 5)

    assert instance.cluster_id == 5
    instance.finalize()
    for call in (
        lambda: instance.cache_manager,
        lambda: instance.kv_cache_manager,
        lambda: instance.link_clusters([]),
        lambda: instance.unlink_clusters([]),
        lambda: instance.link("x", {}, ""),
        lambda: instance.switch_role(datadist.LLMRole.MIX),
        lambda: instance.check_link_status(1),
    ):
        with pytest.raises(RuntimeError, match="llm datadist is not initialized") as raised:
            call()
        assert type(raised.value) is RuntimeError


@pytest.mark.parametrize(
    ("role", "cluster_id", "error"),
    [
        (1, 1, TypeError),
        (None, 1, TypeError),
        (datadist.LLMRole.MIX, "1", TypeError),
        (datadist.LLMRole.MIX, True, TypeError),
        (datadist.LLMRole.MIX, -1, ValueError),
        (datadist.LLMRole.MIX, 2**64, ValueError),
    ],
)
def test_datadist_refuses_bad_arguments(role: Any, cluster_id: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        datadist.LLMDataDist(role, cluster_id)


def test_a_failed_init_can_be_repeated(peers: Peers) -> None:
    one, two = peers(2)
    port = one.call(start, 1, 0, {})

    with pytest.raises(PeerError, match=r"EngineFailedError: init: cannot listen at 127\.0\.0\.1"):
        two.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})

    two.call(start, 2, 1, {})


@pytest.mark.parametrize("cluster_id", [0, 2**63, 2**64 - 1])
def test_any_uint64_is_a_cluster_id_and_a_model_id(peers: Peers, cluster_id: int) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, cluster_id, 1, {})
    server.call(instances.register, 3, TENSORS, BLOCKS, BLOCK_BYTES, datadist.DataType.DT_UINT8, cluster_id)

    assert client.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
    client.call(instances.push_blocks, cluster_id, [1], [2], cluster_id)

    assert torch.equal(server.call(instances.content)[:, 2], pattern(1)[:, 1])
