"""Two-sided links: each pair of members meets at the one with the lower rank and makes an ordinary link.

Everything here runs on the control thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from . import wire
from .errors import LLMStatusCode
from .handshake import Target
from .messages import coded, refusal
from .peer import LinkState
from .peers import Peers
from .rank_table import CommRequest
from .transfer import RegisterMemStatus

logger = logging.getLogger("torch_llm_datadist")

_RETRY_S = 0.05  # until a member is asked again that has not called link yet
_ANSWER_S = 1.0  # that one attempt waits: its greeting may have met a listener that was just closing

Begin = Callable[[Target, float, "Future[LLMStatusCode]"], None]


@dataclass(eq=False)
class _Attempt:
    answer: Future[LLMStatusCode]
    deadline: float


@dataclass(eq=False)
class _Comm:
    """
    Attributes:
        attempts: the links that this end makes: one under way, or when to try again.
        was_complete: all members were linked once.
        failure: why it is over; "" while it is not.
    """

    number: int
    request: CommRequest
    others: dict[int, int]  # cluster_id → rank
    own_rank: int
    deadline: float
    record: wire.CommRecord
    attempts: dict[int, _Attempt | float] = field(default_factory=dict)
    was_complete: bool = False
    failure: str = ""


class Comms:
    """
    Args:
        begin_link: makes a link as a client.
        listen: has the instance listen at an address for members of a comm.
    """

    def __init__(self, peers: Peers, begin_link: Begin, listen: Callable[[str, int], None]) -> None:
        self._peers = peers
        self._own = peers.identity
        self._begin_link = begin_link
        self._listen = listen
        self._numbers = itertools.count(1)
        self._comms: dict[int, _Comm] = {}

    def begin(self, request: CommRequest, deadline: float) -> int:
        """Starts to link with all members; returns the comm_id."""
        others = {c: rank for c, rank in request.members.items() if c != self._own.cluster_id}
        if any(comm.request.name == request.name for comm in self._comms.values()):
            raise refusal("comm_name_is_in_use", value=repr(request.name))
        for cluster_id in others:
            if self._peers.open(cluster_id) is not None:
                raise refusal("comm_member_is_linked", value=cluster_id)
        own_rank = request.members[self._own.cluster_id]
        record = wire.CommRecord(request.name, sorted(request.members.items()))
        comm = _Comm(next(self._numbers), request, others, own_rank, deadline, record)
        if any(rank > own_rank for rank in others.values()):
            self._listen(*request.endpoint(own_rank))
        self._comms[comm.number] = comm
        comm.attempts = {c: 0.0 for c, rank in others.items() if rank < own_rank}
        return comm.number

    def status(self, number: int) -> RegisterMemStatus:
        comm = self._get(number, "query_register_mem_status")
        self._look_at(comm, time.monotonic())
        if comm.failure:
            return RegisterMemStatus.FAILED
        return RegisterMemStatus.OK if comm.was_complete else RegisterMemStatus.PREPARING

    def end(self, number: int) -> list[int]:
        """Forgets a comm; returns the clusters that are linked by it, for the caller to unlink."""
        comm = self._get(number, "unlink")
        del self._comms[number]
        for peer in self._peers:
            if peer.is_handshaking and peer.comm == comm.request.name:
                self._peers.fail(peer, LLMStatusCode.LLM_LINK_FAILED, "the two-sided link was unlinked")
        return [c for c in comm.others if self._is_linked(comm, c)]

    def why_not_join(
        self, asked: wire.CommRecord, client_cluster_id: int
    ) -> tuple[LLMStatusCode, str] | None:
        """Whether a member that comes here to link is expected."""
        comm = next((c for c in self._comms.values() if c.request.name == asked.name), None)
        if comm is not None:
            self._look_at(comm, time.monotonic())
            if comm.was_complete:
                self._fail(comm, f"cluster {client_cluster_id} links anew")
        if comm is None or comm.failure:  # a member that was restarted is early until this end has unlinked
            return coded("member_is_early", value=repr(asked.name))
        if comm.record.members != asked.members:
            return coded(
                "members_differ",
                name=repr(asked.name),
                value=dict(asked.members),
                peer=client_cluster_id,
                own=dict(comm.record.members),
                cluster_id=self._own.cluster_id,
            )
        return None

    def tick(self, now: float) -> float | None:
        wanted: list[float] = []
        for comm in self._comms.values():
            self._look_at(comm, now)
            if comm.failure or comm.was_complete:
                continue
            for cluster_id, attempt in comm.attempts.items():
                if isinstance(attempt, float):
                    if now >= attempt:
                        self._try(comm, cluster_id)
                    else:
                        wanted.append(attempt - now)
            wanted.append(max(0.0, comm.deadline - now))
        return min(wanted, default=None)

    def _get(self, number: int, asked: str) -> _Comm:
        if number not in self._comms:
            raise refusal("no_such_comm", asked=asked, value=number)
        return self._comms[number]

    def _is_linked(self, comm: _Comm, cluster_id: int) -> bool:
        peer = self._peers.open(cluster_id)
        return peer is not None and peer.comm == comm.request.name and peer.state != LinkState.LEAVING

    def _look_at(self, comm: _Comm, now: float) -> None:
        if comm.failure:
            return
        missing = [c for c in comm.others if not self._is_linked(comm, c)]
        if not missing:
            comm.was_complete = True
        elif comm.was_complete:
            self._fail(comm, f"the link to cluster {missing[0]} has ended")
        elif now >= comm.deadline:
            self._fail(comm, f"cluster {missing[0]} was not linked in time; has it called link?")
        for cluster_id, attempt in comm.attempts.items():
            if isinstance(attempt, float) or not attempt.answer.done():
                continue
            code = attempt.answer.result()
            is_late = code in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_TIMEOUT)
            if code == LLMStatusCode.LLM_PROCESSING_LINK or (is_late and now >= attempt.deadline):
                comm.attempts[cluster_id] = now + _RETRY_S
            elif code != LLMStatusCode.LLM_SUCCESS:
                self._fail(comm, f"linking to cluster {cluster_id} failed with {code.name}")

    def _try(self, comm: _Comm, cluster_id: int) -> None:
        attempt = _Attempt(Future(), min(comm.deadline, time.monotonic() + _ANSWER_S))
        comm.attempts[cluster_id] = attempt
        ip, port = comm.request.endpoint(comm.others[cluster_id])
        self._begin_link(Target(cluster_id, ip, port, comm.record), attempt.deadline, attempt.answer)

    def _fail(self, comm: _Comm, why: str) -> None:
        if not comm.failure:
            comm.failure = why
            logger.warning("link(%r): %s", comm.request.name, why)
