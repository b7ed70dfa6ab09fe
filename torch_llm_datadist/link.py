"""Links of an instance, for its callers' threads: each request goes to the control thread and has a deadline.

What a running transfer needs is never asked of a control thread, neither this one nor a peer's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the builtin one from Python 3.11 on only
from functools import partial
from typing import TYPE_CHECKING

from . import wire
from .arrivals import Tag
from .control import Control
from .errors import LLMStatusCode
from .handshake import Target
from .identity import Identity
from .link_keys import LinkKeys
from .rank_table import CommRequest
from .registry import CacheRegistry, HeldCache, LocalCache
from .transfer import RegisterMemStatus

if TYPE_CHECKING:
    from . import _C

logger = logging.getLogger("torch_llm_datadist")

_GRACE_S = 2.0  # that a caller waits for the control thread beyond the deadline


class LinkService:
    """
    Args:
        native: the native instance.
        make_segment: ``_C.Segment``.
        identity: who this instance is.
        registry: its caches.
        keys: of the secret that its links need; None for links without one.
    """

    def __init__(
        self,
        native: _C.Instance,
        make_segment: Callable[[bytes, int, int, int], _C.Segment],
        identity: Identity,
        registry: CacheRegistry,
        keys: LinkKeys | None = None,
    ) -> None:
        self._control = Control(native, make_segment, identity, registry, keys)
        self._loop = self._control.loop
        self._name = f"the control thread of cluster {identity.cluster_id}"
        self._is_closing = False
        self.identity = identity
        self.table = self._control.table
        self.arrivals = self._control.arrivals

    def listen(self, ip: str, port: int) -> int:
        """Starts to listen; returns the port. ``EngineFailedError`` when it is taken."""
        return self._loop.call(lambda: self._control.listen(ip, port), 10.0)

    def switch_role(self, listen: tuple[str, int] | None) -> int | None:
        """Listens at another address, or not at all; returns the port. ``ExistLinkError`` with a link."""
        return self._loop.call(lambda: self._control.switch_role(listen), 10.0)

    def begin_comm(self, request: CommRequest, timeout_s: float) -> int:
        """Starts a two-sided link; returns its comm_id."""
        deadline = time.monotonic() + timeout_s
        return self._loop.call(lambda: self._control.begin_comm(request, deadline), 10.0)

    def comm_status(self, comm_id: int) -> RegisterMemStatus:
        return self._loop.call(lambda: self._control.comms.status(comm_id), 10.0)

    def end_comm(self, comm_id: int, timeout_s: float) -> None:
        """Ends a two-sided link: in good order where the members answer, else this end only."""
        linked = self._loop.call(lambda: self._control.comms.end(comm_id), 10.0)
        codes = self.unlink(linked, timeout_s, force=False)
        left = [c for c, code in zip(linked, codes, strict=True) if code != LLMStatusCode.LLM_SUCCESS]
        self.unlink(left, timeout_s, force=True)

    def link(self, targets: Sequence[Target], timeout_s: float) -> list[LLMStatusCode]:
        """One status per target, in order."""
        deadline = time.monotonic() + timeout_s
        requests = [partial(self._control.begin_link, target, deadline) for target in targets]
        return self._ask(requests, deadline, LLMStatusCode.LLM_TIMEOUT)

    def unlink(self, cluster_ids: Sequence[int], timeout_s: float, force: bool) -> list[LLMStatusCode]:
        """One status per cluster, in order. A link that is not there counts as unlinked."""
        deadline = time.monotonic() + timeout_s
        requests = [partial(self._control.begin_unlink, c, deadline, force) for c in cluster_ids]
        return self._ask(requests, deadline, LLMStatusCode.LLM_UNLINK_FAILED)

    def announce(self, local: LocalCache) -> None:
        """Makes a cache that was registered after linking known to all linked peers; returns at once."""

        def tell_peers() -> None:
            if (
                not self._is_closing
            ):  # hundreds of caches for dozens of peers would hold `close` up for seconds
                self._control.announce(local)

        self._loop.post(tell_peers)

    def withdraw(self, held: HeldCache) -> None:
        """Asks all peers to drop a cache; returns at once."""
        self._loop.post(lambda: self._control.withdraw(held))

    def hold(self, all_held: Sequence[HeldCache]) -> None:
        """Before ``close``: a peer's last word answers for all caches. To ask dozens of peers for hundreds of
        them, one by one, would take seconds.
        """
        self._loop.post(lambda: self._control.hold(all_held))

    def announce_staging(self, link: int, memory: _C.Segment, size_bytes: int) -> None:
        """Tells the peer of that native link where packed transfers land; returns at once."""
        self._loop.post(lambda: self._control.announce_staging(link, memory, size_bytes))

    def announce_keys(self, cache_id: int) -> None:
        """Tells all linked peers the keys that a cache has now; returns at once."""
        self._loop.post(lambda: self._control.announce_keys(cache_id))

    def taken(self, cluster_id: int, message: wire.Taken, timeout_s: float) -> bool:
        """Tells the holder of a cache what was pulled, and waits until it knows; False if it takes too
        long."""
        answer: Future[bool] = Future()
        self._loop.post(lambda: self._control.begin_taken(cluster_id, message, answer))
        try:
            return answer.result(timeout_s)
        except FutureTimeoutError:
            return False

    def tell_pushed(self, cluster_id: int, tag: Tag, code: int, detail: str) -> None:
        """Tells a peer that a tagged push to it has ended; returns at once."""
        self._loop.post(lambda: self._control.tell_pushed(cluster_id, tag, code, detail))

    def sync(self, cluster_id: int, timeout_s: float) -> bool:
        """Waits until what the peer has registered up to now is known here; False if that took too long."""
        answer: Future[bool] = Future()
        self._loop.post(lambda: self._control.begin_sync(cluster_id, answer))
        try:
            return answer.result(timeout_s)
        except FutureTimeoutError:
            return False

    def settle(self, timeout_s: float) -> bool:
        """Waits until all linked peers know what was announced and withdrawn here up to now; False if that
        took too long.
        """
        deadline = time.monotonic() + timeout_s
        asked = [(cluster_id, Future[bool]()) for cluster_id in self.table.cluster_ids()]
        for cluster_id, answer in asked:
            self._loop.post(partial(self._control.begin_sync, cluster_id, answer))
        try:
            for _, answer in asked:
                answer.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            return False
        return True

    def lost_peers(self) -> list[tuple[int, int, str]]:
        """(cluster_id, link, why) of links that have ended and whose peer may still write what it had queued:
        it has not said that its end is closed, and its process is not known to be gone.
        """
        return self._control.lost_peers()

    def close(self, timeout_s: float) -> None:
        """Unlinks from all peers, waits for held memory, ends the control thread. Idempotent and bounded."""
        self._is_closing = True
        deadline = time.monotonic() + timeout_s
        closed: Future[None] = Future()
        if self._loop.post(lambda: self._control.begin_close(closed, deadline)):
            try:
                closed.result(timeout_s + 0.2)
            except FutureTimeoutError:
                logger.warning("finalize: %s is stuck", self._name)
        if not self._loop.stop(max(0.5, deadline - time.monotonic())):
            logger.warning("finalize: %s has not ended", self._name)

    def _ask(
        self,
        requests: Sequence[Callable[[Future[LLMStatusCode]], None]],
        deadline: float,
        late: LLMStatusCode,
    ) -> list[LLMStatusCode]:
        answers = [self._post(request) for request in requests]
        codes = []
        for answer in answers:
            try:
                codes.append(answer.result(max(0.0, deadline + _GRACE_S - time.monotonic())))
            except FutureTimeoutError:
                logger.warning("%s is late", self._name)
                codes.append(late)
        return codes

    def _post(self, request: Callable[[Future[LLMStatusCode]], None]) -> Future[LLMStatusCode]:
        answer: Future[LLMStatusCode] = Future()

        def run() -> None:
            try:
                request(answer)
            except Exception:
                if not answer.done():
                    answer.set_result(LLMStatusCode.LLM_FAILED)
                raise

        if not self._loop.post(run):
            answer.set_result(LLMStatusCode.LLM_FAILED)
        return answer
