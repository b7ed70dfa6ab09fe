"""Two-sided links: link, unlink, query_register_mem_status between instances, with their control plane only;
and between real processes with bytes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.conformance.case import INVALID, check_raises, row
from tests.nodes import DEADLINE_S, link, wait_until
from tests.peers import Peer
from tests.recording_core import Node
from torch_llm_datadist import LLMStatusCode, RegisterMemStatus
from torch_llm_datadist.rank_table import PORT_VARIABLE, port_of, read_comm

OK, PREPARING, FAILED = RegisterMemStatus.OK, RegisterMemStatus.PREPARING, RegisterMemStatus.FAILED
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK


def rank_table(devices: list[int], **server: Any) -> str:
    """One server; rank i has the i-th device."""
    device = [
        {"device_id": str(d), "device_ip": "10.0.0.1", "rank_id": str(i)} for i, d in enumerate(devices)
    ]
    server = {"server_id": "127.0.0.1", "device": device, **server}
    return json.dumps({"version": "1.0", "status": "completed", "server_count": "1", "server_list": [server]})


_bases = itertools.count(os.getpid() % 1000)


def free_base(devices: int = 1) -> int:
    """A base port whose next ports are free. Not one that the system gives to clients meanwhile."""
    for i in _bases:
        base = 61000 + 4 * (i % 1000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + devices):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return base
    raise AssertionError


def begin(
    at: Node, members: dict[int, int], port: int, name: str = "comm", timeout_s: float = DEADLINE_S
) -> int:
    request = read_comm(at.identity.cluster_id, name, members, rank_table([0, 1, 2, 3]), port)
    return at.links.begin_comm(request, timeout_s)


def wait_status(at: Node, comm_id: int, status: RegisterMemStatus) -> None:
    wait_until(lambda: at.links.comm_status(comm_id) == status)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("is_last_first", [False, True])
def test_link_joins_every_member_with_every_other_in_any_order(
    node: Callable[..., Node], count: int, is_last_first: bool
) -> None:
    nodes = [node(10 + i) for i in range(count)]
    members = {10 + i: i for i in range(count)}
    port = free_base(count)

    comms = {n: begin(n, members, port) for n in (reversed(nodes) if is_last_first else nodes)}

    for each in nodes:
        wait_status(each, comms[each], OK)
        others = {info.cluster_id for info in each.links.table.infos()}
        assert others == members.keys() - {each.identity.cluster_id}
    assert set(comms.values()) == {1}


def test_link_is_preparing_until_the_other_member_calls_it(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2)
    port = free_base()

    early = begin(two, {1: 0, 2: 1}, port)
    assert two.links.comm_status(early) == PREPARING
    assert not two.links.table.infos()
    first = begin(one, {1: 0, 2: 1}, port)

    wait_status(one, first, OK)
    wait_status(two, early, OK)


def test_link_fails_when_its_time_is_over(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """Mended: in the original link blocks, and raises."""
    alone = node(2)

    comm_id = begin(alone, {1: 0, 2: 1}, free_base(), timeout_s=0.2)

    wait_status(alone, comm_id, FAILED)
    assert "cluster 1" in caplog.text


def test_one_waiting_place_serves_several_links(node: Callable[..., Node]) -> None:
    """A prefill instance is rank 0 towards each of its decode instances."""
    hub, spokes = node(1), [node(i) for i in (2, 3, 4)]
    port = free_base()

    for spoke in spokes:
        members = {1: 0, spoke.identity.cluster_id: 1}
        name = f"with {spoke.identity.cluster_id}"
        hub_comm, comm = begin(hub, members, port, name), begin(spoke, members, port, name)
        wait_status(hub, hub_comm, OK)
        wait_status(spoke, comm, OK)

    assert len(hub.links.table.infos()) == 3


def test_comm_ids_count_from_one(node: Callable[..., Node]) -> None:
    one = node(1)
    port = free_base()

    assert [begin(one, {1: 0, 2: 1}, port, name, 0.2) for name in "abc"] == [1, 2, 3]


def test_unlink_by_both_members_ends_the_link_and_it_can_be_made_again(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2)
    port = free_base()
    for _ in range(3):
        comms = [begin(each, {1: 0, 2: 1}, port) for each in (one, two)]
        for each, comm_id in zip((one, two), comms, strict=True):
            wait_status(each, comm_id, OK)

        threads = [
            threading.Thread(target=each.links.end_comm, args=(comm_id, DEADLINE_S))
            for each, comm_id in zip((one, two), comms, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert not one.links.table.infos()
        assert not two.links.table.infos()
        for each, comm_id in zip((one, two), comms, strict=True):
            check_raises(NOT_LINKED, lambda each=each, comm_id=comm_id: each.links.comm_status(comm_id))
            check_raises(NOT_LINKED, lambda each=each, comm_id=comm_id: each.links.end_comm(comm_id, 1.0))


def test_unlink_by_one_member_is_a_failed_link_at_the_other(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2)
    port = free_base()
    first, second = begin(one, {1: 0, 2: 1}, port), begin(two, {1: 0, 2: 1}, port)
    wait_status(one, first, OK)
    wait_status(two, second, OK)

    one.links.end_comm(first, DEADLINE_S)

    wait_status(two, second, FAILED)
    two.links.end_comm(second, DEADLINE_S)


def test_unlink_ends_a_link_that_is_still_being_made(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2)
    port = free_base()
    comm_id = begin(two, {1: 0, 2: 1}, port)

    two.links.end_comm(comm_id, DEADLINE_S)

    first = begin(one, {1: 0, 2: 1}, port)
    second = begin(two, {1: 0, 2: 1}, port)
    wait_status(one, first, OK)
    wait_status(two, second, OK)


def test_members_that_disagree_about_the_members_are_refused(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """Mended: the original does not say what happens."""
    one, two = node(1), node(2)
    port = free_base()
    begin(one, {1: 0, 2: 1, 3: 2}, port)

    comm_id = begin(two, {1: 0, 2: 1}, port)

    wait_status(two, comm_id, FAILED)
    assert "cluster_rank_info is {1: 0, 2: 1, 3: 2} at cluster 1 and {1: 0, 2: 1} at cluster 2" in caplog.text


def test_members_with_different_modes_are_refused(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2, remote_accessible=False)
    port = free_base()
    begin(one, {1: 0, 2: 1}, port)

    wait_status(two, begin(two, {1: 0, 2: 1}, port), FAILED)


def test_a_member_that_is_linked_already_is_refused(node: Callable[..., Node]) -> None:
    """Mended: the original does not say what happens."""
    server, client = node(1, listens=True), node(2)
    link(client, server)

    check_raises(LLMStatusCode.LLM_ALREADY_LINK, lambda: begin(client, {1: 0, 2: 1}, free_base()))


def test_a_name_is_in_use_once(node: Callable[..., Node]) -> None:
    one = node(1)
    port = free_base()
    begin(one, {1: 0, 2: 1}, port)

    assert "in use" in check_raises(INVALID, lambda: begin(one, {1: 0, 3: 1}, port))


def test_a_taken_port_is_named(node: Callable[..., Node]) -> None:
    other, one = node(1, listens=True), node(2)

    said = check_raises(LLMStatusCode.LLM_LINK_FAILED, lambda: begin(one, {2: 0, 3: 1}, other.port))

    assert f"127.0.0.1:{other.port}" in said


def test_one_sided_links_do_not_go_through_the_waiting_place(node: Callable[..., Node]) -> None:
    one, two = node(1), node(2)
    one.port = free_base()
    begin(one, {1: 0, 3: 1}, one.port)

    assert link(two, one) == LLMStatusCode.LLM_LINK_FAILED


@pytest.mark.parametrize("is_seen", [True, False], ids=["death is seen", "death is not seen yet"])
def test_a_restarted_member_links_again_once_the_other_has_unlinked(
    node: Callable[..., Node], is_seen: bool
) -> None:
    one, dead = node(1), node(2, pid=2**22 + 1, start_time=5)
    port = free_base()
    first = begin(one, {1: 0, 2: 1}, port)
    begin(dead, {1: 0, 2: 1}, port)
    wait_status(one, first, OK)
    if is_seen:
        one.only_link().death = "peer process exited"
        wait_status(one, first, FAILED)
    restarted = node(2)

    comm_id = begin(restarted, {1: 0, 2: 1}, port)
    wait_status(one, first, FAILED)
    assert restarted.links.comm_status(comm_id) == PREPARING
    one.links.end_comm(first, 0.2)  # nobody is there to answer
    again = begin(one, {1: 0, 2: 1}, port)

    wait_status(one, again, OK)
    wait_status(restarted, comm_id, OK)


# The arguments (2.4, and 3.2 row 16).

TABLE = rank_table([0, 1])
PAIR = {1: 0, 2: 1}

ROWS = [
    row("2.4 comm_name = None", TypeError, (None, PAIR, TABLE)),
    row("2.4 comm_name = 1", TypeError, (1, PAIR, TABLE)),
    row("2.4 comm_name empty", INVALID, ("", PAIR, TABLE)),
    row("2.4 comm_name of 128 characters", INVALID, ("x" * 128, PAIR, TABLE)),
    row("2.4 comm_name is half a character", ValueError, ("\ud800", PAIR, TABLE)),
    row("2.4 cluster_rank_info = None (mended)", TypeError, ("x", None, TABLE)),
    row("2.4 cluster_rank_info = []", TypeError, ("x", [], TABLE)),
    row("2.4 cluster_id is a str", TypeError, ("x", {"1": 0, 2: 1}, TABLE)),
    row("2.4 rank is a bool (mended)", TypeError, ("x", {1: False, 2: True}, TABLE)),
    row("2.4 cluster_id is negative", ValueError, ("x", {1: 0, -2: 1}, TABLE)),
    row("2.4 rank beyond uint32", ValueError, ("x", {1: 0, 2: 2**32}, TABLE)),
    row("2.4 one member", INVALID, ("x", {1: 0}, TABLE)),
    row("2.4 five members", INVALID, ("x", {i: i for i in range(5)}, TABLE)),
    row("2.4 ranks fall", INVALID, ("x", {1: 1, 2: 0}, TABLE)),
    row("3.2 row 16 equal ranks (mended)", INVALID, ("x", {1: 0, 2: 0}, TABLE)),
    row("2.4 own cluster_id missing", INVALID, ("x", {3: 0, 2: 1}, TABLE)),
    row("2.4 rank_table is a dict", TypeError, ("x", PAIR, {})),
    row("2.4 rank_table = None", TypeError, ("x", PAIR, None)),
    row("4.11a rank_table is no JSON", INVALID, ("x", PAIR, "{")),
    row("4.11a rank_table is nested too deep", INVALID, ("x", PAIR, "[" * 100_000)),
    row("4.11a rank_table without servers", INVALID, ("x", PAIR, "{}")),
    row("4.11a status is not completed", INVALID, ("x", PAIR, '{"status": "initializing"}')),
    row("4.11a a rank is missing", INVALID, ("x", PAIR, rank_table([0]))),
    row("4.11a server without devices", INVALID, ("x", PAIR, '{"server_list": [{"server_id": "x"}]}')),
    row("4.11a device_id is a word", INVALID, ("x", PAIR, rank_table([0, 1]).replace('"0"', '"zero"'))),
    row("4.11a host_ip is a name", INVALID, ("x", PAIR, rank_table([0, 1], host_ip="node0"))),
    row("4.11a no address for rank 0", INVALID, ("x", PAIR, rank_table([0, 1], server_id="node0"))),
    row("port above 65535", INVALID, ("x", PAIR, rank_table([9000, 1]))),
]


@pytest.mark.parametrize(("expected", "arguments"), ROWS)
def test_bad_arguments_are_refused(expected: Any, arguments: tuple[Any, ...]) -> None:
    check_raises(expected, lambda: read_comm(1, *arguments, 61000))


def test_rank_0_waits_at_host_ip_or_server_id_and_port_61000_plus_its_device() -> None:
    """Mended: in the original HCCL chooses."""
    here = read_comm(1, "x", PAIR, rank_table([3, 1]), port_of(None))
    there = read_comm(2, "x", PAIR, rank_table([3, 1], host_ip="10.0.0.7"), port_of(None))
    named = read_comm(2, "x", PAIR, rank_table([3, 1], server_id="node0", host_ip="::1"), port_of(None))

    assert here.endpoint(0) == ("127.0.0.1", 61003)
    assert there.endpoint(0) == ("10.0.0.7", 61003)
    assert named.endpoint(0) == ("::1", 61003)


def test_the_base_port_is_an_option_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORT_VARIABLE, "5000")
    assert (port_of(None), port_of(7000)) == (5000, 7000)
    monkeypatch.setenv(PORT_VARIABLE, "70000")
    assert PORT_VARIABLE in check_raises(INVALID, lambda: port_of(None))


# Between real processes.


def start(state: SimpleNamespace, cluster_id: int, device: int, port: int) -> None:
    instances.start(state, cluster_id, device, {"listen_ip_info": None, "link_port": port})
    instances.register(state, cluster_id, 2, 8, 4096)


def link_all(state: SimpleNamespace, members: dict[int, int], table: str) -> None:
    state.comm_id = state.datadist.link("comm", members, table)
    pause = threading.Event()
    while (status := state.datadist.query_register_mem_status(state.comm_id)) == PREPARING:
        pause.wait(0.01)
    assert status == OK


def push(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> str:
    try:
        instances.push_blocks(state, cluster_id, src, dst)
    except datadist.LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


def unlink(state: SimpleNamespace) -> None:
    state.datadist.unlink(state.comm_id)


def all_linked(peers: Callable[[int], list[Peer]], count: int) -> tuple[list[Peer], dict[int, int], str]:
    processes = peers(count)
    members, table, port = {10 + i: i for i in range(count)}, rank_table(list(range(count))), free_base(count)
    for i, process in enumerate(processes):
        process.call(start, 10 + i, i, port)
    relink(processes, members, table)
    return processes, members, table


def relink(processes: list[Peer], members: dict[int, int], table: str) -> None:
    for process in processes:
        process.send(link_all, members, table)
    for process in processes:
        process.answer()


def test_bytes_move_between_any_two_of_three_processes(peers: Callable[[int], list[Peer]]) -> None:
    processes, _, _ = all_linked(peers, 3)

    for i, process in enumerate(processes):
        for k in range(3):
            if k != i:
                assert process.call(push, 10 + k, [i], [4 + i]) == "LLM_SUCCESS"

    for k, process in enumerate(processes):
        content = process.call(instances.content)
        for i in range(3):
            if i != k:
                assert torch.equal(content[:, 4 + i], instances.pattern(10 + i, 2, 8, 4096)[:, i])
    for process in processes:
        process.call(unlink)
    assert processes[0].call(push, 11, [0], [0]) == "LLM_NOT_YET_LINK"


def test_a_cache_registered_after_link_is_reachable(peers: Callable[[int], list[Peer]]) -> None:
    """Mended: refused for good in the original."""
    processes, _, _ = all_linked(peers, 2)

    processes[1].call(register_another, 7)

    processes[0].call(instances.push_blocks, 11, [2], [5], 7)
    assert torch.equal(processes[1].call(instances.content)[:, 5], instances.pattern(10, 2, 8, 4096)[:, 2])


def register_another(state: SimpleNamespace, model_id: int) -> None:
    instances.register(state, 3, 2, 8, 4096, model_id=model_id)
    assert state.cache.remote_accessible


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_member_is_replaced(peers: Callable[[int], list[Peer]], which: int) -> None:
    """Mended: in the original the status stays OK."""
    processes, members, table = all_linked(peers, 2)
    left = processes[1 - which]
    port = left.call(base_port)

    processes[which].kill()
    (again,) = peers(1)
    again.call(start, 10 + which, which, port)
    left.call(wait_failed)
    left.call(unlink)
    relink([left, again], members, table)

    assert left.call(push, 10 + which, [1], [6]) == "LLM_SUCCESS"
    assert again.call(push, 11 - which, [1], [6]) == "LLM_SUCCESS"


def base_port(state: SimpleNamespace) -> int:
    return state.datadist._running.options.link_port


def wait_failed(state: SimpleNamespace) -> None:
    wait_until(lambda: state.datadist.query_register_mem_status(state.comm_id) == FAILED)
