"""The keys of links that need a secret.

scrypt makes the secret expensive to guess: who records a handshake can try secrets on it at leisure. One end
of a link, the server, has one key pair, the other end another; both ends know both, and nobody else does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import zmq
from zmq.utils import z85

ZAP_DOMAIN = b"torch_llm_datadist"

_SALT = b"torch_llm_datadist link secret, version 1"
_COST = 2**14  # 16 MiB and some 50 ms per guess
_BLOCK_SIZE = 8


@dataclass(frozen=True, repr=False)
class KeyPair:
    """Of CURVE, as ZeroMQ takes them: 40 characters of Z85 each."""

    public: bytes
    private: bytes


@dataclass(frozen=True, repr=False)
class LinkKeys:
    server: KeyPair
    client: KeyPair

    def protect_server(self, socket: zmq.Socket[bytes]) -> None:
        """Before it is bound. Without a ZAP handler it takes nobody."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.server.private)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def protect_client(self, socket: zmq.Socket[bytes]) -> None:
        """Before it is connected."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server.public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.client.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.client.private)

    def is_client(self, public_key: bytes) -> bool:
        """Whether that, as its 32 bytes, is the public key of the client's end."""
        return public_key == z85.decode(self.client.public)


def derive_keys(secret: str) -> LinkKeys:
    """The same keys for the same secret, wherever and whenever."""
    master = hashlib.scrypt(secret.encode(), salt=_SALT, n=_COST, r=_BLOCK_SIZE, p=1, dklen=32)
    return LinkKeys(_key_pair(master, b"server"), _key_pair(master, b"client"))


def _key_pair(master: bytes, end: bytes) -> KeyPair:
    private = z85.encode(hashlib.blake2b(key=master, person=end, digest_size=32).digest())
    return KeyPair(zmq.curve_public(private), private)
