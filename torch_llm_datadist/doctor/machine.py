"""The host: driver, CANN, addresses, ports, limits, and what the kernel allows."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from torch_llm_datadist import emulator
from torch_llm_datadist.cluster import endpoint
from torch_llm_datadist.doctor import networks
from torch_llm_datadist.doctor.finding import Finding, broken, note, ok
from torch_llm_datadist.identity import host_id
from torch_llm_datadist.rank_table import DEFAULT_PORT

DEVICES = "/dev/davinci[0-9]*"
DRIVER_VERSION = Path("/usr/local/Ascend/driver/version.info")
TOOLKIT_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
NETWORK_CONFIG = Path("/etc/hccn.conf")
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
FILES_IN_MEMORY = Path("/dev/shm")
_LEAST_IN_MEMORY = 256 << 20
_MORE_FILES_IN_MEMORY = (
    "NIXL between processes of one host goes through it: a container's --shm-size, or UCX_TLS=tcp,self"
)
_MOST_DEVICES = 16
# Sockets and descriptors of a link, as counted (docs/limits.md): UCX has its own for each link over NIXL.
_FILES_PER_LINK = 8
_FILES_PER_NIXL_LINK = 15
_LINKS = 512


def examine(listen: tuple[str, int] | None) -> Iterator[Finding]:
    if emulator.is_enabled():
        yield note(
            "NPU",
            "none is used: emulated on this machine's CPU",
            "to try and to test with; speeds mean nothing",
        )
    else:
        yield _driver()
        yield _cann()
        yield _device_network()
    yield ok("host identity", f"{host_id()}; only processes with the same one map each other's memory")
    yield _meeting_ports()
    if listen is not None:
        yield _listening(*listen)
    yield _open_files()
    yield _shared_memory()
    yield _files_in_memory()
    yield _tracing()


def _driver() -> Finding:
    name = "driver"
    devices = sorted(glob.glob(DEVICES))
    if not devices:
        return broken(name, f"no {DEVICES}", "install the Ascend driver, or give the container its devices")
    closed = [device for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        return broken(
            name, f"no access to {', '.join(closed)}", "add the user to the group that owns them (HwHiAiUser)"
        )
    version = _first(r"^Version=(.*)$", DRIVER_VERSION)
    return ok(name, f"{version or 'version not told'}; {len(devices)} devices")


def _cann() -> Finding:
    name = "CANN"
    home = next((os.environ[v] for v in TOOLKIT_VARIABLES if os.environ.get(v)), None)
    try:
        ctypes.CDLL("libascendcl.so")
    except OSError as error:
        return broken(name, str(error), "source set_env.sh of the CANN toolkit before Python starts")
    if home is None:
        return note(name, "loaded; no toolkit in the environment", f"set {TOOLKIT_VARIABLES[0]}")
    return ok(name, home)


def _device_network() -> Finding:
    name = "device network"
    addresses = re.findall(r"^address_(\d+)=(\S+)", _read(NETWORK_CONFIG), re.MULTILINE)
    if not addresses:
        return note(
            name,
            f"no addresses in {NETWORK_CONFIG}",
            "needed between hosts only; a container wants it mapped",
        )
    return ok(name, ", ".join(f"npu {index} {address}" for index, address in addresses))


def _meeting_ports() -> Finding:
    name = "ports of two-sided links"
    first, last = DEFAULT_PORT, DEFAULT_PORT + _MOST_DEVICES - 1
    low, high = (int(bound) for bound in (_read(EPHEMERAL_PORTS) or "32768 60999").split())
    found = f"{first} and the device id, up to {last}"
    if low <= last and first <= high:
        return note(
            name,
            f"{found}; the kernel gives ports {low} to {high} to anybody",
            "set net.ipv4.ip_local_reserved_ports, or another base: TORCH_LLM_DATADIST_LINK_PORT",
        )
    return ok(name, found)


def _listening(ip: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ip, port))
        except OSError as error:
            return broken(
                "listening",
                f"{endpoint(ip, port)}: {error.strerror}",
                "take a free port of this host",
            )
    return ok("listening", f"{endpoint(ip, port)} is free")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    over_nixl = not networks.why_no_engine()["nixl"]
    per_link = _FILES_PER_NIXL_LINK if over_nixl else _FILES_PER_LINK
    needed = per_link * _LINKS
    if soft != resource.RLIM_INFINITY and soft < needed:
        return note(
            "open files",
            f"{soft} per process, {hard} at most",
            f"`ulimit -n {needed}` for up to {_LINKS} links; about {per_link} are used by each"
            + (" over NIXL" if over_nixl else ""),
        )
    return ok("open files", f"{soft} per process")


def _shared_memory() -> Finding:
    name = "shared host memory"
    try:
        os.close(os.memfd_create("doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return broken(name, f"memfd_create: {error.strerror}", "allow it in the container's seccomp profile")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    amount = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked >> 10} KiB"
    return ok(name, f"memory files work; {amount} may be locked")


def _files_in_memory() -> Finding:
    name = str(FILES_IN_MEMORY)
    try:
        about = os.statvfs(FILES_IN_MEMORY)
    except OSError as error:
        return note(name, error.strerror or str(error), _MORE_FILES_IN_MEMORY)
    size, free = (blocks * about.f_frsize for blocks in (about.f_blocks, about.f_bavail))
    found = f"{free >> 20} of {size >> 20} MiB are free"
    return ok(name, found) if free >= _LEAST_IN_MEMORY else note(name, found, _MORE_FILES_IN_MEMORY)


def _tracing() -> Finding:
    name = "host tensors as caches"
    scope = _read(PTRACE_SCOPE).strip() or "0"
    if scope != "0":
        return note(
            name,
            f"kernel.yama.ptrace_scope is {scope}: peers cannot reach CPU tensors of yours",
            "set it to 0, or allocate caches from host_mem_pool_cfg",
        )
    return ok(name, "peers of the same user can reach CPU tensors of yours")


def _first(pattern: str, path: Path) -> str:
    found = re.search(pattern, _read(path), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
