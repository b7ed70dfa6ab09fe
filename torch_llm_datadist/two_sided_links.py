"""The part of ``LLMDataDist`` that links the members of a communication domain: two-sided links."""

from __future__ import annotations

from . import checks
from .instance_calls import InstanceCalls
from .rank_table import port_of, read_comm
from .transfer import RegisterMemStatus

_UNLINK_S = 3.0


class TwoSidedLinks(InstanceCalls):
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
