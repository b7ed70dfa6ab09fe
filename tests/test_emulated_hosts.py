"""Emulated hosts: processes on different ones meet through a network that delays, drops, slows and is cut."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from torch_llm_datadist.emulator.hosts import Host, HostsUnavailableError, Lab

PATIENCE_S = 30

# Answers each byte with one byte, and each datagram by counting it; says what it counted when asked by "?".
SERVER = """
import selectors, socket, sys
stream = socket.create_server(("0.0.0.0", 7000))
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
datagrams.bind(("0.0.0.0", 7000))
print("up", flush=True)
connection, _ = stream.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
datagrams.settimeout(0.05)
while data := connection.recv(1 << 20):
    if data[-1:] != b"?":
        connection.sendall(data[-1:])
        continue
    seen = 0
    try:
        while datagrams.recv(64):
            seen += 1
    except TimeoutError:
        connection.sendall(seen.to_bytes(4, "big"))
"""

# Runs the expression it is given, with a connection to the server at hand.
CLIENT = """
import socket, sys, time
address, body = sys.argv[1:]
connection = socket.create_connection((address, 7000), timeout=20)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
datagrams = socket.socket(type=socket.SOCK_DGRAM)
def echo():
    begin = time.monotonic()
    connection.sendall(b".")
    assert connection.recv(1) == b"."
    return time.monotonic() - begin
print("connected", flush=True)
exec(body)
"""


@contextlib.contextmanager
def made(*names: str) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab(*names, seed=7))
        except HostsUnavailableError as error:
            pytest.skip(str(error))
        yield lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with made("near", "far") as lab:
        yield lab


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[[Host, str], subprocess.Popen[str]]]:
    """Starts a Python program on a host and waits for its first line."""
    started: list[subprocess.Popen[str]] = []

    def run(host: Host, program: str, *arguments: str) -> subprocess.Popen[str]:
        process = host.popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def ask(lab: Lab, start) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a client on one host, connected to the server on the other."""

    def run(body: str) -> subprocess.Popen[str]:
        start(lab["far"], SERVER)
        return start(lab["near"], CLIENT, lab["far"].address, body)

    return run


def answer(process: subprocess.Popen[str], line: str | None = None) -> str:
    output, _ = process.communicate(line, timeout=PATIENCE_S)
    assert process.returncode == 0
    return output.strip()


def tell(process: subprocess.Popen[str]) -> None:
    """Lets its `input()` return."""
    process.stdin.write("\n")
    process.stdin.flush()


def test_loopback_is_each_hosts_own(lab: Lab, start):
    listen = "import socket; s = socket.create_server(('127.0.0.1', 7001)); print('up', flush=True); input()"
    start(lab["near"], listen)
    refused = lab["near"].popen([sys.executable, "-c", listen], stderr=subprocess.PIPE)
    assert b"in use" in refused.communicate(timeout=PATIENCE_S)[1]
    assert start(lab["far"], listen).poll() is None


def test_identity_differs_between_hosts_and_not_within_one(lab: Lab, start):
    program = "from torch_llm_datadist.identity import host_id; print(host_id())"

    def identity(host: Host) -> str:
        process = host.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        return answer(process)

    assert identity(lab["near"]) == identity(lab["near"]) != identity(lab["far"])


def test_delay_is_paid_both_ways(lab: Lab, ask):
    client = ask("input(); print(min(echo() for _ in range(3)))")
    lab.network.shape(delay_s=0.05)
    tell(client)
    assert float(answer(client)) >= 0.1


def test_loss_drops_its_share_of_the_datagrams(lab: Lab, ask):
    client = ask(
        "for _ in range(10):\n"
        "    input()\n"
        "    for _ in range(100): datagrams.sendto(b'x', (address, 7000))\n"
        "    print('sent', flush=True)\n"
        "input(); connection.sendall(b'?')\n"
        "print(int.from_bytes(connection.recv(4), 'big'))"
    )
    lab.network.shape(loss=0.2)
    deadline = time.monotonic() + PATIENCE_S
    for _ in range(10):  # a host's queue holds 500 until the network takes them
        before = lab.network.counts().packets
        tell(client)
        assert client.stdout.readline() == "sent\n"
        while lab.network.counts().packets < before + 100:
            assert time.monotonic() < deadline
    lab.network.shape()
    arrived = int(answer(client, "\n"))
    assert 720 <= arrived <= 880
    counts = lab.network.counts()
    assert counts.lost >= 1000 - arrived
    assert counts.packets > 1000


def test_ucx_is_given_wires_only_unless_it_is_told_otherwise(lab: Lab):
    assert lab["near"].environment({})["UCX_TLS"] == "tcp,self"
    assert lab["near"].environment({"UCX_TLS": "tcp"})["UCX_TLS"] == "tcp"


def test_rate_limits_what_a_host_sends(lab: Lab, ask):
    client = ask(
        "input(); begin = time.monotonic(); connection.sendall(bytes(8_000_000) + b'!')\n"
        "while connection.recv(1) != b'!': pass\n"
        "print(time.monotonic() - begin)"
    )
    lab.network.shape(bytes_per_s=20e6)
    assert float(answer(client, "\n")) >= 0.9 * 8 / 20


def test_cut_stalls_and_heal_goes_on(lab: Lab, ask):
    client = ask("print(echo(), flush=True); input(); print(echo())")
    assert float(client.stdout.readline()) < PATIENCE_S
    lab.network.cut("near", "far")
    tell(client)
    time.sleep(0.3)
    assert client.poll() is None
    lab.network.heal("near", "far")
    assert float(answer(client)) >= 0.3


def test_cut_is_between_two_hosts_only():
    with made("a", "b", "c") as lab:
        lab.network.cut("a", "b")
        for host, expected, within_s in (("c", "reached", 60), ("b", "unreached", 0.3)):
            server = lab["a"].popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
            server.stdout.readline()
            program = (
                "import socket, sys\n"
                "try: socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])); "
                "print('reached')\n"
                "except TimeoutError: print('unreached')"
            )
            client = lab[host].popen(
                [sys.executable, "-c", program, lab["a"].address, str(within_s)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert answer(client) == expected
            server.kill()
            server.communicate()


def test_conditions_out_of_range_are_refused(lab: Lab):
    for wrong in ({"delay_s": -1}, {"loss": 1.5}, {"bytes_per_s": 0}):
        with pytest.raises(ValueError, match=str(*wrong.values())):
            lab.network.shape(**wrong)
    with pytest.raises(ValueError, match=r"no host 'nobody'; the hosts are near, far"):
        lab.network.cut("near", "nobody")


def test_names_are_different():
    with pytest.raises(ValueError, match="different names"):
        Lab("a", "a")


def test_dead_network_is_told(lab: Lab):
    lab._wire.kill()
    with pytest.raises(RuntimeError, match=r"has ended, status -9"):
        lab.network.shape(delay_s=0.1)
