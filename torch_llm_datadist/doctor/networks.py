"""What links between hosts need: CANN's HIXL, NIXL, and the network devices. Nothing is loaded."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from torch_llm_datadist import emulator
from torch_llm_datadist.doctor.finding import Finding, note, ok
from torch_llm_datadist.emulator import libraries

NIXL = "nixl-cu12"
RDMA_DEVICES = Path("/sys/class/infiniband")
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_HIXL = "cann_hixl"
_ONLY_BETWEEN_HOSTS = "needed between hosts only"


def examine() -> Iterator[Finding]:
    yield _hixl()
    yield _nixl()
    yield _rdma_devices()
    yield _tcp()


def _hixl() -> Finding:
    name = "HIXL"
    if emulator.is_enabled():
        path = libraries.hixl_path()
        return ok(name, str(path)) if path.exists() else note(name, f"{path} is missing", "run `make build`")
    found = ctypes.util.find_library(_HIXL)
    if found is None:
        return note(
            name,
            f"CANN has no lib{_HIXL}.so on the library path",
            f"{_ONLY_BETWEEN_HOSTS}: install a CANN that has it, and source its set_env.sh",
        )
    return ok(name, found)


def _nixl() -> Finding:
    name = "NIXL"
    try:
        version, files = metadata.version(NIXL), metadata.files(NIXL) or []
    except metadata.PackageNotFoundError:
        return note(
            name,
            f"{NIXL} is not installed",
            f"{_ONLY_BETWEEN_HOSTS} where HIXL does not reach: pip install 'torch_llm_datadist[nixl]'",
        )
    found = [str(file.locate()) for file in files if file.name == "libnixl_capi.so"]
    if not found:
        return note(
            name, f"{NIXL} {version} has no libnixl_capi.so", "install the version of the extra `nixl`"
        )
    return ok(name, f"{version}, {found[0]}")


def _rdma_devices() -> Finding:
    name = "RDMA devices"
    try:
        devices = sorted(device.name for device in RDMA_DEVICES.iterdir())
    except OSError:
        devices = []
    if not devices:
        return note(
            name,
            f"none in {RDMA_DEVICES}; the host's own network is TCP",
            "NIXL goes over TCP then; the NPUs' RoCE ports are not among them (hccn.conf has those)",
        )
    return ok(name, ", ".join(f"{device} ({_state(device)})" for device in devices))


def _state(device: str) -> str:
    states = sorted((RDMA_DEVICES / device / "ports").glob("*/state"))
    return ", ".join(_read(state).partition(":")[2].strip() or "unknown" for state in states) or "no port"


def _tcp() -> Finding:
    name = "TCP"
    control = _read(CONGESTION_CONTROL).strip() or "unknown"
    if control == "bbr":
        return note(
            name,
            "congestion control is bbr, which paces even a link within a host: 2 to 3 times slower",
            "set net.ipv4.tcp_congestion_control to cubic on these hosts",
        )
    return ok(name, f"congestion control is {control}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
