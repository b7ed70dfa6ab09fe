"""What links between hosts need: CANN's HIXL and NIXL, as an instance would find them, and the network
devices.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from torch_llm_datadist import _native, emulator, transports
from torch_llm_datadist.doctor.finding import Finding, note, ok
from torch_llm_datadist.emulator import libraries

RDMA_DEVICES = Path("/sys/class/infiniband")
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_ONLY_BETWEEN_HOSTS = "needed between hosts only"


def examine() -> Iterator[Finding]:
    why_not = why_no_engine()
    yield _hixl(why_not["hixl"])
    yield _nixl(why_not["nixl"])
    yield _rdma_devices()
    yield _tcp()


def why_no_engine() -> dict[str, str]:
    """Of "hixl" and "nixl", among others, why an instance has no link over it; "" where it may."""
    try:
        return transports.offered(_native.load(), "")
    except Exception as error:
        unknown = f"not known without the native core: {str(error).splitlines()[0]}"
        return {"hixl": unknown, "nixl": unknown}


def _hixl(why_not: str) -> Finding:
    name = "HIXL"
    if why_not:
        return note(
            name,
            why_not,
            f"{_ONLY_BETWEEN_HOSTS}: install a CANN that has it, and source its set_env.sh",
        )
    return ok(name, str(libraries.hixl_path()) if emulator.is_enabled() else "CANN's libcann_hixl.so, loaded")


def _nixl(why_not: str) -> Finding:
    name = "NIXL"
    if why_not:
        return note(
            name,
            why_not,
            f"{_ONLY_BETWEEN_HOSTS} where HIXL does not reach: pip install 'torch_llm_datadist[nixl]'",
        )
    return ok(name, f"{transports.NIXL_VERSION}, {transports.nixl_library()[0]}, loaded")


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
    found = ", ".join(f"{device} ({_state(device)})" for device in devices)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY:
        return note(
            name,
            f"{found}; {locked >> 10} KiB may be locked",
            "`ulimit -l unlimited`, in containers too: RDMA locks all memory that it reaches",
        )
    return ok(name, found)


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
