"""A greeting to a peer, as an instance would send it, and what comes back; no link is made."""

from __future__ import annotations

import re
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from torch_llm_datadist import process_token, wire
from torch_llm_datadist.cluster import endpoint
from torch_llm_datadist.identity import Identity, own_identity
from torch_llm_datadist.link_keys import LinkKeys

NOBODY = 2**63 - 1  # a cluster id that no instance has; also ours
_SAYS_ITS_ID = re.compile(r"the instance there is cluster (\d+)")
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MAX_CLOSINGS = 3  # as an instance has it


@dataclass(frozen=True)
class Answer:
    """What the peer said: one of these.

    Attributes:
        identity: it would link.
        refusal: it would not, and why.
        is_closed: it closed the connection while keys were compared.
        other_protocol: the version of the control protocol that it speaks.
    """

    identity: Identity | None = None
    refusal: str = ""
    is_closed: bool = False
    other_protocol: int | None = None

    @property
    def is_silence(self) -> bool:
        return self == Answer()


def greet(
    ip: str,
    port: int,
    keys: LinkKeys | None,
    cann: str,
    timeout_s: float,
    transports: dict[str, str] | None = None,
    super_pod: int = -1,
) -> Answer:
    """The first greeting asks for a cluster that is not there, and so learns which one is."""
    answer = Answer()
    wanted = NOBODY - 1
    remote_accessible = True
    for _ in range(4):
        own = own_identity(
            NOBODY,
            0,
            remote_accessible=remote_accessible,
            cann=cann,
            authenticated=keys is not None,
            transports=transports,
            super_pod=super_pod,
        )
        token = process_token.of_hello(own.instance, wanted)  # for an instance of this very process
        hello = wire.Hello(wanted_cluster_id=wanted, identity=own, token=token)
        answer = _ask(ip, port, keys, hello, timeout_s)
        named = _SAYS_ITS_ID.search(answer.refusal)
        if named is not None and int(named[1]) != wanted:
            wanted = int(named[1])
        elif "enable_remote_cache_accessible" in answer.refusal and remote_accessible:
            remote_accessible = False  # either is right; the two ends of a link have to agree
        else:
            break
    return answer


def _ask(ip: str, port: int, keys: LinkKeys | None, hello: wire.Hello, timeout_s: float) -> Answer:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        if keys is not None:
            keys.protect_client(dealer)
        dealer.setsockopt(zmq.IPV6, ":" in ip)
        dealer.setsockopt(zmq.LINGER, 200)
        dealer.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES_ON_THE_WAY)
        monitor = dealer.get_monitor_socket(_FAILED)
        try:
            dealer.connect(f"tcp://{endpoint(ip, port)}")
            dealer.send_multipart(wire.split(wire.encode(hello)))
            return _hear(dealer, monitor, timeout_s)
        finally:
            dealer.disable_monitor()


def _hear(dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes], timeout_s: float) -> Answer:
    poller = zmq.Poller()
    for socket in (dealer, monitor):
        poller.register(socket, zmq.POLLIN)
    closings = 0
    while ready := dict(poller.poll(int(timeout_s * 1000))):
        if dealer in ready:
            return _read(dealer)
        event = parse_monitor_message(monitor.recv_multipart())
        closings += 1
        if closings == _MAX_CLOSINGS or event["event"] != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return Answer(is_closed=True)
    return Answer(is_closed=closings > 0)


def _read(dealer: zmq.Socket[bytes]) -> Answer:
    try:
        message = wire.decode(wire.join(dealer.recv_multipart(copy=False)))
    except wire.OtherProtocolError as error:
        return Answer(other_protocol=error.version)
    except wire.MalformedMessageError as error:
        return Answer(refusal=f"it answers in no protocol that is known here ({error})")
    if isinstance(message, wire.Welcome):
        dealer.send_multipart(wire.split(wire.encode(wire.Closed("only doctor was asking"))))
        return Answer(identity=message.identity)
    if isinstance(message, wire.Refused):
        return Answer(refusal=message.reason)
    return Answer(refusal=f"it answered with {type(message).__name__}")
