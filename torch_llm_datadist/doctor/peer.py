"""The way to a peer: whether something answers there, is an instance, and would link."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

from torch_llm_datadist import _native, transports
from torch_llm_datadist.cluster import endpoint
from torch_llm_datadist.doctor.finding import Finding, broken, note, ok
from torch_llm_datadist.doctor.greeting import NOBODY, Answer, greet
from torch_llm_datadist.errors import ParamInvalidError
from torch_llm_datadist.identity import PROTOCOL_VERSION, Identity, different_versions, host_id, own_identity
from torch_llm_datadist.link_keys import LinkKeys, derive_keys
from torch_llm_datadist.link_secret import SECRET_VARIABLE, checked_secret

_TIMEOUT_S = 5.0
# Of ZMTP 3, rfc.zeromq.org/spec/23: signature 10 bytes, version 2, mechanism 20, as-server 1, filler 31.
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
# The rest would name a mechanism, and who asks for another one is cut off before all of its answer has left.
_BEGIN_OF_GREETING = _SIGNATURE + b"\x03"
_PORTS_NOT_TRIED = " (by ports that the kernel chooses when a link is made: none was tried)"
_CONDITIONS = {
    "fabric": " if the caches here are of mem_pool_cfg, too",
    "hixl": _PORTS_NOT_TRIED,
    "nixl": _PORTS_NOT_TRIED,
}
_SAME_SECRET = f"set {SECRET_VARIABLE} (or LLMConfig.link_secret) to the same at both"


def examine(ip: str, port: int) -> Iterator[Finding]:
    name, where = "peer", endpoint(ip, port)
    begin = time.monotonic()
    try:
        connection = socket.create_connection((ip, port), timeout=_TIMEOUT_S)
    except TimeoutError:
        yield broken(
            name,
            f"{where} does not answer in {_TIMEOUT_S:g} s",
            f"let TCP to port {port} through all firewalls on the way, or see whether the host is up",
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
        found, mechanism = _listener(connection, where)
    yield found
    if mechanism:
        yield _greeting(ip, port, mechanism)


def _listener(connection: socket.socket, where: str) -> tuple[Finding, str]:
    """What is known of it, and the mechanism that an instance's listener asks for; "" for anything else."""
    name = "peer's listener"
    stranger = broken(name, f"{where} is no instance's listener", "another program has that port")
    greeting = b""
    try:
        connection.sendall(_BEGIN_OF_GREETING)
        while len(greeting) < _GREETING_BYTES and (more := connection.recv(_GREETING_BYTES - len(greeting))):
            greeting += more
    except TimeoutError:
        return broken(
            name,
            f"{where} takes the connection and says nothing for {_TIMEOUT_S:g} s",
            "the process there is frozen or very busy, or packets are dropped since: look at it there",
        ), ""
    except OSError:
        return stranger, ""
    if len(greeting) < _GREETING_BYTES or (greeting[0], greeting[9]) != (_SIGNATURE[0], _SIGNATURE[9]):
        return stranger, ""
    mechanism = greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    secret = "links need the shared secret" if mechanism == "CURVE" else "links need no secret"
    return ok(name, f"{where} speaks ZMTP {greeting[10]}, mechanism {mechanism}: {secret}"), mechanism


def _greeting(ip: str, port: int, mechanism: str) -> Finding:
    """Asked as an instance asks that is about to link, with the secret of this environment."""
    name = "peer's answer"
    try:
        text = os.environ.get(SECRET_VARIABLE)
        keys = derive_keys(checked_secret(SECRET_VARIABLE, text)) if text else None
    except ParamInvalidError as error:
        return broken(name, str(error), _SAME_SECRET)
    if mechanism == "CURVE" and keys is None:
        return broken(name, f"it needs a link_secret, and {SECRET_VARIABLE} is not set here", _SAME_SECRET)
    if mechanism != "CURVE" and keys is not None:
        return broken(name, f"it has no link_secret, and {SECRET_VARIABLE} is set here", _SAME_SECRET)
    own = _own_transports()
    answer = greet(ip, port, keys, "", _TIMEOUT_S, own, _own_super_pod())
    return _judge(name, answer, keys, own)


def _own_transports() -> dict[str, str]:
    """What an instance here would offer; of one without a core, which is a finding of its own, the least."""
    try:
        return transports.offered(_native.load(), transports.wanted_by_environment())
    except Exception:
        return {"mapped": ""}


def _own_super_pod() -> int:
    try:
        return int(_native.load().super_pod_of(0))
    except Exception:
        return -1


def _judge(name: str, answer: Answer, keys: LinkKeys | None, own: dict[str, str]) -> Finding:
    if answer.identity is not None:
        return _would_link(name, answer.identity, own)
    if answer.is_closed and keys is not None:
        return broken(name, "it refused the link_secret", _SAME_SECRET)
    if answer.is_closed:
        return broken(name, "it closed the connection without a word", "look at its log")
    if answer.other_protocol is not None or "control protocol" in answer.refusal:
        said = answer.refusal or f"it speaks version {answer.other_protocol}, this is {PROTOCOL_VERSION}"
        return broken(name, said, "install the same torch_llm_datadist at both")
    if answer.refusal:
        # The way is open and the secret is right; an instance has more to offer than this greeting.
        return note(
            name,
            f"it answers, and would not link to a process like this one: {answer.refusal}",
            "set both ends up so that they can link: the log of an instance that tries says what it offered",
        )
    return broken(
        name,
        f"nothing within {_TIMEOUT_S:g} s",
        "its control thread is frozen or very busy, or longer packets are dropped: compare the MTUs",
    )


def _would_link(name: str, peer: Identity, offered: dict[str, str]) -> Finding:
    own = own_identity(
        NOBODY, 0, remote_accessible=True, cann=peer.cann, transports=offered, super_pod=_own_super_pod()
    )
    place = "of this host" if peer.host == host_id() else "of another host"
    choice = transports.choose(own, peer)
    found = f"cluster {peer.cluster_id}, pid {peer.pid} {place}, would link over {choice.name or 'nothing'}"
    found += _CONDITIONS.get(choice.name, "")
    if choice.passed_over:
        found += f"; passed over: {choice.passed_over.replace(f'cluster {NOBODY}:', 'here:')}"
    if differences := different_versions(own, peer):
        return note(name, f"{found}; {differences}", "it works; the same versions are easier to support")
    return ok(name, found)
