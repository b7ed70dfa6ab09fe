"""Who a peer is: its role, and the addresses at which ``link_clusters`` finds it."""

from __future__ import annotations

import ipaddress
import socket
from enum import IntEnum

from . import checks
from .messages import refusal


class LLMRole(IntEnum):
    """A label for the instance's task; it selects nothing in a transfer. Source: manual page LLMRole.

    >>> str(llm_datadist.LLMRole.PROMPT)
    'LLMRole.PROMPT'
    """

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return f"LLMRole.{self.name}"


def parse_ip(name: str, ip: object) -> str:
    """An IPv4 or IPv6 address in its usual spelling, from a string or from a little-endian IPv4 integer."""
    if isinstance(ip, int) and not isinstance(ip, bool):
        return socket.inet_ntoa(checks.uint32(name, ip).to_bytes(4, "little"))
    text = checks.instance(name, ip, str, what="a str or an int")
    try:
        if ":" in text:
            return str(ipaddress.IPv6Address(text))
        if not text or any(c.isspace() for c in text):
            raise ValueError
        return socket.inet_ntoa(socket.inet_aton(text))  # takes "127.1" too
    except (ValueError, OSError):
        raise refusal("bad_value", name=name, value=repr(text), expected="an IPv4 or IPv6 address") from None


def endpoint(ip: str, port: int) -> str:
    """``10.0.0.4:26000`` or ``[::1]:26000``."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def parse_endpoint(name: str, text: object) -> tuple[str, int]:
    """The ip and port of ``10.0.0.4:26000`` or ``[::1]:26000``; port 0 lets the system choose one."""
    text = checks.instance(name, text, str, what='a str "ip:port"')
    ip, colon, port = text.rpartition(":")
    bracketed = ip.startswith("[") and ip.endswith("]")
    if not colon or not ip or (":" in ip and not bracketed):
        raise refusal("bad_value", name=name, value=repr(text), expected='"ip:port", or "[ip]:port" for IPv6')
    number = checks.number_in(port)
    if number is None:
        shown = checks.shown(port)
        raise refusal("port_is_no_number", name=name, address=checks.shown(text), value=shown)
    return parse_ip(name, ip[1:-1] if bracketed else ip), checks.uint16(f"{name}: port", number)


class LLMClusterInfo:
    """One entry of the list given to ``link_clusters`` and ``unlink_clusters``.

    Source: manual page LLMClusterInfo. IPv6 addresses work too.

    >>> peer = LLMClusterInfo()
    >>> peer.remote_cluster_id = 2
    >>> peer.append_local_ip_info("10.0.0.3", 0)
    >>> peer.append_remote_ip_info("10.0.0.4", 26000)
    """

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | int | None = None
        self._local: list[tuple[str, int]] = []
        self._remote: list[tuple[str, int]] = []

    @property
    def remote_cluster_id(self) -> int | None:
        """The peer's cluster_id, uint64; None until set."""
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, value: int) -> None:
        self._remote_cluster_id = checks.uint64("LLMClusterInfo: remote_cluster_id", value)

    @property
    def remote_role_type(self) -> LLMRole | int | None:
        """Carried, and used by nothing."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, value: LLMRole | int) -> None:
        if not checks.is_integer(value):
            raise refusal(
                "bad_type",
                name="LLMClusterInfo: remote_role_type",
                value=repr(value),
                expected="an LLMRole or an int",
            )
        self._remote_role_type = value

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        """Adds the own host's address; the port counts for nothing.

        Args:
            ip: IPv4 or IPv6 address, or an IPv4 address as a little-endian uint32.
            port: uint16.

        Source: manual page LLMClusterInfo.
        """
        self._local.append(_address("append_local_ip_info", ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        """Adds the address at which the peer listens (its ``listen_ip_info``). Arguments as for the local
        one. Source: manual page LLMClusterInfo.
        """
        self._remote.append(_address("append_remote_ip_info", ip, port))

    @property
    def local_ip_info_list(self) -> list[tuple[int, int]]:
        """(little-endian integer of the ip, port) of each address added."""
        return [(as_little_endian(ip), port) for ip, port in self._local]

    @property
    def remote_ip_info_list(self) -> list[tuple[int, int]]:
        """(little-endian integer of the ip, port) of each address added."""
        return [(as_little_endian(ip), port) for ip, port in self._remote]

    @property
    def remote_addresses(self) -> list[tuple[str, int]]:
        """(ip, port) of each remote address added, the ip in its usual spelling."""
        return list(self._remote)

    def __repr__(self) -> str:
        remote = ", ".join(endpoint(*address) for address in self._remote)
        return f"LLMClusterInfo(remote_cluster_id={self._remote_cluster_id}, remote=[{remote}])"


def _address(method: str, ip: str | int, port: int) -> tuple[str, int]:
    return parse_ip(f"{method}: ip", ip), checks.uint16(f"{method}: port", port)


def as_little_endian(ip: str) -> int:
    return int.from_bytes(ipaddress.ip_address(ip.partition("%")[0]).packed, "little")
