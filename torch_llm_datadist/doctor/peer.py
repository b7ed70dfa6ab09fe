"""The way to a peer: whether something answers there, and whether that is an instance's listener."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from torch_llm_datadist.cluster import endpoint
from torch_llm_datadist.doctor.finding import Finding, broken, ok

_TIMEOUT_S = 5.0
# Of ZMTP 3, rfc.zeromq.org/spec/23: signature 10 bytes, version 2, mechanism 20, as-server 1, filler 31.
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_OWN_GREETING = _SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def examine(ip: str, port: int) -> Iterator[Finding]:
    name, where = "peer", endpoint(ip, port)
    begin = time.monotonic()
    try:
        connection = socket.create_connection((ip, port), timeout=_TIMEOUT_S)
    except TimeoutError:
        yield broken(
            name, f"{where} does not answer in {_TIMEOUT_S:g} s", "a firewall drops it, or the host is down"
        )
        return
    except OSError as error:
        yield broken(
            name,
            f"{where}: {error.strerror}",
            "is an instance up there, with this listen_ip_info?",
        )
        return
    with connection:
        yield ok(name, f"{where} answers after {(time.monotonic() - begin) * 1e3:.1f} ms")
        yield _listener(connection, where)


def _listener(connection: socket.socket, where: str) -> Finding:
    name = "peer's listener"
    stranger = broken(name, f"{where} is no instance's listener", "another program has that port")
    greeting = b""
    try:
        connection.sendall(_OWN_GREETING)
        while len(greeting) < _GREETING_BYTES and (more := connection.recv(_GREETING_BYTES - len(greeting))):
            greeting += more
    except OSError:
        return stranger
    if len(greeting) < _GREETING_BYTES or (greeting[0], greeting[9]) != (_SIGNATURE[0], _SIGNATURE[9]):
        return stranger
    mechanism = greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    secret = "links need the shared secret" if mechanism == "CURVE" else "links need no secret"
    return ok(name, f"{where} speaks ZMTP {greeting[10]}, mechanism {mechanism}: {secret}")
