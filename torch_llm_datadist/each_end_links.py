"""Links of the hixl backend, where each end that wants to transfer links to the other.

Here one link serves both directions. So an end whose peer was first has what it asks for; an end that asks
twice is told so, as the original would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import LLMStatusCode, TimeoutExceededError

if TYPE_CHECKING:
    from .handshake import Target
    from .link import LinkService

_MADE_BY_THE_PEER = (LLMStatusCode.LLM_ALREADY_LINK, LLMStatusCode.LLM_PROCESSING_LINK)


class EachEndLinks:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked_for: set[int] = set()  # clusters that this end has linked to itself

    def link(self, links: LinkService, targets: Sequence[Target], timeout_s: float) -> list[LLMStatusCode]:
        deadline = time.monotonic() + timeout_s
        codes = links.link(targets, timeout_s)
        return [
            self._code(links, target.cluster_id, code, deadline)
            for target, code in zip(targets, codes, strict=True)
        ]

    def unlinked(self, cluster_ids: Sequence[int]) -> None:
        with self._lock:
            self._asked_for.difference_update(cluster_ids)

    def _code(
        self, links: LinkService, cluster_id: int, code: LLMStatusCode, deadline: float
    ) -> LLMStatusCode:
        with self._lock:
            is_first = cluster_id not in self._asked_for
        if code in _MADE_BY_THE_PEER and is_first:
            try:
                links.table.wait_linked([cluster_id], max(0.0, deadline - time.monotonic()))
            except TimeoutExceededError:
                return code
            code = LLMStatusCode.LLM_SUCCESS
        if code == LLMStatusCode.LLM_SUCCESS:
            with self._lock:
                self._asked_for.add(cluster_id)
        return code
