"""What only instances of this process can show each other.

An instance that is in this process is reached by bare addresses, so nobody else may pass for one. Its pid and
start time are known to every peer; the secret behind these tokens never leaves the process, and a forked
child makes its own. A token is bound to who shows it and to whom, so a peer that was shown one cannot show it
to another instance. It is only shown at an address where this process listens, so nobody who listens where an
instance was, or will be, gets one to show it to that instance.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections import Counter

_made: dict[int, bytes] = {}  # pid → secret
_listens_at: Counter[tuple[int, str, int]] = Counter()  # pid, address, port


def _secret() -> bytes:
    return _made.setdefault(os.getpid(), secrets.token_bytes(32))


def listens(ip: str, port: int) -> None:
    """A socket of this process is bound there."""
    _listens_at[os.getpid(), _address(ip), port] += 1


def listens_no_more(ip: str, port: int) -> None:
    """Before it is closed, so that nobody else can be bound there while this is not known."""
    _listens_at[os.getpid(), _address(ip), port] -= 1


def is_here(ip: str, port: int) -> bool:
    """Whoever answers there is this process: one that listens to all addresses has the port for itself."""
    return any(_listens_at[os.getpid(), at, port] > 0 for at in (_address(ip), "0.0.0.0", "::"))


def _address(ip: str) -> str:
    return ipaddress.ip_address(ip.partition("%")[0]).compressed


def of_hello(client_instance: int, server_cluster_id: int) -> bytes:
    """What a client shows with its greeting."""
    return _token(f"hello {client_instance} {server_cluster_id}")


def of_welcome(server_instance: int, client_instance: int) -> bytes:
    """What a server shows to a client that has shown its token, and to nobody else."""
    return _token(f"welcome {server_instance} {client_instance}")


def is_right(shown: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(shown, expected)


def _token(text: str) -> bytes:
    return hmac.digest(_secret(), text.encode(), "sha256")
