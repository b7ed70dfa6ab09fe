"""``python -m torch_llm_datadist doctor``: what is missing is found, named, and comes with advice."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import torch_llm_datadist as datadist
from tests import instances
from torch_llm_datadist import _native, doctor, emulator, transports
from torch_llm_datadist.doctor import device, machine, networks, packages, peer
from torch_llm_datadist.doctor.finding import Finding, State
from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.identity import start_time_of
from torch_llm_datadist.transports import nixl_library

DOCTOR = [sys.executable, "-m", "torch_llm_datadist", "doctor", "--emulate"]


def only(findings: Iterator[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DOCTOR, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


def test_machine_that_passes_this_suite_is_healthy():
    told = run("--json", "--listen", "127.0.0.1:0")
    assert told.returncode == 0, told.stdout
    findings = {each["name"]: each for each in json.loads(told.stdout)}
    assert {each["state"] for each in findings.values()} <= {"ok", "note"}
    assert findings["a transfer"]["state"] == "ok"
    assert "1024 KiB from npu:0" in findings["a transfer"]["found"]
    assert "between two processes arrived intact" in findings["a transfer"]["found"]
    assert findings["torch_npu"]["found"] == "2.13.0"


def test_wrong_bytes_are_noticed():
    told = run(TORCH_LLM_DATADIST_EMULATE_FAULTS="flip_byte direction=d2d; flip_byte direction=peer")
    assert told.returncode == 1
    assert "broken  a transfer" in told.stdout
    assert "a push arrived with wrong bytes" in told.stdout


def test_memory_that_processes_cannot_share_is_told():
    """As where the kernel hides them from each other. Instances of one process import nothing."""
    told = run(TORCH_LLM_DATADIST_EMULATE_FAULTS="fail aclrtIpcMemImportByKey code=507022 times=0")
    assert told.returncode == 1
    assert "broken  a transfer" in told.stdout
    assert "linking two processes of this machine failed" in told.stdout


def test_what_the_receiving_process_died_of_is_told():
    told = run(TORCH_LLM_DATADIST_EMULATE_FAULTS="lose_device device=7")  # the receiver's
    assert told.returncode == 1
    assert "device 7 is lost" in told.stdout
    assert "the receiving process ended, status 1" in told.stdout


# In a process of its own: it starts another one from its main module.
WITHOUT_PATIENCE = """
import multiprocessing, sys
from torch_llm_datadist.doctor import trial
trial._ANSWERS_WITHIN_S = 0.01
status = trial.main()
print(multiprocessing.active_children())
sys.exit(status)
"""


def test_receiving_process_that_hangs_is_told_and_ended():
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_PATIENCE], capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 1
    assert "the receiving process says nothing for 0.01 s" in told.stderr
    assert told.stdout == "[]\n"


# Starts a process that holds its output open, tells of it, and hangs.
HANGS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(60)
"""


def test_device_that_hangs_is_told_in_time_and_nothing_is_left(monkeypatch, tmp_path):
    pid_file = tmp_path / "pid"
    monkeypatch.setattr(device, "_COMMAND", (sys.executable, "-c", HANGS, str(pid_file)))
    found = only(device.examine(8.0), "a transfer")
    assert (found.state, found.found) == (State.BROKEN, "nothing after 8 s")
    child = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while start_time_of(child) is not None:
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["torch_npu", "msgspec"])
def test_missing_package_is_named_with_its_version(monkeypatch, name):
    really = packages.metadata.version

    def version(asked: str) -> str:
        if asked == name:
            raise packages.metadata.PackageNotFoundError(name)
        return really(asked)

    monkeypatch.setattr(packages.metadata, "version", version)
    found = only(packages.examine(), name)
    assert (found.state, found.found) == (State.BROKEN, "not installed")
    assert found.advice.startswith(f"pip install {name}")


def test_core_for_another_torch_npu_is_told(monkeypatch):
    monkeypatch.setattr("torch_llm_datadist._built_for.TORCH_NPU", "2.12.0")
    found = only(packages.examine(), "native core")
    assert found.state is State.BROKEN
    assert "built for torch_npu 2.12.0, and torch_npu 2.13.0 is installed" in found.found


@pytest.fixture
def real_npu(monkeypatch, tmp_path) -> Path:
    """A machine with a driver and two devices, as far as its files say."""
    monkeypatch.setattr(emulator, "is_enabled", lambda: False)
    for index in range(2):
        (tmp_path / f"davinci{index}").touch()
    (tmp_path / "version.info").write_text("Version=25.5.0\n")
    (tmp_path / "hccn.conf").write_text("address_0=29.1.0.1\nnetmask_0=255.0.0.0\naddress_1=29.1.0.2\n")
    monkeypatch.setattr(machine, "DEVICES", str(tmp_path / "davinci[0-9]*"))
    monkeypatch.setattr(machine, "DRIVER_VERSION", tmp_path / "version.info")
    monkeypatch.setattr(machine, "NETWORK_CONFIG", tmp_path / "hccn.conf")
    return tmp_path


def test_driver_and_device_network_are_read(real_npu):
    assert only(machine.examine(None), "driver").found == "25.5.0; 2 devices"
    assert only(machine.examine(None), "device network").found == "npu 0 29.1.0.1, npu 1 29.1.0.2"


def test_device_without_access_is_named(real_npu, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: not path.endswith("davinci1"))
    found = only(machine.examine(None), "driver")
    assert (found.state, found.found) == (State.BROKEN, f"no access to {real_npu}/davinci1")


def test_machine_without_driver_or_network_file_is_told(real_npu):
    for file in real_npu.iterdir():
        file.unlink()
    assert only(machine.examine(None), "driver").state is State.BROKEN
    assert only(machine.examine(None), "device network").state is State.NOTE


@pytest.mark.parametrize(("given", "state"), [("32768 60999", State.OK), ("1024 65535", State.NOTE)])
def test_ports_that_the_kernel_gives_away_are_told(monkeypatch, tmp_path, given, state):
    (tmp_path / "range").write_text(given)
    monkeypatch.setattr(machine, "EPHEMERAL_PORTS", tmp_path / "range")
    assert only(machine.examine(None), "ports of two-sided links").state is state


def test_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = only(machine.examine(("127.0.0.1", port)), "listening")
    assert (found.state, found.found) == (State.BROKEN, f"127.0.0.1:{port}: Address already in use")


@pytest.mark.parametrize(
    ("why_no_nixl", "soft", "state"),
    [
        ("not installed", 4095, State.NOTE),
        ("not installed", 4096, State.OK),
        ("", 4096, State.NOTE),
        ("", 8192, State.OK),
    ],
)
def test_few_open_files_are_told(monkeypatch, why_no_nixl, soft, state):
    limits = {resource.RLIMIT_NOFILE: (soft, 1 << 20), resource.RLIMIT_MEMLOCK: (1 << 20, 1 << 20)}
    monkeypatch.setattr(machine.resource, "getrlimit", limits.get)
    why_not = {"hixl": "", "nixl": why_no_nixl}
    monkeypatch.setattr(networks.transports, "offered", lambda native, wanted: why_not)
    found = only(machine.examine(None), "open files")
    assert found.state is state
    if state is State.NOTE:
        assert ("each over NIXL" in found.advice) == (not why_no_nixl)


def use_loopback(state: SimpleNamespace) -> None:
    """However many interfaces the machine has, at each of which UCX would listen."""
    os.environ["UCX_NET_DEVICES"] = "lo"


def open_files(state: SimpleNamespace) -> int:
    """Once it stays the same: HIXL has more while it connects, which is after the link was made."""
    deadline, seen = time.monotonic() + 20, [-1]
    while len(set(seen[-5:])) > 1 or len(seen) < 6:
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
        seen.append(len(os.listdir("/proc/self/fd")))
    return seen[-1]


@pytest.mark.parametrize(
    ("transport", "most"),
    [
        ("mapped", machine._FILES_PER_LINK),
        ("hixl", machine._FILES_PER_LINK),
        ("nixl", machine._FILES_PER_NIXL_LINK),
    ],
)
def test_a_link_opens_no_more_files_than_are_told(peers, transport, most):
    """But for the first, with which an engine opens some for all."""
    if transport == "nixl" and nixl_library()[1]:
        pytest.skip(nixl_library()[1])
    hub, *others = all_of_them = peers(4)
    for each in all_of_them:
        each.call(use_loopback)
    hub.call(instances.start, 1, 0, {"transport": transport})
    counts = []
    for cluster_id, other in enumerate(others, 2):
        port = other.call(instances.start, cluster_id, 0, {"transport": transport})
        assert hub.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
        other.call(instances.wait_linked, 1)
        counts.append(hub.call(open_files))
    assert most < counts[2] - counts[0] <= 2 * most


def test_forbidden_tracing_is_told(monkeypatch, tmp_path):
    (tmp_path / "scope").write_text("1\n")
    monkeypatch.setattr(machine, "PTRACE_SCOPE", tmp_path / "scope")
    found = only(machine.examine(None), "host tensors as caches")
    assert found.state is State.NOTE
    assert "ptrace_scope is 1" in found.found


def test_nixl_that_is_missing_is_told_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr(transports, "_NIXL", "a-package-that-nobody-has")
    found = only(networks.examine(), "NIXL")
    assert found.state is State.NOTE
    assert found.found.startswith("a-package-that-nobody-has is not installed")
    assert "torch_llm_datadist[nixl]" in found.advice


def test_nixl_of_another_version_is_told_as_a_link_would(monkeypatch):
    really = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.6.0" if "nixl" in name else really(name))
    monkeypatch.setattr(metadata, "files", lambda name: [])
    found = only(networks.examine(), "NIXL")
    assert (found.state, found.found) == (State.NOTE, transports.offered(_native.load(), "")["nixl"])
    assert "1.6.0, and 1.5.1 was expected" in found.found


# In a process of its own: a library that could be loaded once stays.
WITH_OTHER_LIBRARIES = """
import json, sys
import msgspec
from torch_llm_datadist import emulator
emulator.enable()
from torch_llm_datadist import _native, transports
from torch_llm_datadist.doctor import networks
from torch_llm_datadist.identity import own_identity
for library in sys.argv[1:]:
    transports.nixl_library = lambda: (library, "")
    mine = {**transports.offered(_native.load(), ""), "hixl": "there is none"}
    here = own_identity(1, 0, remote_accessible=True, cann="", transports=mine)
    there = msgspec.structs.replace(here, cluster_id=2, host="elsewhere", super_pod=9)
    choice = transports.choose(here, there)
    (found,) = (found for found in networks.examine() if found.name == "NIXL")
    print(json.dumps([choice.name, choice.passed_over, found.state, found.found]))
"""


def test_nixl_that_cannot_be_loaded_is_passed_over_by_name():
    why_not = {
        str(libraries.hixl_path()): "has no nixl_capi_create_configured_agent",
        "/nowhere/libnixl_capi.so": "NIXL cannot be loaded: /nowhere/libnixl_capi.so",
        "/nowhere/" + 3000 * "x": "NIXL cannot be loaded: /nowhere/x",
    }
    command = [sys.executable, "-c", WITH_OTHER_LIBRARIES, *why_not]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    for line, why in zip(told.stdout.splitlines(), why_not.values(), strict=True):
        name, passed_over, state, found = json.loads(line)
        assert name == ""
        assert "nixl: cluster 1: NIXL " in passed_over
        assert why in passed_over
        assert why in found
        assert state == "note"
        assert len(found) <= transports.MOST_CHARACTERS


def test_rdma_devices_and_their_states_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "RDMA_DEVICES", tmp_path)
    assert only(networks.examine(), "RDMA devices").state is State.NOTE
    for nic, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        (tmp_path / nic / "ports" / "1").mkdir(parents=True)
        (tmp_path / nic / "ports" / "1" / "state").write_text(state + "\n")
    limits = {resource.RLIMIT_MEMLOCK: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}
    monkeypatch.setattr(networks.resource, "getrlimit", limits.get)
    found = only(networks.examine(), "RDMA devices")
    assert (found.state, found.found) == (State.OK, "mlx5_0 (ACTIVE), mlx5_1 (DOWN)")

    limits[resource.RLIMIT_MEMLOCK] = (8 << 20, 8 << 20)
    found = only(networks.examine(), "RDMA devices")
    assert (found.state, found.found) == (
        State.NOTE,
        "mlx5_0 (ACTIVE), mlx5_1 (DOWN); 8192 KiB may be locked",
    )
    assert "ulimit -l unlimited" in found.advice


@pytest.mark.parametrize(("free", "state"), [(63, State.NOTE), (300, State.OK)])
def test_little_room_for_files_in_memory_is_told(monkeypatch, free, state):
    about = SimpleNamespace(f_frsize=4096, f_blocks=400 << 8, f_bavail=free << 8)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: about)
    found = only(machine.examine(None), "/dev/shm")
    assert (found.state, found.found) == (state, f"{free} of 400 MiB are free")


@pytest.mark.parametrize(("control", "state"), [("bbr", State.NOTE), ("cubic", State.OK)])
def test_tcp_that_paces_is_told(monkeypatch, tmp_path, control, state):
    (tmp_path / "control").write_text(control + "\n")
    monkeypatch.setattr(networks, "CONGESTION_CONTROL", tmp_path / "control")
    found = only(networks.examine(), "TCP")
    assert found.state is state
    assert control in found.found


def test_hixl_that_cann_lacks_is_told(monkeypatch):
    """As an instance would say that passes it over."""
    why_not = {"hixl": "libcann_hixl.so: cannot open shared object file", "nixl": ""}
    monkeypatch.setattr(networks.transports, "offered", lambda native, wanted: why_not)
    found = only(networks.examine(), "HIXL")
    assert found.state is State.NOTE
    assert found.found == why_not["hixl"]
    assert "set_env.sh" in found.advice


def test_listener_of_an_instance_is_recognised():
    config = datadist.LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    instance = datadist.LLMDataDist(datadist.LLMRole.MIX, 4)
    instance.init(config.generate_options())
    try:
        found = list(peer.examine("127.0.0.1", instance.listen_port))
    finally:
        instance.finalize()
    assert [each.state for each in found] == [State.OK] * 3
    assert "mechanism NULL: links need no secret" in found[1].found
    assert f"cluster 4, pid {os.getpid()} of this host, would link over mapped" in found[2].found


def test_address_where_nobody_listens_is_broken():
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    (found,) = peer.examine("127.0.0.1", port)
    assert (found.state, found.found) == (State.BROKEN, f"127.0.0.1:{port}: Connection refused")


def test_other_program_at_that_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        found = list(peer.examine("127.0.0.1", other.getsockname()[1]))
        thread.join()
    assert found[-1].state is State.BROKEN
    assert "is no instance's listener" in found[-1].found


def test_broken_machine_is_not_tried_at_work(monkeypatch):
    monkeypatch.setattr(device, "examine", lambda timeout_s: pytest.fail("a transfer was tried"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        findings = doctor.examine(listen=taken.getsockname())
    assert findings[-1].state is not State.OK or any(f.state is State.BROKEN for f in findings)


def test_address_is_checked():
    told = run("--peer", "nowhere")
    assert told.returncode == 2
    assert "'nowhere'" in told.stderr
