"""Hosts and their network, as a test or a demo uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch_llm_datadist.emulator.hosts.namespaces import LARGE_PACKETS
from torch_llm_datadist.identity import HOST_ID_VARIABLE

_NETWORK = "10.77.0.0/24"
_MOST_HOSTS = 254
_EMULATED_HOST_VARIABLE = "TORCH_LLM_DATADIST_EMULATE_HOST"
# The hosts share a kernel, its pids and /dev/shm: left to itself UCX would find shared memory between them,
# and the bytes of transfers would never see the network.
_WIRES = {"UCX_TLS": "tcp,self"}


class HostsUnavailableError(OSError):
    """This machine cannot make hosts: no user namespaces, or no TUN devices."""


class Host:
    """
    Attributes:
        name: as the lab was asked for it.
        address: IPv4 address at which the other hosts reach it.
    """

    def __init__(self, name: str, address: str, enter: Sequence[str]) -> None:
        self.name = name
        self.address = address
        self._enter = tuple(enter)

    def __repr__(self) -> str:
        return f"Host({self.name!r}, {self.address})"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on this host. Give it this host's `environment`."""
        return [*self._enter, "--", *argv]

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base`, or this process's environment, with the identity of this host, and only TCP for UCX unless
        it says otherwise.
        """
        given = os.environ if base is None else base
        return {**_WIRES, **given, HOST_ID_VARIABLE: self.name, _EMULATED_HOST_VARIABLE: self.name}

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` on this host."""
        options["env"] = self.environment(options.get("env"))
        return subprocess.Popen(self.command(argv), **options)


@dataclass(frozen=True)
class Counts:
    """
    Attributes:
        packets: that hosts have sent to each other.
        lost: those of them that fell to `loss`.
    """

    packets: int
    lost: int


class Network:
    """What happens to packets between hosts. At first nothing does: they arrive at once, as fast as the
    machine carries them (more than 1 GB/s; some 100 MB/s in packets of 1500 bytes).
    """

    def __init__(self, wire: subprocess.Popen[str], names: Sequence[str]) -> None:
        self._wire = wire
        self._names = tuple(names)

    def shape(self, *, delay_s: float = 0.0, loss: float = 0.0, bytes_per_s: float | None = None) -> None:
        """Conditions for all packets from now on.

        Args:
            delay_s: of each packet, one way: a round trip takes twice that.
            loss: share of packets that are dropped, from 0 to 1; the lab's seed decides which.
            bytes_per_s: of what each host sends, headers included; None for no limit.
        """
        if delay_s < 0 or not 0 <= loss <= 1 or (bytes_per_s is not None and bytes_per_s <= 0):
            raise ValueError(
                f"delay_s is {delay_s}, loss is {loss}, bytes_per_s is {bytes_per_s}; expected a delay of 0 "
                "or more, a loss from 0 to 1, and a rate above 0 or None"
            )
        self._tell(delay_s=delay_s, loss=loss, bytes_per_s=bytes_per_s)

    def cut(self, one: str, other: str) -> None:
        """Drops every packet between two hosts, until `heal`."""
        self._tell(cut=True, pair=self._pair(one, other))

    def heal(self, one: str, other: str) -> None:
        self._tell(cut=False, pair=self._pair(one, other))

    def open_only(self, *ports: int) -> None:
        """From now on a firewall between the hosts passes nothing but TCP from or to these ports."""
        self._tell(open_ports=ports)

    def open_all(self) -> None:
        """Ends `open_only`."""
        self._tell(open_ports=None)

    def _pair(self, one: str, other: str) -> list[str]:
        for name in (one, other):
            if name not in self._names:
                raise ValueError(f"there is no host {name!r}; the hosts are {', '.join(self._names)}")
        return [one, other]

    def counts(self) -> Counts:
        """Since the hosts were made."""
        return self._tell()

    def _tell(self, **command: object) -> Counts:
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        try:
            self._wire.stdin.write(json.dumps(command) + "\n")
            self._wire.stdin.flush()
            answer = self._wire.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the process that carries the packets has ended, status {self._wire.wait()}")
        return Counts(**json.loads(answer))


class Lab:
    """Hosts by name. A context manager; at its end the network is gone, and processes that still run on a
    host are alone there.

    Args:
        names: of the hosts, all different.
        seed: decides which packets are lost.
        mtu: the largest packet. Of large ones there are few, so a small share of them may be none.

    Raises:
        HostsUnavailableError: on entering, with the kernel's reason.
    """

    def __init__(self, *names: str, seed: int = 0, mtu: int = LARGE_PACKETS) -> None:
        if not 0 < len(names) <= _MOST_HOSTS or len(set(names)) != len(names):
            raise ValueError(f"hosts {names}: expected 1 to {_MOST_HOSTS} different names")
        self._names = names
        self._seed = seed
        self._mtu = mtu

    def __enter__(self) -> Lab:
        self._wire = subprocess.Popen(
            [
                *(sys.executable, "-m", f"{__package__}.wire"),
                *(_NETWORK, str(self._seed), str(self._mtu), *self._names),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCH_LLM_DATADIST_EMULATE": "0"},  # it needs no NPU
        )
        assert self._wire.stdout is not None
        line = self._wire.stdout.readline()
        made: dict[str, Any] = json.loads(line) if line else {"error": f"status {self._wire.wait()}"}
        if "error" in made:
            self._end()
            raise HostsUnavailableError(f"hosts {', '.join(self._names)} could not be made: {made['error']}")
        process = f"/proc/{self._wire.pid}"
        self._hosts = {
            name: Host(
                name,
                made["addresses"][name],
                (
                    "nsenter",
                    f"--user={process}/ns/user",
                    f"--net={process}/fd/{file}",
                    f"--mount={process}/fd/{mounts}",
                    "--wd=.",
                    "--preserve-credentials",
                ),
            )
            for name, (file, mounts) in made["namespaces"].items()
        }
        self.network = Network(self._wire, self._names)
        return self

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.close()
        self._wire.wait()
        self._wire.stdout.close()
