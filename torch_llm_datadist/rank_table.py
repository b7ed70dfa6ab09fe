"""The arguments of a two-sided ``link``: who takes part, and where each member is found."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from . import checks
from .messages import refusal
from .option_checks import load_object

ASKED = "link"
DEFAULT_PORT = 61000  # 60000 and the ports after it are HCCL's own
PORT_VARIABLE = "TORCH_LLM_DATADIST_LINK_PORT"
_MAX_NAME = 127


@dataclass(frozen=True)
class Seat:
    """Where the rank table puts one rank; ``ip`` is None when the table names no address of its host."""

    ip: str | None
    device_id: int


@dataclass(frozen=True)
class CommRequest:
    """
    Attributes:
        members: cluster_id → rank.
        seats: rank → where it is.
        port: base of the ports at which members meet; a rank's device id is added to it.
    """

    name: str
    members: Mapping[int, int]
    seats: Mapping[int, Seat]
    port: int

    def endpoint(self, rank: int) -> tuple[str, int]:
        """Where a rank waits for the higher ones."""
        seat = self.seats[rank]
        if seat.ip is None:
            raise refusal("rank_without_address", asked=ASKED, value=rank)
        port = self.port + seat.device_id
        if port > 65535:
            raise refusal("port_is_too_high", asked=ASKED, value=self.port, device=seat.device_id)
        return seat.ip, port


def read_comm(
    own_cluster_id: int, comm_name: object, cluster_rank_info: object, rank_table: object, port: int
) -> CommRequest:
    name = checks.instance(f"{ASKED}: comm_name", comm_name, str)
    if not 1 <= len(name) <= _MAX_NAME:
        raise refusal("comm_name_of_wrong_length", asked=ASKED, value=len(name), high=_MAX_NAME)
    checks.utf8(f"{ASKED}: comm_name", name)
    members = _read_members(own_cluster_id, cluster_rank_info)
    seats = _read_table(checks.instance(f"{ASKED}: rank_table", rank_table, str))
    missing = [rank for rank in members.values() if rank not in seats]
    if missing:
        raise refusal("rank_is_missing", asked=ASKED, value=missing[0])
    request = CommRequest(name, members, seats, port)
    own_rank = members[own_cluster_id]
    for rank in members.values():
        if rank < own_rank or (rank == own_rank and rank < max(members.values())):
            request.endpoint(rank)
    return request


def _read_members(own_cluster_id: int, value: object) -> dict[int, int]:
    given = checks.instance(f"{ASKED}: cluster_rank_info", value, dict)
    for cluster_id, rank in given.items():
        checks.uint64(f"{ASKED}: cluster_rank_info: cluster_id", cluster_id)
        checks.uint32(f"{ASKED}: cluster_rank_info[{cluster_id}]", rank)
    if not 2 <= len(given) <= 4:
        raise refusal("wrong_number_of_ranks", asked=ASKED, value=len(given))
    ranks = list(given.values())
    if any(low >= high for low, high in pairwise(ranks)):
        raise refusal(
            "bad_value",
            name=f"{ASKED}: the ranks of cluster_rank_info",
            value=ranks,
            expected="ranks that rise",
        )
    if own_cluster_id not in given:
        raise refusal("own_cluster_is_missing", asked=ASKED, value=sorted(given), own=own_cluster_id)
    return dict(given)


def _read_table(text: str) -> dict[int, Seat]:
    table = load_object(f"{ASKED}: rank_table", text)
    status = table.get("status", "completed")
    if status != "completed":
        raise refusal(
            "bad_value", name=f"{ASKED}: rank_table: status", value=repr(status), expected="'completed'"
        )
    seats: dict[int, Seat] = {}
    servers = table.get("server_list")
    if not isinstance(servers, list):
        raise refusal("no_such_list", name=f"{ASKED}: rank_table", value="server_list")
    for i, server in enumerate(servers):
        where = f"{ASKED}: rank_table: server_list[{i}]"
        if not isinstance(server, dict) or not isinstance(server.get("device"), list):
            raise refusal("no_such_list", name=where, value="device")
        ip = _address_of(where, server)
        for k, device in enumerate(server["device"]):
            rank = _number(f"{where}.device[{k}]", device, "rank_id")
            if rank in seats:
                raise refusal("rank_is_there_twice", name=f"{where}.device[{k}]", value=rank)
            seats[rank] = Seat(ip, _number(f"{where}.device[{k}]", device, "device_id"))
    return seats


def _address_of(where: str, server: dict[str, object]) -> str | None:
    if "host_ip" in server:
        try:
            return str(ipaddress.ip_address(str(server["host_ip"])))
        except ValueError:
            raise refusal(
                "bad_value",
                name=f"{where}: host_ip",
                value=repr(server["host_ip"]),
                expected="an IPv4 or IPv6 address",
            ) from None
    try:
        return str(ipaddress.ip_address(str(server.get("server_id"))))
    except ValueError:
        return None  # a name of the server; only a member that others come to needs an address


def _number(where: str, device: object, key: str) -> int:
    value = device.get(key) if isinstance(device, dict) else None
    text = str(value) if isinstance(value, str) or checks.is_integer(value) else ""
    if not (text.isascii() and text.isdigit()):
        raise refusal(
            "bad_value", name=f"{where}: {key}", value=repr(value), expected="a number, as a string"
        )
    return int(text)


def port_of(option: int | None) -> int:
    """The option, else the environment, else the default."""
    if option is not None:
        return option
    text = os.environ.get(PORT_VARIABLE, "")
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 65535:
        raise refusal("bad_value", name=PORT_VARIABLE, value=repr(text), expected="a port from 1 to 65535")
    return int(text)
