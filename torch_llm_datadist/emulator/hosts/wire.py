"""The process that is the network: it makes the hosts' namespaces, and carries each packet between them.

``python -m torch_llm_datadist.emulator.hosts.wire NETWORK SEED MTU NAME…`` prints where the namespaces are,
then obeys one JSON object per line of its input, answering each with how many packets came and how many of
them were lost, and ends with its input.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import itertools
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

from torch_llm_datadist.emulator.hosts import namespaces

_VERSION_4 = 4
_PROTOCOL = 9  # of an IPv4 header
_DESTINATION = slice(16, 20)
_PACKET_BYTES = 65536
_PACKETS_PER_TURN = 64
_QUEUE_S = 0.2  # a packet that would wait longer for a slow link is dropped, as a full switch does


@dataclass
class Conditions:
    delay_s: float = 0.0  # one way
    loss: float = 0.0  # share of the packets
    bytes_per_s: float | None = None  # out of each host
    cut: set[frozenset[str]] = field(default_factory=set)  # pairs
    open_ports: list[int] | None = None  # of TCP; None: all


class Wire:
    def __init__(self, hosts: dict[str, tuple[ipaddress.IPv4Address, int]], seed: int) -> None:
        self.conditions = Conditions()
        self._names = {packets: name for name, (_, packets) in hosts.items()}
        self._by_address = {address.packed: packets for address, packets in hosts.values()}
        self._random = random.Random(seed)
        self.counts = {"packets": 0, "lost": 0}
        self._idle_at = dict.fromkeys(self._names, 0.0)
        self._under_way: list[tuple[float, int, int, bytes]] = []  # due, number, to, packet
        self._numbers = itertools.count()

    def take(self, source: int) -> None:
        """Takes what a host has sent, up to a number of packets."""
        for _ in range(_PACKETS_PER_TURN):
            try:
                packet = os.read(source, _PACKET_BYTES)
            except BlockingIOError:
                return
            self._send(source, packet)

    def _send(self, source: int, packet: bytes) -> None:
        target = self._by_address.get(packet[_DESTINATION]) if packet[0] >> 4 == _VERSION_4 else None
        if target is None:
            return
        self.counts["packets"] += 1
        now, conditions = time.monotonic(), self.conditions
        if frozenset((self._names[source], self._names[target])) in conditions.cut:
            return
        if conditions.open_ports is not None and not set(conditions.open_ports) & _tcp_ports(packet):
            return
        if conditions.loss and self._random.random() < conditions.loss:
            self.counts["lost"] += 1
            return
        leaves = now
        if conditions.bytes_per_s is not None:
            begins = max(now, self._idle_at[source])
            if begins - now > _QUEUE_S:
                return
            leaves = self._idle_at[source] = begins + len(packet) / conditions.bytes_per_s
        due = leaves + conditions.delay_s
        # What left earlier arrives earlier, also when the conditions have just become better.
        if due <= now and not self._under_way:
            self._deliver(target, packet)
        else:
            heapq.heappush(self._under_way, (due, next(self._numbers), target, packet))

    def deliver_due(self) -> float | None:
        """Delivers what has arrived; the seconds until more will, or None."""
        while self._under_way:
            wait = self._under_way[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, target, packet = heapq.heappop(self._under_way)
            self._deliver(target, packet)
        return None

    @staticmethod
    def _deliver(target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # a full or downed interface drops
            os.write(target, packet)

    def obey(self, command: dict[str, object]) -> None:
        pair = frozenset(command.pop("pair", ()))  # type: ignore[call-overload]
        for name, value in command.items():
            if name == "cut":
                (self.conditions.cut.add if value else self.conditions.cut.discard)(pair)
            else:
                setattr(self.conditions, name, value)


def _tcp_ports(packet: bytes) -> set[int]:
    if packet[_PROTOCOL] != socket.IPPROTO_TCP:
        return set()
    head = 4 * (packet[0] & 0xF)
    return set(struct.unpack_from("!HH", packet, head))


def main(argv: list[str]) -> int:
    network = ipaddress.IPv4Network(argv[0])
    seed, mtu, names = int(argv[1]), int(argv[2]), argv[3:]
    addresses = dict(zip(names, network.hosts(), strict=False))
    try:
        namespaces.enter_user_namespace()
        made = {name: namespaces.make(network, addresses[name], mtu) for name in names}
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    files = {name: (namespace.file, namespace.mounts) for name, namespace in made.items()}
    print(
        json.dumps({"namespaces": files, "addresses": {n: str(a) for n, a in addresses.items()}}), flush=True
    )
    wire = Wire({name: (addresses[name], made[name].packets) for name in names}, seed)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        for namespace in made.values():
            selector.register(namespace.packets, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(wire.deliver_due()):
                if key.fd != sys.stdin.fileno():
                    wire.take(key.fd)
                elif line := sys.stdin.readline():
                    wire.obey(json.loads(line))
                    print(json.dumps(wire.counts), flush=True)
                else:
                    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
