"""The link of two members: made when a transfer needs one, ended when it is in doubt."""

from __future__ import annotations

import asyncio
import itertools
import time

from tests.soak.findings import Findings
from tests.soak.member import Life, OverError, RefusedError

LINK_MS = 5000
# Two members that are both well are linked by then, whatever happened before.
LINKED_WITHIN_S = 40.0


class Link:
    """Attributes:
    ids: by member, the handle that its library has for it.
    calls: of either end that name the other one by its cluster, and have not returned.
    """

    def __init__(self, a: Life, b: Life, ids: dict[int, int]) -> None:
        self.ends = (a, b)
        self.is_over = False
        self.calls: set[asyncio.Task[object]] = set()
        self._ids = ids

    def began(self, call: asyncio.Task[object]) -> None:
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)

    def id_at(self, life: Life) -> int:
        return self._ids[life.cluster_id]

    def joins(self, a: Life, b: Life) -> bool:
        return not self.is_over and {a, b} == set(self.ends)


class Links:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._links: dict[frozenset[int], Link] = {}
        self._locks: dict[frozenset[int], asyncio.Lock] = {}

    async def between(self, a: Life, b: Life) -> Link | None:
        """None when there is none now: one of them is dead or frozen."""
        pair = frozenset((a.cluster_id, b.cluster_id))
        async with self._locks.setdefault(pair, asyncio.Lock()):
            link = self._links.get(pair)
            if link is None or not link.joins(a, b) or not await self._is_up(link):
                if link is not None and not await self._calls_returned(link, a, b):
                    return None
                link = await self._make(a, b)
                if link is not None:
                    self._findings.recovered[
                        "links made" if pair not in self._links else "links made anew"
                    ] += 1
                    self._links[pair] = link
            return link

    async def end(self, link: Link, force: bool = False, first: Life | None = None) -> None:
        """Asks for the end; a member that is frozen has not ended its side then."""
        link.is_over = True
        ends = link.ends[::-1] if first is link.ends[1] else link.ends
        for life, other in (ends, ends[::-1]):
            try:
                if life.process.is_frozen:
                    continue
                # Another link of the two may have come since.
                if await life.ask("has_link", link.id_at(life)):
                    code = await life.ask("unlink", other.cluster_id, other.port, force)
                    if code == "LLM_SUCCESS":
                        return
            except (OverError, RefusedError):
                pass

    async def end_all(self, lives: list[Life]) -> None:
        """When nothing is under way."""
        for link in self._links.values():
            link.is_over = True
        for a, b in itertools.permutations(lives, 2):
            if await a.ask("is_linked", b.cluster_id):
                await a.ask("unlink", b.cluster_id, b.port, False)

    async def _is_up(self, link: Link) -> bool:
        """As far as those know that can be asked; one end alone is ended, too."""
        try:
            for life in link.ends:
                if not life.process.is_frozen and not await life.ask("has_link", link.id_at(life)):
                    await self.end(link)
                    return False
        except (OverError, RefusedError):
            return False
        return True

    async def _calls_returned(self, link: Link, a: Life, b: Life) -> bool:
        """A call that was held up before it took its link would take the new one: whoever gave its blocks to
        somebody else meanwhile must not link before that call has returned."""
        while link.calls:
            if a.process.is_frozen or b.process.is_frozen or a.is_over or b.is_over:
                return False
            self._findings.recovered["waits for calls of an earlier link"] += 1
            await asyncio.wait(set(link.calls), timeout=0.1)
        return True

    async def _make(self, a: Life, b: Life) -> Link | None:
        give_up_at = time.monotonic() + LINKED_WITHIN_S
        said: list[str] = []
        try:
            while time.monotonic() < give_up_at:
                if a.process.is_frozen or b.process.is_frozen or a.is_over or b.is_over:
                    return None
                code = await a.ask("link", b.cluster_id, b.port, LINK_MS)
                if code == "LLM_SUCCESS":
                    ids = {a.cluster_id: await a.ask("link_id", b.cluster_id, 5.0)}
                    ids[b.cluster_id] = await b.ask("link_id", a.cluster_id, 5.0)
                    return Link(a, b, ids)
                if code == "LLM_ALREADY_LINK":  # that of an earlier life, or one whose other end has ended
                    await a.ask("unlink", b.cluster_id, b.port, True)
                said.append(code)
                await asyncio.sleep(0.05)
        except (OverError, RefusedError):
            return None
        frozen_since = max(a.process.thawed_at, b.process.thawed_at)
        if give_up_at - frozen_since > LINKED_WITHIN_S:
            self._findings.add(self._findings.hangs, f"{a} and {b} could not be linked: {said}")
        return None
