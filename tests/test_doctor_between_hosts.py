"""``doctor --peer`` from one host to another: network, secret and protocol, and what to do about each."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.peers import freeze
from torch_llm_datadist import _native
from torch_llm_datadist.doctor import peer
from torch_llm_datadist.emulator.hosts import HostsUnavailableError, Lab
from torch_llm_datadist.identity import own_identity

SECRET, OTHER_SECRET = "correct horse battery staple", "incorrect horse battery staple"

# An instance that listens until its input ends.
SERVER = """
import os, sys
import torch_llm_datadist as datadist
config = datadist.LLMConfig()
config.device_id = 0
config.enable_cache_manager = True
config.enable_remote_cache_accessible = True
config.listen_ip_info = sys.argv[1] + ":0"
if sys.argv[2]:
    config.link_secret = sys.argv[2]
instance = datadist.LLMDataDist(datadist.LLMRole.MIX, int(sys.argv[3]))
instance.init(config.generate_options())
print(instance.listen_port, flush=True)
sys.stdin.read()
os._exit(0)
"""

# Looks at what it is told to, once per line.
CLIENT = """
import dataclasses, functools, json, os, sys, types
from torch_llm_datadist.doctor import greeting, peer
greeting.wire = types.SimpleNamespace(**vars(greeting.wire))
hello = greeting.wire.Hello
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["TORCH_LLM_DATADIST_LINK_SECRET"] = asked["secret"]
    greeting.wire.Hello = functools.partial(hello, protocol=asked["protocol"]) if asked["protocol"] else hello
    peer._TIMEOUT_S = asked["timeout_s"]
    found = list(peer.examine(asked["ip"], asked["port"]))
    print(json.dumps([dataclasses.asdict(each) for each in found]), flush=True)
"""


class Doctor:
    """Runs on the host "near"; two instances listen on "far", one of which has a secret."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self._started = lab, []
        self.ip = lab["far"].address
        self.servers = [
            self._start("far", SERVER, self.ip, secret, id_) for secret, id_ in (("", "7"), (SECRET, "8"))
        ]
        self._client = self._start("near", CLIENT)
        self.open_port, self.secret_port = (int(self._line(server)) for server in self.servers)
        assert self._line(self._client) == "ready\n"

    def _start(self, host: str, program: str, *arguments: str) -> subprocess.Popen[str]:
        process = self.lab[host].popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    def look(self, port: int, secret: str = "", protocol: int = 0, timeout_s: float = 20.0) -> list[Any]:
        asked = {"ip": self.ip, "port": port, "secret": secret, "protocol": protocol, "timeout_s": timeout_s}
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps(asked) + "\n")
        self._client.stdin.flush()
        found: list[Any] = json.loads(self._line(self._client))
        return found

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def doctor() -> Iterator[Doctor]:
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab("near", "far", seed=3))
        except HostsUnavailableError as error:
            pytest.skip(str(error))
        made = Doctor(lab)
        stack.callback(made.close)
        yield made


def broken(found: list[Any]) -> Any:
    """The last finding, which is what went wrong; all before it were well."""
    assert [each["state"] for each in found] == ["ok"] * (len(found) - 1) + ["broken"]
    assert found[-1]["advice"]
    return found[-1]


@pytest.mark.parametrize(
    ("listener", "secret", "cluster_id"), [("open_port", "", 7), ("secret_port", SECRET, 8)]
)
def test_an_instance_on_another_host_answers(
    doctor: Doctor, listener: str, secret: str, cluster_id: int
) -> None:
    found = doctor.look(getattr(doctor, listener), secret)

    assert [each["name"] for each in found] == ["peer", "peer's listener", "peer's answer"]
    assert [each["state"] for each in found] == ["ok", "ok", "ok"]
    said = found[2]["found"]
    assert re.search(rf"cluster {cluster_id}, .* of another host, would link over hixl", said)
    assert "by ports that the kernel chooses when a link is made: none was tried" in said
    assert "passed over: mapped: different hosts" in said
    assert f"fabric: cluster {cluster_id}: the instance has no mem_pool_cfg" in said


def test_hosts_of_one_super_pod_would_link_over_fabric_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    reaches = {"mapped": "", "fabric": "", "hixl": ""}
    there = own_identity(7, 0, remote_accessible=True, cann="", transports=reaches, super_pod=3)
    elsewhere = msgspec.structs.replace(there, host="elsewhere")
    monkeypatch.setattr(_native.load(), "super_pod_of", lambda device: 3)

    said = peer._would_link("peer's answer", elsewhere, reaches).found

    assert "would link over fabric if the caches here are of mem_pool_cfg, too; passed over: mapped" in said


@pytest.mark.parametrize(
    ("listener", "secret", "what"),
    [
        ("secret_port", OTHER_SECRET, "it refused the link_secret"),
        ("secret_port", "", "it needs a link_secret"),
        ("open_port", SECRET, "it has no link_secret"),
        ("open_port", "short", "has 5 characters, expected 16 to 1024"),
    ],
)
def test_a_secret_that_differs_is_told(doctor: Doctor, listener: str, secret: str, what: str) -> None:
    said = broken(doctor.look(getattr(doctor, listener), secret))

    assert said["name"] == "peer's answer"
    assert what in said["found"]
    assert "TORCH_LLM_DATADIST_LINK_SECRET" in said["advice"]


def test_another_protocol_is_told_with_both_versions(doctor: Doctor) -> None:
    from torch_llm_datadist.identity import PROTOCOL_VERSION

    said = broken(doctor.look(doctor.open_port, protocol=99))

    assert f"version {PROTOCOL_VERSION} at one end and 99 at the other" in said["found"]
    assert said["advice"] == "install the same torch_llm_datadist at both"


def test_a_cut_network_is_told_and_its_heal_is_seen(doctor: Doctor) -> None:
    doctor.lab.network.cut("near", "far")
    try:
        said = broken(doctor.look(doctor.open_port, timeout_s=0.3))
    finally:
        doctor.lab.network.heal("near", "far")

    assert said["found"] == f"{doctor.ip}:{doctor.open_port} does not answer in 0.3 s"
    assert "firewall" in said["advice"]
    assert doctor.look(doctor.open_port)[0]["state"] == "ok"


def test_a_frozen_process_is_told_apart_from_a_stranger(doctor: Doctor) -> None:
    freeze(doctor.servers[0].pid)
    try:
        said = broken(doctor.look(doctor.open_port, timeout_s=0.5))
    finally:
        doctor.servers[0].send_signal(signal.SIGCONT)

    assert "takes the connection and says nothing" in said["found"]
    assert "frozen" in said["advice"]
