"""What only instances of this process can show each other.

An instance that is in this process is reached by bare addresses, so nobody else may pass for one. Its pid and
start time are known to every peer; the secret behind these tokens never leaves the process, and a forked
child makes its own. A token is bound to who shows it and to whom, so a peer that was shown one cannot show it
to another instance.
"""

from __future__ import annotations

import hmac
import os
import secrets

_made: dict[int, bytes] = {}  # pid → secret


def _secret() -> bytes:
    return _made.setdefault(os.getpid(), secrets.token_bytes(32))


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
