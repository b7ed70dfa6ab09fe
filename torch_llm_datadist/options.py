"""The option dictionary of ``LLMDataDist.init``, read and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from . import checks
from .cluster import parse_endpoint
from .comm_resource import check_comm_resource
from .config import OWN_PREFIX
from .link_secret import SECRET_VARIABLE, SecretText, checked_secret
from .memory_pool import DEFAULT_PAGE_SHIFT, PoolConfig, read_pool_config
from .messages import refusal
from .transports import wanted_by_environment

DEFAULT_SYNC_KV_TIMEOUT_MS = 1000
DEFAULT_LINK_TOTAL_TIME_S = 120
FLOW_GRAPH_MEMORY = "ge.flowGraphMemMaxSize"

BACKEND = "llm.TransferBackend"
LINK_SECRET = OWN_PREFIX + "LinkSecret"
LINK_TIME_VARIABLE = "HCCL_CONNECT_TIMEOUT"
# What HIXL is told, by the names that it has for it.
_OF_HIXL = {
    "llm.GlobalResourceConfig": "GlobalResourceConfig",
    "llm.LocalCommRes": "LocalCommRes",
    "llm.RdmaTrafficClass": "RdmaTrafficClass",
    "llm.RdmaServiceLevel": "RdmaServiceLevel",
}


@dataclass(frozen=True)
class Options:
    """What an instance is made with.

    Attributes:
        listen: (ip, port) to listen at, or None for an instance that only links to others.
        remote_accessible: remote-accessible mode.
        needs_local_ip: ``link_clusters`` wants the own address in each entry (``local_comm_res`` is empty or
            not set).
        mem_pool, host_mem_pool: the pools that ``allocate_*`` serves from, on the device and on the host.
        sync_kv_timeout_ms: limit of one blocking push or pull.
        streams_per_link, stream_budget, stream_idle_ms, staging_limit, close_timeout_ms: what links may
            take, see ``LLMConfig``.
        hixl_options: what links over HIXL hand to it, by its own names.
        register_timeout_ms: limit of what ``register_*`` waits for.
        stream_timeout_ms: limit of what a blocking transfer waits for before it begins.
        link_total_time_s: limit of a two-sided link.
        is_older_api: ``kv_cache_manager`` in place of ``cache_manager``.
        enable_switch_role: of the older API, which needs it.
        verify_blocks: what transfers copied is compared, by the receiver of a ticket that verifies, too.
        link_secret: what peers must know to link; None lets everyone link.
        link_port: base of the ports at which members of two-sided links meet; None: the environment says.
    """

    device: int
    listen: tuple[str, int] | None
    remote_accessible: bool
    needs_local_ip: bool
    sync_kv_timeout_ms: int
    keep_alive_ms: int
    mem_pool: PoolConfig | None
    host_mem_pool: PoolConfig | None
    max_in_flight: int
    packed_staging_bytes: int
    streams_per_link: int
    stream_budget: int
    stream_idle_ms: int
    staging_limit: int
    close_timeout_ms: int
    register_timeout_ms: int
    stream_timeout_ms: int
    is_hixl: bool
    transport: str
    engine_chunk_bytes: int
    engine_chunks: int
    hixl_options: dict[str, str]
    transfer_workers: int
    link_total_time_s: float
    link_port: int | None
    link_secret: SecretText | None
    verify_blocks: bool
    is_older_api: bool
    enable_switch_role: bool


def read_options(options: object) -> Options:
    """Raises as ``LLMDataDist.init`` says; in the order in which the original checks."""
    given = checks.instance("init: options", options, dict, what="a dict of str to str")
    _check_flow_graph_memory(given)
    for key, value in given.items():
        if key == LINK_SECRET:
            checked_secret("init: link_secret", value)
        if not isinstance(key, str) or not isinstance(value, str):
            raise refusal(
                "bad_type",
                name=f"init: option {key!r}",
                value=repr(value),
                expected="a str (LLMConfig spells True as '1')",
            )
    local_comm_res = given.get("llm.LocalCommRes")
    backend = given.get(BACKEND)
    implied = "0" if local_comm_res is None else "1"
    is_older_api = given.get("llm.EnableCacheManager", implied) != "1"
    if is_older_api and local_comm_res is not None:
        raise refusal("option_needs", name="enable_cache_manager", value="off", asks="local_comm_res")
    if backend is not None:
        _check_backend(given, is_older_api)
        implied = "1"
    listen = given.get("llm.listenIpInfo")
    device = _device(given)
    check_comm_resource("init: local_comm_res", local_comm_res or "", device)
    return Options(
        device=device,
        listen=parse_endpoint("init: listen_ip_info", listen) if listen is not None else None,
        remote_accessible=given.get("llm.EnableRemoteCacheAccessible", implied) == "1",
        needs_local_ip=not local_comm_res,
        sync_kv_timeout_ms=_number(
            given, "sync_kv_timeout", "llm.SyncKvCacheWaitTime", DEFAULT_SYNC_KV_TIMEOUT_MS, low=1
        ),
        keep_alive_ms=_number(given, "keep_alive_ms", OWN_PREFIX + "KeepAliveMs", 3000, low=1),
        mem_pool=_device_pool(given, is_older_api),
        host_mem_pool=read_pool_config("init: host_mem_pool_cfg", given.get("llm.HostMemPoolConfig")),
        max_in_flight=_number(given, "max_in_flight", OWN_PREFIX + "MaxInFlight", 256, low=1),
        packed_staging_bytes=_number(
            given, "packed_staging_bytes", OWN_PREFIX + "PackedStagingBytes", 64 << 20, low=2048
        ),
        streams_per_link=_number(given, "streams_per_link", OWN_PREFIX + "StreamsPerLink", 64, low=1),
        stream_budget=_number(given, "stream_budget", OWN_PREFIX + "StreamBudget", 1024, low=1),
        stream_idle_ms=_number(given, "stream_idle_ms", OWN_PREFIX + "StreamIdleMs", 5000, low=1),
        staging_limit=_number(
            given, "staging_limit", OWN_PREFIX + "StagingLimit", 1 << 30, low=1, high=2**40
        ),
        close_timeout_ms=_number(given, "close_timeout", OWN_PREFIX + "CloseTimeoutMs", 1000, low=1),
        register_timeout_ms=_number(
            given, "register_timeout", OWN_PREFIX + "RegisterTimeoutMs", 10000, low=1
        ),
        stream_timeout_ms=_number(given, "stream_timeout", OWN_PREFIX + "StreamTimeoutMs", 60_000, low=1),
        is_hixl=backend is not None,
        transport=backend or given.get(OWN_PREFIX + "Transport", "") or wanted_by_environment(),
        engine_chunk_bytes=_number(
            given, "engine_chunk_bytes", OWN_PREFIX + "EngineChunkBytes", 1 << 20, low=4096, high=1 << 30
        ),
        engine_chunks=_number(given, "engine_chunks", OWN_PREFIX + "EngineChunks", 8, low=2, high=64),
        hixl_options={name: given[key] for key, name in _OF_HIXL.items() if given.get(key)},
        transfer_workers=_number(given, "transfer_workers", OWN_PREFIX + "TransferWorkers", 16, low=1),
        link_total_time_s=_link_total_time(given),
        link_port=_number(given, "link_port", OWN_PREFIX + "LinkPort", 0, low=1, high=65535) or None,
        link_secret=_link_secret(given),
        verify_blocks=given.get(OWN_PREFIX + "VerifyBlocks") == "1",
        is_older_api=is_older_api,
        enable_switch_role=given.get("llm.EnableSwitchRole") == "1",
    )


def _check_backend(given: Mapping[str, str], is_older_api: bool) -> None:
    if is_older_api:
        raise refusal("option_needs", name="enable_cache_manager", value="off", asks="transfer_backend")
    if given.get("llm.EnableRemoteCacheAccessible", "1") != "1":
        raise refusal(
            "option_needs", name="enable_remote_cache_accessible", value="off", asks="transfer_backend"
        )
    if "llm.listenIpInfo" not in given:
        raise refusal("option_needs", name="listen_ip_info", value="not set", asks="transfer_backend")
    backend, transport = given[BACKEND], given.get(OWN_PREFIX + "Transport", "")
    if backend != "hixl":
        raise refusal("bad_value", name="init: transfer_backend", value=repr(backend), expected="'hixl'")
    if transport not in ("", backend):
        raise refusal("backend_and_transport", value=repr(transport))


def _check_flow_graph_memory(given: Mapping[object, object]) -> None:
    key = FLOW_GRAPH_MEMORY
    if key in given:
        value = checks.instance(f"init: option {key}", given[key], str)
        if checks.number_in(value) is None:
            expected = "one number of bytes"
            raise refusal(
                "bad_value", name=f"init: option {key}", value=checks.shown(value), expected=expected
            )


def _device_pool(given: Mapping[str, str], is_older_api: bool) -> PoolConfig | None:
    """The older API has its pool from the graph engine's memory."""
    pool = read_pool_config("init: mem_pool_cfg", given.get("llm.MemPoolConfig"))
    size = int(given.get(FLOW_GRAPH_MEMORY, "0"))
    return PoolConfig(size, DEFAULT_PAGE_SHIFT) if pool is None and is_older_api and size else pool


def _device(given: Mapping[str, str]) -> int:
    key = "ge.exec.deviceId"
    if ";" in given.get(key, ""):
        raise refusal(
            "bad_value", name="init: device_id", value=repr(given[key]), expected="one device per instance"
        )
    return _number(given, "device_id", key, 0, low=0)


def _link_secret(given: Mapping[str, str]) -> SecretText | None:
    if LINK_SECRET in given:
        return checked_secret("init: link_secret", given[LINK_SECRET])
    text = os.environ.get(SECRET_VARIABLE)
    return checked_secret(SECRET_VARIABLE, text) if text else None


def _link_total_time(given: Mapping[str, str]) -> int:
    """The option, in seconds; 0 leaves it to the variable of the original's transport, and that to 120."""
    seconds = _number(given, "link_total_time", "llm.LinkTotalTime", 0, low=0, high=2**32 - 1)
    by_environment = checks.number_in(os.environ.get(LINK_TIME_VARIABLE, ""))
    return seconds or by_environment or DEFAULT_LINK_TOTAL_TIME_S


def _number(
    given: Mapping[str, str],
    name: str,
    key: str,
    default: int,
    *,
    low: int,
    high: int = checks.INT32_MAX,
) -> int:
    text = given.get(key)
    if text is None:
        return default
    number = checks.number_in(text)
    if number is None or not low <= number <= high:
        raise refusal(
            "bad_value",
            name=f"init: {name} ({key})",
            value=checks.shown(text),
            expected=f"a number from {low} to {high}",
        )
    return number
