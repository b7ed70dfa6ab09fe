"""``LLMDataDist``: one instance, bound to one device, and its links to others."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from . import checks
from .cluster import LLMClusterInfo, LLMRole, parse_endpoint
from .cluster_calls import cluster_ids_of, group_failure, overall, read_clusters, read_group
from .errors import LLMStatusCode, ParamInvalidError
from .handshake import Target
from .link_table import LinkInfo
from .option_checks import text_map as read_text_map
from .rank_table import port_of, read_comm
from .running import Running
from .transfer import RegisterMemStatus

if TYPE_CHECKING:
    from .cache_manager import CacheManager
    from .kv_cache_manager import KvCacheManager

logger = logging.getLogger("torch_llm_datadist")

_FINALIZE_S = 3.0
_FINALIZE_AT_EXIT_S = 1.0
_UNLINK_S = 3.0


class LLMDataDist:
    """An instance: registers caches, links to other instances, moves KV blocks between them.

    >>> config = LLMConfig()
    >>> config.device_id = 0
    >>> config.enable_cache_manager = True
    >>> instance = LLMDataDist(llm_datadist.LLMRole.PROMPT, cluster_id=4)
    >>> instance.init(config.generate_options())
    >>> cache = instance.cache_manager.register_blocks_cache(source.cache_desc, list(source.tensors))
    >>> instance.finalize()

    Several instances may live in one process. Before ``init`` and after ``finalize`` all but ``init``,
    ``finalize`` and ``cluster_id`` raise ``RuntimeError``.

    Args:
        role: a label; it selects nothing.
        cluster_id: uint64; different for all instances that are linked to each other.

    Source: manual page LLMDataDist.
    """

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        self._role = checks.instance("LLMDataDist: role", role, LLMRole)
        self._cluster_id = checks.uint64("LLMDataDist: cluster_id", cluster_id)
        self._lock = threading.Lock()
        self._running: Running | None = None

    def init(self, options: dict[str, str]) -> None:
        """Binds the instance to its device, and starts to listen if ``listen_ip_info`` is set.

        On an initialised instance it does nothing.

        Args:
            options: what ``LLMConfig.generate_options`` returns. While the cache manager is off (and not
                implied by ``local_comm_res``), the older API is there: ``kv_cache_manager``. Without a device
                it is device 0.

        Raises:
            TypeError: not a dict of str to str.
            LLMException: ``LLM_PARAM_INVALID`` for a bad option, ``LLM_FAILED`` when the listening address is
                taken. The instance may be initialised again.

        Source: manual page init.
        """
        with self._lock:
            if self._running is None:
                self._running = Running(self._cluster_id, options)
                # After torch_npu was imported, so that this runs before its own shutdown.
                atexit.register(self._finalize_at_exit)

    def finalize(self) -> None:
        """Unlinks from all peers, withdraws all caches and frees everything; at most a few seconds.

        Memory that a peer may still write is not handed back before that peer is gone. Idempotent.

        Source: manual page finalize.
        """
        self._finalize(_FINALIZE_S)
        atexit.unregister(self._finalize_at_exit)

    def link_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Links to listening instances, all at the same time.

        Failures are returned, and logged with their reasons on the logger ``torch_llm_datadist``. A peer that
        does not listen yet is tried again until the timeout.

        Args:
            clusters: for each peer its cluster_id and its one remote address; while ``local_comm_res`` is
                empty or not set, also one local address.
            timeout: int32, > 0, in milliseconds, for the whole call.

        Returns:
            The status of the last entry that failed, or ``LLM_SUCCESS``, and one status per entry:
            ``LLM_ALREADY_LINK``; ``LLM_PROCESSING_LINK`` while the same link is being made;
            ``LLM_LINK_FAILED`` when nobody answers or the two cannot be linked; ``LLM_TIMEOUT`` when the
            handshake was begun but did not end; ``LLM_PARAM_INVALID`` when the two ends are set up
            differently, another cluster listens there, or an entry has not exactly one remote address. An
            empty list gives ``(LLM_PARAM_INVALID, [])``.

        Raises:
            TypeError, ValueError, LLMException: bad arguments.

        Source: manual page link_clusters.

        >>> prefill.link_clusters([peer])  # linked before
        (<LLMStatusCode.LLM_ALREADY_LINK: 1343270920>, [<LLMStatusCode.LLM_ALREADY_LINK: 1343270920>])
        """
        running = self._initialised()
        asked = "link_clusters"
        entries = read_clusters(asked, clusters)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        for i, entry in enumerate(entries):
            if running.options.needs_local_ip and len(entry.local_ip_info_list) != 1:
                raise ParamInvalidError(
                    f"{asked}: clusters[{i}] has {len(entry.local_ip_info_list)} local addresses, expected "
                    "one (append_local_ip_info), because local_comm_res is empty or not set"
                )
        ids = cluster_ids_of(asked, entries)
        is_good = [len(entry.remote_addresses) == 1 for entry in entries]
        targets = [
            Target(cluster_id, *entry.remote_addresses[0])
            for cluster_id, entry, good in zip(ids, entries, is_good, strict=True)
            if good
        ]
        answers = iter(running.links.link(targets, timeout_ms / 1000))
        return overall(
            asked, entries, [next(answers) if good else LLMStatusCode.LLM_PARAM_INVALID for good in is_good]
        )

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, force: bool = False
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Ends links. A link that is not there counts as ended.

        Without ``force`` running blocking transfers may end first, and the peer closes its end before this
        one is closed; ``LLM_UNLINK_FAILED`` when it does not answer in time, and the link stays. With
        ``force`` this end is closed at once.

        Args:
            clusters: for each peer its cluster_id, and without ``force`` its one remote address.
            timeout: int32, > 0, in milliseconds, for the whole call.

        Returns, raises: as ``link_clusters``.

        Source: manual page unlink_clusters.
        """
        running = self._initialised()
        asked = "unlink_clusters"
        entries = read_clusters(asked, clusters)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        checks.boolean(f"{asked}: force", force)
        ids = cluster_ids_of(asked, entries)
        is_good = [force or len(entry.remote_addresses) == 1 for entry in entries]
        wanted = [cluster_id for cluster_id, good in zip(ids, is_good, strict=True) if good]
        answers = iter(running.links.unlink(wanted, timeout_ms / 1000, force))
        return overall(
            asked, entries, [next(answers) if good else LLMStatusCode.LLM_PARAM_INVALID for good in is_good]
        )

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Links with all other members of a communication domain, each of which calls this, too.

        Returns at once; poll ``query_register_mem_status``. Two members meet at the one of lower rank: at its
        host in the rank table (``host_ip``, else ``server_id`` where that is an address) and the port 61000
        plus its device id there; the option ``link_port`` and the environment variable
        ``TORCH_LLM_DATADIST_LINK_PORT`` set another base. Members may come in any order within
        ``link_total_time`` (else the environment's ``HCCL_CONNECT_TIMEOUT``, else 120 seconds).

        Args:
            comm_name: 1 to 127 characters, the same at all members, in use once at a time.
            cluster_rank_info: cluster_id → rank of 2 to 4 members, this one among them, the ranks rising.
            rank_table: JSON, an HCCL rank table of version 1.0 or 1.2.

        Returns:
            A comm_id, from 1.

        Raises:
            TypeError, ValueError: wrong types; integers outside uint64 (ids) or uint32 (ranks).
            LLMException: ``LLM_PARAM_INVALID`` for values that make no sense, ``LLM_ALREADY_LINK`` when a
                member is linked already, ``LLM_LINK_FAILED`` when others cannot come here since the port is
                taken.

        Source: manual page link. Caches that are registered later are reachable, too.

        >>> import json, time
        >>> devices = [{"device_id": str(i), "device_ip": f"10.0.0.{i}", "rank_id": str(i)} for i in range(2)]
        >>> servers = [{"server_id": "127.0.0.1", "device": devices}]
        >>> rank_table = json.dumps({"version": "1.0", "status": "completed", "server_list": servers})
        >>> def join(instance):  # each member calls it, in a process of its own as a rule
        ...     return instance.link("kv", {7: 0, 8: 1}, rank_table)
        >>> members = [start(7, 0), start(8, 1)]
        >>> domains = [join(member) for member in members]
        >>> while members[0].query_register_mem_status(domains[0]) is not llm_datadist.RegisterMemStatus.OK:
        ...     time.sleep(0.01)
        >>> for member, domain in zip(members, domains):
        ...     member.unlink(domain)
        ...     member.finalize()
        """
        running = self._initialised()
        port = port_of(running.options.link_port)
        request = read_comm(self._cluster_id, comm_name, cluster_rank_info, rank_table, port)
        return running.links.begin_comm(request, running.options.link_total_time_s)

    def unlink(self, comm_id: int) -> None:
        """Ends a two-sided link, also one that is still being made. Every member calls it.

        Running blocking transfers may end first; a member that does not answer holds nothing up.

        Args:
            comm_id: uint64, of ``link``.

        Raises:
            LLMException: ``LLM_NOT_YET_LINK`` for an unknown one.

        Source: manual page unlink.
        """
        running = self._initialised()
        running.links.end_comm(checks.uint64("unlink: comm_id", comm_id), _UNLINK_S)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """Whether all members of a two-sided link are linked with this one.

        Args:
            comm_id: uint64, of ``link``.

        Returns:
            ``PREPARING``, then ``OK``; ``FAILED`` when the time was over, a member refused, or a link has
            ended since. The log says why.

        Raises:
            LLMException: ``LLM_NOT_YET_LINK`` for an unknown one.

        Source: manual page query_register_mem_status.
        """
        running = self._initialised()
        return running.links.comm_status(checks.uint64("query_register_mem_status: comm_id", comm_id))

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Changes the role, which is a label, and where this instance listens.

        With the option ``llm.listenIpInfo`` it listens there from now on, whether it did so elsewhere before
        or not at all; without it it does not listen any more. The same role is fine.

        Args:
            role: the new role.
            switch_options: dict of str to str; keys other than ``llm.listenIpInfo`` count for nothing.

        Raises:
            TypeError, ValueError: wrong types; a port that is none.
            LLMException: ``LLM_EXIST_LINK`` while there is a link, ``LLM_PARAM_INVALID`` for an address that
                is none, ``LLM_FAILED`` when it is taken.

        Source: manual page switch_role.

        >>> other = start(5, 1)
        >>> other.switch_role(llm_datadist.LLMRole.DECODER)  # listens no longer
        >>> other.listen_port is None
        True
        >>> other.finalize()
        """
        running = self._initialised()
        asked = "switch_role"
        checks.instance(f"{asked}: role", role, LLMRole)
        given = {} if switch_options is None else read_text_map(f"{asked}: switch_options", switch_options)
        listen = given.get("llm.listenIpInfo")
        address = None if listen is None else parse_endpoint(f"{asked}: llm.listenIpInfo", listen)
        if running.options.is_older_api:
            self._check_older_switch(running, role, listen)
        running.listen_port = running.links.switch_role(address)
        self._role = role

    def check_link_status(self, remote_cluster_id: int) -> None:
        """Of the older API (``enable_cache_manager`` off): returns when there is a link to that cluster.

        Raises:
            LLMException: ``LLM_NOT_YET_LINK`` without one; ``LLM_PARAM_INVALID`` while the cache manager is
                on, as with the original.
        """
        running = self._initialised()
        if not running.options.is_older_api:
            raise ParamInvalidError("check_link_status: the cache manager is on; links() lists the links")
        cluster_id = checks.uint64("check_link_status: remote_cluster_id", remote_cluster_id)
        running.links.table.get(cluster_id, "check_link_status")

    @property
    def cluster_id(self) -> int:
        """uint64, as it was given; also before ``init``."""
        return self._cluster_id

    @property
    def cache_manager(self) -> CacheManager:
        """The caches of this instance; ``LLM_PARAM_INVALID`` while ``enable_cache_manager`` is off."""
        running = self._initialised()
        if running.options.is_older_api:
            raise ParamInvalidError(
                "cache_manager: the cache manager is off; set LLMConfig.enable_cache_manager or "
                "local_comm_res"
            )
        return running.cache_manager

    @property
    def kv_cache_manager(self) -> KvCacheManager:
        """The manager of the older API; ``LLM_PARAM_INVALID`` while ``enable_cache_manager`` is on."""
        running = self._initialised()
        if not running.options.is_older_api:
            raise ParamInvalidError("kv_cache_manager: the cache manager is on; use cache_manager")
        from .kv_cache_manager import KvCacheManager

        return KvCacheManager(running.cache_manager, self._role)

    # Not in the original.

    @property
    def listen_port(self) -> int | None:
        """The port at which this instance listens; None if it does not."""
        return self._initialised().listen_port

    def link_id(self, cluster_id: int) -> int:
        """The native handle of the link to a cluster; ``NotYetLinkError`` without one. For ``ops``."""
        running = self._initialised()
        return running.links.table.get(checks.uint64("link_id: cluster_id", cluster_id), "link_id").handle

    def link_group(self, ranks: Mapping[int, str], timeout: int = 3000) -> None:
        """Links to all ranks of a peer's tensor-parallel group at the same time: to all of them or to none.

        A rank that is linked already stays so. When one fails, the links that this call made are ended again.

        Args:
            ranks: cluster_id → address at which that rank listens, ``"ip:port"`` or ``"[ipv6]:port"``.
            timeout: int32, > 0, in milliseconds, for the whole call.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_PARAM_INVALID`` for an empty group or a bad address; else the code of the
                first rank that failed, in the order of ``ranks``.

        >>> ranks = [start(cluster_id=10 + rank, device=rank) for rank in range(2)]
        >>> prefill.link_group({r.cluster_id: f"127.0.0.1:{r.listen_port}" for r in ranks}, timeout=10_000)
        >>> sorted(link.cluster_id for link in prefill.links())
        [2, 10, 11]
        >>> for rank in ranks:
        ...     rank.finalize()
        """
        running = self._initialised()
        asked = "link_group"
        targets = read_group(asked, ranks)
        timeout_s = checks.timeout_ms(f"{asked}: timeout", timeout) / 1000
        codes = running.links.link(targets, timeout_s)
        good = (LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_ALREADY_LINK)
        failed = [(target, code) for target, code in zip(targets, codes, strict=True) if code not in good]
        if not failed:
            return
        made = [
            t.cluster_id for t, code in zip(targets, codes, strict=True) if code == LLMStatusCode.LLM_SUCCESS
        ]
        running.links.unlink(made, timeout_s, force=True)
        raise group_failure(asked, failed, len(made))

    def wait_linked(self, cluster_ids: Iterable[int], timeout_s: float = 30.0) -> None:
        """Blocks until there is a link to each of the clusters, whoever makes it.

        Raises:
            TimeoutExceededError: naming the clusters that are missing.

        >>> decode.wait_linked([1], timeout_s=5)
        """
        running = self._initialised()
        wanted = [checks.uint64(f"wait_linked: cluster_ids[{i}]", c) for i, c in enumerate(cluster_ids)]
        running.links.table.wait_linked(wanted, timeout_s)

    def links(self) -> list[LinkInfo]:
        """The links there are, and their states; one whose peer has died may be there for 0.1 s as "lost".

        >>> [(link.cluster_id, link.state) for link in prefill.links()]
        [(2, 'linked')]
        """
        running = self._initialised()
        is_alive = {info: running.instance.link_status(info.link)[0] for info in running.links.table.infos()}
        return [info if alive else replace(info, state="lost") for info, alive in is_alive.items()]

    # Inside.

    def _check_older_switch(self, running: Running, role: LLMRole, listen: str | None) -> None:
        if not running.options.enable_switch_role:
            raise ParamInvalidError("switch_role: enable_switch_role is off, and the cache manager, too")
        if role == self._role:
            raise ParamInvalidError(f"switch_role: the role is {role.name} already")
        if role == LLMRole.PROMPT and listen is None:
            raise ParamInvalidError("switch_role: the role PROMPT needs llm.listenIpInfo")

    def _initialised(self) -> Running:
        running = self._running
        if running is None:
            raise RuntimeError("llm datadist is not initialized")
        running.native.require_not_forked("LLMDataDist")
        return running

    def _finalize(self, timeout_s: float) -> None:
        running = self._running
        if running is not None and running.is_forked():
            return  # it is the parent's
        with self._lock:
            running, self._running = self._running, None
            if running is not None:
                running.close(timeout_s)

    def _finalize_at_exit(self) -> None:
        began = time.monotonic()
        try:
            self._finalize(_FINALIZE_AT_EXIT_S)
        except Exception as error:
            logger.warning("finalize at exit failed after %.1f s: %s", time.monotonic() - began, error)
