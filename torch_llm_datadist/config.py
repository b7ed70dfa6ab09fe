"""``LLMConfig``: typed properties that become the option dictionary of ``LLMDataDist.init``.

An option is one ``Option`` descriptor: its key, what it accepts, how it is spelled in the dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from . import checks
from . import option_checks as accept
from .link_secret import checked_secret

T = TypeVar("T")
OWN_PREFIX = "torch_llm_datadist."


class Option(Generic[T]):
    """A property of ``LLMConfig``. ``None`` unsets it: reading gives the default, and nothing is emitted.

    Args:
        key: key in the option dictionary.
        default: what reading gives before it was set.
        check: (name, value) → value; raises on a bad one.
        spell: value → text in the dictionary.
        drop: a value that is not emitted, although set.
    """

    def __init__(
        self,
        key: str,
        default: T,
        check: Callable[[str, Any], T],
        *,
        spell: Callable[[Any], str] = str,
        drop: object = None,
        doc: str = "",
    ) -> None:
        self.key, self.default, self.check, self.spell, self.drop = key, default, check, spell, drop
        self.__doc__ = f"{doc} Option ``{key}``."

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, config: None, owner: type) -> Option[T]: ...
    @overload
    def __get__(self, config: LLMConfig, owner: type) -> T: ...
    def __get__(self, config: LLMConfig | None, owner: type) -> Option[T] | T:
        if config is None:
            return self
        value: T = config._values.get(self.name, self.default)
        return value

    def __set__(self, config: LLMConfig, value: T | None) -> None:
        if value is None:
            config._values.pop(self.name, None)
        else:
            config._values[self.name] = self.check(f"LLMConfig: {self.name}", value)

    def emit(self, config: LLMConfig) -> dict[str, str]:
        value = config._values.get(self.name)
        if value is None or value == self.drop:
            return {}
        return {self.key: self.spell(value)}


def _flag(key: str, doc: str, drop: object = None) -> Option[bool]:
    return Option(key, False, checks.boolean, spell=accept.spell_bool, drop=drop, doc=doc)


def _json_option(key: str, doc: str, drop: object = "") -> Option[str]:
    return Option(key, "", accept.json_text, drop=drop, doc=doc)


class LLMConfig:
    """Builds the option dictionary of ``LLMDataDist.init``.

    >>> config = LLMConfig()
    >>> config.device_id = 0
    >>> config.enable_cache_manager = True
    >>> config.generate_options()["ge.exec.deviceId"]
    '0'

    Each option is a property; setting it checks the value. A wrong type raises ``TypeError``; a bad value
    ``LLMException`` (``LLM_PARAM_INVALID``); what no int32 (``rdma_*``: uint32) holds ``ValueError``.
    ``None`` unsets. A name that is no option raises ``AttributeError``.

    Source: manual page LLMConfig.
    """

    __slots__ = ("_emitted", "_options", "_values")

    device_id: Option[int | list[int] | tuple[int, ...] | None] = Option(
        "ge.exec.deviceId",
        None,
        accept.device_id,
        spell=lambda v: ";".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v),
        doc="The device of the instance: int32, or a list of one.",
    )
    sync_kv_timeout: Option[int | str | None] = Option(
        "llm.SyncKvCacheWaitTime",
        None,
        accept.positive_ms,
        doc="Milliseconds that one blocking push or pull may take; 1000 where it is not set.",
    )
    listen_ip_info: Option[str] = Option(
        "llm.listenIpInfo",
        "",
        accept.string,
        drop="",
        doc='Where this instance listens: "ip:port" or "[ipv6]:port"; port 0 lets the system choose.',
    )
    enable_cache_manager = _flag(
        "llm.EnableCacheManager", "Must be True, or be implied by ``local_comm_res``."
    )
    enable_remote_cache_accessible = _flag(
        "llm.EnableRemoteCacheAccessible", "Peers reach registered caches one-sidedly; pushing needs it."
    )
    mem_pool_cfg = _json_option("llm.MemPoolConfig", "JSON: the device memory pool.")
    host_mem_pool_cfg = _json_option("llm.HostMemPoolConfig", "JSON: the pinned host memory pool.")
    rdma_traffic_class: Option[int | None] = Option(
        "llm.RdmaTrafficClass",
        None,
        checks.uint32,
        doc="uint32; the RoCE traffic class, 0 to 255 in steps of 4.",
    )
    rdma_service_level: Option[int | None] = Option(
        "llm.RdmaServiceLevel", None, checks.uint32, doc="uint32; the RoCE service level, 0 to 7."
    )
    local_comm_res = _json_option(
        "llm.LocalCommRes",
        "JSON: the local device's part of a rank table, or an empty string. When set, even to an empty "
        "string, it turns the cache manager and remote-accessible mode on.",
        drop=None,
    )
    link_total_time: Option[int] = Option(
        "llm.LinkTotalTime",
        0,
        accept.in_range(0, 2**32 - 1),
        doc="Seconds for a two-sided link; 0: the default.",
    )
    link_retry_count: Option[int] = Option(
        "llm.LinkRetryCount", 1, accept.in_range(1, 100), doc="Attempts within ``link_total_time``."
    )
    transfer_backend: Option[str] = Option(
        "llm.TransferBackend", "", accept.string, doc='"hixl", or not set.'
    )
    global_resource_config = _json_option("llm.GlobalResourceConfig", "JSON for the hixl engine.", drop=None)
    deploy_res_path: Option[str] = Option(
        "llm.deployResPath",
        "",
        accept.string,
        drop="",
        doc="Used by nothing here; carried for older callers.",
    )
    enable_switch_role = _flag("llm.EnableSwitchRole", "``switch_role`` does not need it.", drop=False)
    buf_pool_cfg: Option[str] = Option(
        "llm.BufPoolCfg",
        "",
        accept.buffer_pools,
        drop="",
        doc="JSON; used by nothing here; carried for older callers.",
    )
    cluster_info: Option[str] = Option(
        "llm.ClusterInfo",
        "",
        accept.json_text,
        spell=accept.spell_cluster_info,
        drop="",
        doc="JSON; used by nothing here; carried for older callers.",
    )
    output_max_size: Option[int | None] = Option(
        "llm.OutputMaxSize", None, checks.int64, doc="Used by nothing here; carried for older callers."
    )
    mem_utilization: Option[float] = Option(
        "llm.MemoryUtilization", 0.95, accept.fraction, doc="Used by nothing here; carried for older callers."
    )
    ge_options: Option[dict[str, str]] = Option(
        "", {}, accept.text_map, doc="Further options, key → value, as they are."
    )

    keep_alive_ms: Option[int] = Option(
        OWN_PREFIX + "KeepAliveMs",
        3000,
        accept.positive,
        doc="Milliseconds after which a silent peer counts as lost.",
    )
    max_in_flight: Option[int] = Option(
        OWN_PREFIX + "MaxInFlight", 256, accept.positive, doc="Tickets that a link has at most at one time."
    )

    packed_staging_bytes: Option[int] = Option(
        OWN_PREFIX + "PackedStagingBytes",
        64 << 20,
        accept.positive,
        doc="Device memory that the first ``CacheManager.expect`` on a link sets aside for packed transfers; "
        "the peer gathers in as much, at most. 16 tickets of a link use it at one time, in two "
        "chunks each; a block that is larger than a chunk is not packed.",
    )

    streams_per_link: Option[int] = Option(
        OWN_PREFIX + "StreamsPerLink",
        64,
        accept.positive,
        doc="Streams that a link has at most for transfers that wait for something, beside the one that it "
        "always may have: a device has 1984 in all. Whole transfers share that one when no other is free.",
    )
    stream_budget: Option[int] = Option(
        OWN_PREFIX + "StreamBudget",
        1024,
        accept.positive,
        doc="Streams that all links of a device hold at most together in this process; of several instances "
        "the least counts. A device has 1984 in all, for every process and library. When all are taken, "
        "whole transfers share the one stream that each link may always have, and ``bind`` and ``expect`` "
        "raise ``LLM_LINK_BUSY``.",
    )
    stream_idle_ms: Option[int] = Option(
        OWN_PREFIX + "StreamIdleMs",
        5000,
        accept.positive,
        doc="Milliseconds without work after which a link gives its streams and staging buffers back.",
    )
    staging_limit: Option[int] = Option(
        OWN_PREFIX + "StagingLimit",
        1 << 30,
        accept.in_range(1, 2**40),
        doc="Bytes, on the device and in page-locked host memory together, that all links of the instance "
        "may use as buffers of transfers between host and device. A link in use takes 2 MiB of either for "
        "its whole transfers and 512 KiB of either for each that waits for its layers; a transfer that "
        "finds no room fails with ``LLM_LINK_BUSY``.",
    )
    close_timeout: Option[int] = Option(
        OWN_PREFIX + "CloseTimeoutMs",
        1000,
        accept.positive,
        doc="Milliseconds that closing a link waits for what runs on it (never longer than "
        "``sync_kv_timeout``; not at all where ``force`` was asked for), and once more for the peer to hear "
        "of the end. A lost device is not waited for.",
    )
    register_timeout: Option[int] = Option(
        OWN_PREFIX + "RegisterTimeoutMs",
        10000,
        accept.positive,
        doc="Milliseconds that ``register_cache`` and ``register_blocks_cache`` wait for what is queued on "
        "the current stream, and may still write the tensors.",
    )
    stream_timeout: Option[int] = Option(
        OWN_PREFIX + "StreamTimeoutMs",
        60_000,
        accept.positive,
        doc="Milliseconds that a blocking push, pull or copy waits for what was queued before it on the "
        "current stream. What it moves itself has ``sync_kv_timeout`` from then on.",
    )
    transport: Option[str] = Option(
        OWN_PREFIX + "Transport",
        "",
        accept.string,
        drop="",
        doc="The only transport that links of this instance may take: mapped, nixl, …. Not set: the "
        "environment variable ``TORCH_LLM_DATADIST_TRANSPORT``, else the first that reaches the peer.",
    )
    engine_chunk_bytes: Option[int] = Option(
        OWN_PREFIX + "EngineChunkBytes",
        1 << 20,
        accept.in_range(4096, 1 << 30),
        doc="Of transports that stage: size of a page-locked buffer. A link has three times "
        "``engine_chunks`` of them, and frees them with itself.",
    )
    engine_chunks: Option[int] = Option(
        OWN_PREFIX + "EngineChunks",
        8,
        accept.in_range(2, 64),
        doc="Of transports that stage: buffers that may be under way at one time, each way.",
    )
    link_port: Option[int | None] = Option(
        OWN_PREFIX + "LinkPort",
        None,
        accept.in_range(1, 65535),
        doc="Base of the ports at which members of a two-sided ``link`` meet: a member waits for those of "
        "higher rank at its host in the rank table, at this port plus its device id there. The same at all "
        "members. Not set: the environment variable ``TORCH_LLM_DATADIST_LINK_PORT``, else 61000.",
    )
    transfer_workers: Option[int] = Option(
        OWN_PREFIX + "TransferWorkers",
        16,
        accept.positive,
        doc="Calls of ``transfer_cache_async`` that run at one time, each on a thread; more wait their turn.",
    )

    link_secret: Option[str | None] = Option(
        OWN_PREFIX + "LinkSecret",
        None,
        checked_secret,
        spell=lambda secret: secret,  # as it is: it does not show itself in the dictionary's repr
        doc="What all instances that may link to each other share, 16 to 1024 characters: links are "
        "authenticated and encrypted, and nobody else gets one. Not set: the environment variable "
        "``TORCH_LLM_DATADIST_LINK_SECRET``, else links need no secret. It is not shown by ``repr``.",
    )

    verify_blocks = _flag(
        OWN_PREFIX + "VerifyBlocks",
        "Every transfer that begins at this instance is verified before it says that anything has arrived. "
        "One without a ticket, of either direction, reads back what it copied at both ends and compares each "
        "byte, on the host; the message names the block. One with a ticket is looked at by its receiver, "
        "where that has this option, too: the sender adds up each layer at the source, the receiver adds up "
        "what lies in its own blocks, behind the scatter of a packed one, and only then lets anybody read "
        "the layer. Its sender ends when the receiver has found all of it, whether or not anybody there "
        "waits for the ticket. A receiver without the option looks at nothing, and neither does one that is "
        "sent more than 3965 runs of neighbouring blocks in one push: what is sent to these is read back by "
        "its sender, a packed one up to their staging. What cannot be is refused: to read back over an "
        "engine, and to tell a receiver over HIXL what was sent. "
        "Where bytes differ it ends with ``LLM_FAILED``, and so does the status of who waits for it at the "
        "other end. It takes several times as long: ``sync_kv_timeout`` may have to be longer.",
        drop=False,
    )

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._options: dict[str, str] = {}
        self._emitted: set[str] = set()

    def generate_options(self) -> dict[str, str]:
        """The option dictionary, all values strings, flags "1" or "0".

        It is the same object at each call, as with the original; keys that a caller added stay. An option
        that was unset since the last call is no longer in it.

        Source: manual page LLMConfig.
        """
        fresh = dict(self.ge_options)
        for option in _OPTIONS:
            fresh.update(option.emit(self))
        if "ge.exec.deviceId" in fresh and self.device_id is not None:
            fresh["ge.session_device_id"] = fresh["ge.exec.deviceId"].split(";")[0]
        fresh["llm.MemoryUtilization"] = str(self.mem_utilization)
        for key in self._emitted - fresh.keys():
            self._options.pop(key, None)
        self._emitted = set(fresh)
        self._options.update(fresh)
        return self._options

    def gen_options(self) -> dict[str, str]:
        """Another name of ``generate_options``. Source: manual page LLMConfig."""
        return self.generate_options()

    @property
    def options(self) -> dict[str, str]:
        """What ``generate_options`` returns."""
        return self.generate_options()


_OPTIONS = [o for o in vars(LLMConfig).values() if isinstance(o, Option) and o.key]

LlmConfig = LLMConfig
