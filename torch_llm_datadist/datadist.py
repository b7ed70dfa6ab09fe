"""``LLMDataDist``: one instance, bound to one device, and its links to others."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from typing import TYPE_CHECKING

from . import checks
from .cluster import LLMRole, parse_endpoint
from .cluster_links import ClusterLinks
from .messages import refusal
from .option_checks import text_map as read_text_map
from .running import Running
from .two_sided_links import TwoSidedLinks

if TYPE_CHECKING:
    from .cache_manager import CacheManager
    from .kv_cache_manager import KvCacheManager

logger = logging.getLogger("torch_llm_datadist")

_FINALIZE_S = 3.0
_FINALIZE_AT_EXIT_S = 1.0


class LLMDataDist(ClusterLinks, TwoSidedLinks):
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
            if self._running is not None:
                self._running.native.require_not_forked("init")
            else:
                self._running = Running(self._cluster_id, options)
                # After torch_npu was imported, so that this runs before its own shutdown.
                atexit.register(self._finalize_at_exit)

    def finalize(self) -> None:
        """Unlinks from all peers, withdraws all caches and frees everything; at most a few seconds.

        Memory that a peer may still write is not handed back before that peer is gone. Idempotent.

        Source: manual page finalize.
        """
        self._finalize(_FINALIZE_S)

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

        Source: manual page check_link_status.
        """
        running = self._initialised()
        if not running.options.is_older_api:
            raise refusal(
                "cache_manager_is_on", asked="check_link_status", value="on", use="links() lists the links"
            )
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
            raise refusal("cache_manager_is_off", asked="cache_manager", value="off")
        return running.cache_manager

    @property
    def kv_cache_manager(self) -> KvCacheManager:
        """The manager of the older API; ``LLM_PARAM_INVALID`` while ``enable_cache_manager`` is on."""
        running = self._initialised()
        if not running.options.is_older_api:
            raise refusal(
                "cache_manager_is_on", asked="kv_cache_manager", value="on", use="use cache_manager"
            )
        from .kv_cache_manager import KvCacheManager

        return KvCacheManager(running.cache_manager, self._role)

    # Not in the original.

    @property
    def listen_port(self) -> int | None:
        """The port at which this instance listens; None if it does not."""
        return self._initialised().listen_port

    # Inside.

    def _check_older_switch(self, running: Running, role: LLMRole, listen: str | None) -> None:
        if not running.options.enable_switch_role:
            raise refusal("switch_role_is_off", value="off")
        if role == self._role:
            raise refusal("role_is_that_already", value=role.name)
        if role == LLMRole.PROMPT and listen is None:
            raise refusal("prompt_needs_listen_ip_info", value="not set")

    def _finalize(self, timeout_s: float) -> None:
        running = self._running
        if running is not None and running.is_forked():
            return  # it is the parent's
        with self._lock:
            running, self._running = self._running, None
            if running is not None:  # else there may be no interpreter any more to speak of
                running.close(timeout_s)
                atexit.unregister(self._finalize_at_exit)

    def _finalize_at_exit(self) -> None:
        began = time.monotonic()
        try:
            self._finalize(_FINALIZE_AT_EXIT_S)
        except Exception as error:
            logger.warning("finalize at exit failed after %.1f s: %s", time.monotonic() - began, error)
