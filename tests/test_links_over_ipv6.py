"""Links by IPv6 addresses: of the machine itself, of all its interfaces, and of one link only (with the name
of the interface, ``fe80::1%eth0``), one-sided and two-sided, between real processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import instances
from tests.links import pattern, push, start
from tests.peers import HostPeer, Peer
from tests.test_emulated_hosts import made
from tests.test_two_sided_links import free_base, rank_table
from torch_llm_datadist import LLMClusterInfo, LLMException, RegisterMemStatus
from torch_llm_datadist.cluster import as_little_endian

Peers = Callable[[int], list[Peer]]


def link(state: SimpleNamespace, cluster_id: int, ip: str, port: int, timeout: int = 10_000) -> str:
    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("::1", 0)
    info.append_remote_ip_info(ip, port)
    return str(state.datadist.link_clusters([info], timeout)[0].name)


def check_pushes(client: Peer, server: Peer) -> None:
    """Both ways."""
    server.call(instances.wait_linked, 1)
    assert client.call(push, 2, [1, 2], [6, 3]) == "LLM_SUCCESS"
    assert server.call(push, 1, [0], [0]) == "LLM_SUCCESS"
    ours, theirs = pattern(1), pattern(2)
    theirs[:, [6, 3]] = ours[:, [1, 2]]
    ours[:, 0] = theirs[:, 0]
    assert client.call(content) == ours.numpy().tobytes()
    assert server.call(content) == theirs.numpy().tobytes()


def content(state: SimpleNamespace) -> bytes:
    """Tensors do not travel between emulated hosts."""
    return instances.content(state).numpy().tobytes()


@pytest.mark.parametrize(
    ("listen", "ip"), [("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")], ids=lambda text: f"[{text}]"
)
def test_one_sided_links_over_ipv6(peers: Peers, listen: str, ip: str) -> None:
    """Lifted: the original knows IPv4 only. Who listens at all addresses is reached by IPv4, too."""
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {"listen_ip_info": f"[{listen}]:0"})

    assert client.call(link, 2, ip, port) == "LLM_SUCCESS"

    check_pushes(client, server)


def test_a_group_is_linked_over_ipv6(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, 2, 1, {"listen_ip_info": "[::1]:0"})

    client.call(link_group, {2: f"[::1]:{port}"})

    check_pushes(client, server)


def link_group(state: SimpleNamespace, ranks: dict[int, str]) -> None:
    state.datadist.link_group(ranks, timeout=10_000)


def begin_comm(state: SimpleNamespace, table: str) -> None:
    state.comm_id = state.datadist.link("comm", {2: 0, 1: 1}, table)


def comm_status(state: SimpleNamespace) -> str:
    state.datadist.wait_linked([1 if state.cluster_id == 2 else 2], timeout_s=10)
    return str(state.datadist.query_register_mem_status(state.comm_id).name)


def check_two_sided(client: Peer, server: Peer, ip: str) -> None:
    for peer in (server, client):
        peer.call(begin_comm, rank_table([1, 0], server_id="node0", host_ip=ip))
    for peer in (server, client):
        assert peer.call(comm_status) == RegisterMemStatus.OK.name
    check_pushes(client, server)


def test_two_sided_links_over_ipv6(peers: Peers) -> None:
    client, server = peers(2)
    base = free_base(2)
    client.call(start, 1, 0, {"listen_ip_info": "", "link_port": base})
    server.call(start, 2, 1, {"listen_ip_info": "", "link_port": base})

    check_two_sided(client, server, "::1")


@pytest.fixture
def neighbours() -> Iterator[tuple[HostPeer, HostPeer]]:
    """Processes of one emulated host, whose one interface has an address that is good on its link only."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(made("near"))
        pair = HostPeer(lab["near"]), HostPeer(lab["near"])
        for peer in pair:
            stack.callback(peer.stop)
        yield pair


def on_the_link(state: SimpleNamespace) -> str:
    """The address with the name of its interface: without it nobody knows which link is meant."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, _, _, scope, _, interface = line.split()
        if scope == "20":
            return ":".join(digits[i : i + 4] for i in range(0, 32, 4)) + f"%{interface}"
    raise AssertionError("no interface has an address of its link")


def test_links_over_an_address_of_the_link(neighbours: tuple[HostPeer, HostPeer]) -> None:
    """First one-sided, then two-sided: hosts take seconds."""
    client, server = neighbours
    ip = server.call(on_the_link)
    client.call(start, 1, 0, {"link_port": 61000})
    port = server.call(start, 2, 1, {"listen_ip_info": f"[{ip}]:0", "link_port": 61000})

    assert client.call(link, 2, ip.partition("%")[0], port, 300) == "LLM_LINK_FAILED"  # which link?
    assert client.call(link, 2, ip.replace("%", "%no"), port, 300) == "LLM_LINK_FAILED"
    assert client.call(link, 2, ip, port) == "LLM_SUCCESS"
    check_pushes(client, server)

    for cluster_id, peer, other in ((1, client, 2), (2, server, 1)):
        peer.call(unlink_with_force, other)
        peer.call(fill_again, cluster_id)
    check_two_sided(client, server, ip)


def unlink_with_force(state: SimpleNamespace, cluster_id: int) -> None:
    state.datadist.unlink_clusters([instances.cluster(cluster_id, 0)], force=True)


def fill_again(state: SimpleNamespace, cluster_id: int) -> None:
    for raw, bytes_ in zip(state.raw, pattern(cluster_id), strict=True):
        raw.copy_(bytes_)
    torch.npu.synchronize(state.device)


def test_the_interface_of_an_address_is_kept_and_is_no_part_of_its_number() -> None:
    info = LLMClusterInfo()

    info.append_remote_ip_info("fe80:0::1%eth0", 26000)

    assert info.remote_addresses == [("fe80::1%eth0", 26000)]
    assert info.remote_ip_info_list == [(as_little_endian("fe80::1"), 26000)]
    assert "[fe80::1%eth0]:26000" in repr(info)


@pytest.mark.parametrize("ip", ["fe80::1%", "fe80::1%a%b", "%eth0", "127.0.0.1%eth0"])
def test_what_is_no_address_with_an_interface_is_refused(ip: str) -> None:
    with pytest.raises(LLMException, match="expected an IPv4 or IPv6 address"):
        LLMClusterInfo().append_remote_ip_info(ip, 26000)
