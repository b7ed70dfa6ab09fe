"""Who an instance is, and whether two instances can be linked."""

from __future__ import annotations

import os
import secrets
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from . import transports
from .errors import LLMStatusCode
from .messages import coded

PROTOCOL_VERSION = 8
HOST_ID_VARIABLE = "TORCH_LLM_DATADIST_HOST_ID"
_START_TIME_FIELD = 22  # of /proc/<pid>/stat, counted from 1

Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Reason: TypeAlias = Annotated[str, Meta(max_length=transports.MOST_CHARACTERS)]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance tells a peer about itself before either exports any memory.

    Attributes:
        instance: random, one per ``init``; tells a restarted instance from its predecessor.
        remote_accessible: remote-accessible mode.
        authenticated: links need a shared secret.
        host: one kernel and one pid namespace: processes with the same one can map each other's memory.
        start_time: of the process, in clock ticks since boot; with the pid it names a process for good.
        device: device number as the process sees it.
        super_pod: number of the SuperPod that the device is part of; -1: its driver does not tell.
        transports: by name, why a link of this instance cannot use it; "" where it can.
    """

    cluster_id: Natural
    instance: Natural
    remote_accessible: bool
    authenticated: bool
    host: Name
    pid: Natural
    start_time: Natural
    device: Natural
    package: Name = ""
    torch: Name = ""
    torch_npu: Name = ""
    cann: Name = ""
    super_pod: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    transports: Annotated[dict[Name, Reason], Meta(max_length=16)] = msgspec.field(
        default_factory=lambda: {"mapped": ""}
    )

    def is_in_this_process(self) -> bool:
        # It is asked for each tensor of each peer: the last two read files.
        return (
            self.pid == os.getpid()
            and self.host == host_id()
            and self.start_time == start_time_of(os.getpid())
        )

    def is_gone(self) -> bool:
        """The process has certainly ended. False where that cannot be known."""
        return self.host == host_id() and start_time_of(self.pid) != self.start_time


def own_identity(
    cluster_id: int,
    device: int,
    *,
    remote_accessible: bool,
    cann: str,
    authenticated: bool = False,
    transports: dict[str, str] | None = None,
    super_pod: int = -1,
) -> Identity:
    return Identity(
        cluster_id=cluster_id,
        instance=secrets.randbits(63),
        remote_accessible=remote_accessible,
        authenticated=authenticated,
        host=host_id(),
        pid=os.getpid(),
        start_time=start_time_of(os.getpid()) or 0,
        device=device,
        package=_version("torch_llm_datadist"),
        torch=_version("torch"),
        torch_npu=_version("torch_npu"),
        cann=cann,
        transports={"mapped": ""} if transports is None else transports,
        super_pod=super_pod,
    )


def host_id() -> str:
    """Boot id and pid namespace; ``TORCH_LLM_DATADIST_HOST_ID`` adds to it, to play several hosts on one."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    played = os.environ.get(HOST_ID_VARIABLE)
    return f"{boot}/{namespace}" + (f"/{played}" if played else "")


def start_time_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None when there is no such process (zombies
    count).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, field 2, is in parentheses and may hold anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in ("Z", "X"):
        return None
    return int(fields[_START_TIME_FIELD - 3])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


class Refusal(msgspec.Struct, frozen=True):
    """Why two instances are not linked."""

    code: LLMStatusCode
    reason: str


def why_not_link(own: Identity, peer: Identity) -> Refusal | None:
    """What is fatal to a link between the two, or None."""
    if peer.cluster_id == own.cluster_id:
        return Refusal(*coded("cluster_ids_are_the_same", value=own.cluster_id))
    if peer.remote_accessible != own.remote_accessible:
        return Refusal(
            *coded(
                "access_differs",
                value=own.remote_accessible,
                cluster_id=own.cluster_id,
                found=peer.remote_accessible,
                peer=peer.cluster_id,
            )
        )
    if peer.authenticated != own.authenticated:
        return Refusal(
            *coded(
                "authentication_differs",
                value="on" if own.authenticated else "off",
                cluster_id=own.cluster_id,
                found="on" if peer.authenticated else "off",
                peer=peer.cluster_id,
            )
        )
    choice = transports.choose(own, peer)
    if not choice.name:
        return Refusal(
            *coded("no_transport_reaches", own=own.cluster_id, value=peer.cluster_id, why=choice.passed_over)
        )
    return None


def may_share_super_pod(own: Identity, peer: Identity) -> bool:
    """Their devices may map each other's memory over the SuperPod's fabric. A driver that does not tell its
    SuperPod says the same as one that has none.
    """
    return own.super_pod == peer.super_pod or -1 in (own.super_pod, peer.super_pod)


def different_versions(own: Identity, peer: Identity) -> str:
    """The versions in which the two differ, as one line; empty when they agree. Not fatal to a link."""
    return ", ".join(
        f"{name} {getattr(own, name) or 'unknown'} here and {getattr(peer, name) or 'unknown'} there"
        for name in ("package", "torch", "torch_npu", "cann")
        if getattr(own, name) != getattr(peer, name)
    )


def why_not_protocol(version: int) -> Refusal:
    return Refusal(*coded("protocols_differ", value=PROTOCOL_VERSION, found=version))
