"""Which transport a link takes. Both ends find the same one, from what each says of itself in the handshake.

The first that both have and that reaches from one to the other is taken:

==========  ===========================================================================================
mapped      the peer's memory is mapped: processes of one host
fabric      the same by fabric handles: hosts of one SuperPod (Atlas A3), caches of ``mem_pool_cfg``
hixl        CANN's engine between NPUs of different hosts
nixl        NIXL: any network; device memory goes through page-locked buffers (extra ``nixl``)
loopback    one host, through the kernel; only when both ends ask for it: it is there for tests
==========  ===========================================================================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .errors import LLMStatusCode
from .messages import refusal

if TYPE_CHECKING:
    from .identity import Identity

ORDER = ("mapped", "fabric", "hixl", "nixl", "loopback")
TRANSPORT_VARIABLE = "TORCH_LLM_DATADIST_TRANSPORT"
NIXL_VERSION = "1.5.1"
_NIXL = "nixl-cu12"
MOST_CHARACTERS = 1024  # of a reason, as it goes to a peer
_WITHIN_A_HOST = ("mapped", "loopback")
_ON_REQUEST = ("loopback",)


@dataclass(frozen=True)
class Choice:
    """
    Attributes:
        name: of the transport, or "" when there is none.
        passed_over: what was tried first, and why it was not taken: "mapped: …; hixl: …".
    """

    name: str
    passed_over: str
    code: LLMStatusCode = LLMStatusCode.LLM_SUCCESS


def offered(native: Any, wanted: str, why_no_fabric: str = "") -> dict[str, str]:
    """Of each transport why this instance cannot link with it; "" where it can.

    Args:
        wanted: the only one that may be taken; "" for any.
        why_no_fabric: of this instance's device and memory; "" where fabric handles can be had.
    """
    why_not = dict.fromkeys(ORDER, "it is not part of this build")
    why_not["mapped"] = ""
    why_not["fabric"] = why_no_fabric
    path, why_no_nixl = nixl_library()
    native.set_nixl_library(path)
    why_not.update(native.engines())
    why_not["nixl"] = why_no_nixl or why_not["nixl"]
    why_not = {name: why[:MOST_CHARACTERS] for name, why in why_not.items()}
    if wanted and wanted not in why_not:
        raise refusal("no_such_transport", value=repr(wanted), names=", ".join(ORDER))
    if wanted and why_not[wanted]:
        raise refusal("transport_is_not_here", value=repr(wanted), why=why_not[wanted])
    for name in why_not:
        if wanted and name != wanted:
            why_not[name] = f"this instance was told to use {wanted!r}"
        elif not wanted and name in _ON_REQUEST and not why_not[name]:
            why_not[name] = "it is taken on request only"
    return why_not


def nixl_library() -> tuple[str, str]:
    """Where the extra's wheel has its C interface, and why it cannot be used. Nothing is imported."""
    try:
        version, files = metadata.version(_NIXL), metadata.files(_NIXL) or []
    except metadata.PackageNotFoundError:
        return "", f"{_NIXL} is not installed (pip install 'torch_llm_datadist[nixl]')"
    if version != NIXL_VERSION:
        return "", f"{_NIXL} is {version}, and {NIXL_VERSION} was expected: its C interface has no version"
    found = [str(file.locate()) for file in files if file.name == "libnixl_capi.so"]
    return (found[0], "") if found else ("", f"{_NIXL} {version} has no libnixl_capi.so")


def wanted_by_environment() -> str:
    return os.environ.get(TRANSPORT_VARIABLE, "")


def choose(own: Identity, peer: Identity) -> Choice:
    """What a link between the two takes; the same at either end."""
    passed_over: list[str] = []
    for name in ORDER:
        why = _why_not(name, own, peer)
        if why is None:
            return Choice(name, "; ".join(passed_over))
        passed_over.append(f"{name}: {why}")
    return Choice("", "; ".join(passed_over), LLMStatusCode.LLM_LINK_FAILED)


def _why_not(name: str, own: Identity, peer: Identity) -> str | None:
    lower, higher = sorted((own, peer), key=lambda one: one.cluster_id)
    for identity in (lower, higher):
        why = identity.transports.get(name, "it is not known there")
        if why:
            return f"cluster {identity.cluster_id}: {why}"
    if name == "fabric":
        return _why_not_one_super_pod(lower, higher)
    if name in _WITHIN_A_HOST and own.host != peer.host:
        return f"different hosts, or pid namespaces ({lower.host} and {higher.host})"
    return None


def _why_not_one_super_pod(lower: Identity, higher: Identity) -> str | None:
    untold = [identity for identity in (lower, higher) if identity.super_pod < 0]
    if not untold:
        is_one = lower.super_pod == higher.super_pod
        return None if is_one else f"different SuperPods ({lower.super_pod} and {higher.super_pod})"
    if any(_offers_only("fabric", identity) for identity in (lower, higher)):
        return None
    # Two hosts that stand alone say the same, and neither could import what the other exports.
    return (
        f"cluster {untold[0].cluster_id}: its driver does not tell its SuperPod "
        "(transport='fabric' takes it all the same)"
    )


def _offers_only(name: str, identity: Identity) -> bool:
    """It was told to use it: otherwise it offers ``mapped``, too."""
    return all(why for other, why in identity.transports.items() if other != name)
