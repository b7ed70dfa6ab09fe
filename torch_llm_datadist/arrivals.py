"""Tagged pushes as the receiver learns of them: the sender says so once the bytes have landed."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from typing import TypeAlias

from . import checks
from .errors import LLMStatusCode, class_for_code
from .messages import refusal

logger = logging.getLogger("torch_llm_datadist")

Tag: TypeAlias = "str | int"

MAX_TAG_CHARACTERS = 256
# Of one cluster, that nobody has waited for; the oldest are forgotten.
MAX_UNCLAIMED = 65536
MAX_UNCLAIMED_BYTES = 32 * 2**20
MAX_UNLINKED = 64  # clusters without a link whose tags are kept
_ENTRY_BYTES = 256  # of a tag, besides its text


def read_tag(asked: str, tag: object) -> Tag:
    """A str of 1 to 256 characters, or a uint64."""
    if isinstance(tag, str):
        if not 1 <= len(tag) <= MAX_TAG_CHARACTERS:
            raise refusal("tag_of_wrong_length", asked=asked, value=len(tag), high=MAX_TAG_CHARACTERS)
        return checks.utf8(f"{asked}: tag", tag)
    if not checks.is_integer(tag):
        raise refusal(
            "wrong_type",
            name=f"{asked}: tag",
            value=repr(tag),
            type=type(tag).__name__,
            expected="a str or an int",
        )
    return checks.uint64(f"{asked}: tag", tag)


class Arrivals:
    """Thread-safe. The control thread writes, callers wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._unclaimed: dict[int, OrderedDict[Tag, tuple[int, str]]] = {}
        self._bytes: dict[int, int] = {}  # of those
        self._forgotten: dict[int, int] = {}  # tags, of those clusters
        self._linked: set[int] = set()

    # For the control thread.

    def linked(self, cluster_id: int) -> None:
        """What an earlier link brought is nobody's any more: its tags are those of another generation."""
        with self._changed:
            self._linked.add(cluster_id)
            self._drop(cluster_id)

    def ended(self, cluster_id: int) -> None:
        with self._changed:
            self._linked.discard(cluster_id)
            unlinked = [known for known in self._unclaimed if known not in self._linked]
            for oldest in unlinked[: max(0, len(unlinked) - MAX_UNLINKED)]:
                self._drop(oldest)
            self._changed.notify_all()

    def add(self, cluster_id: int, tag: Tag, code: int, detail: str) -> None:
        with self._changed:
            unclaimed = self._unclaimed.setdefault(cluster_id, OrderedDict())
            if tag in unclaimed:
                self._take(cluster_id, tag)
            unclaimed[tag] = (code, detail)
            self._bytes[cluster_id] = self._bytes.get(cluster_id, 0) + _bytes_of(tag, detail)
            while len(unclaimed) > MAX_UNCLAIMED or self._bytes[cluster_id] > MAX_UNCLAIMED_BYTES:
                self._forget(cluster_id, next(iter(unclaimed)))
            self._changed.notify_all()

    def _forget(self, cluster_id: int, tag: Tag) -> None:
        self._take(cluster_id, tag)
        forgotten = self._forgotten[cluster_id] = self._forgotten.get(cluster_id, 0) + 1
        if forgotten & (forgotten - 1) == 0:  # a peer that floods us is not to flood the log, too
            logger.warning(
                "cluster %d has pushed more tags that nobody waits for than are kept (%d, of %d bytes); "
                "forgetting tag %r, %d so far",
                cluster_id,
                MAX_UNCLAIMED,
                MAX_UNCLAIMED_BYTES,
                tag,
                forgotten,
            )

    def _take(self, cluster_id: int, tag: Tag) -> tuple[int, str]:
        code, detail = self._unclaimed[cluster_id].pop(tag)
        self._bytes[cluster_id] -= _bytes_of(tag, detail)
        return code, detail

    def _drop(self, cluster_id: int) -> None:
        self._unclaimed.pop(cluster_id, None)
        self._bytes.pop(cluster_id, None)
        self._forgotten.pop(cluster_id, None)

    # For callers.

    def wait(self, cluster_id: int, tag: Tag, timeout_s: float) -> None:
        """Takes the tag; ``NotYetLinkError`` when it cannot come any more, ``TimeoutExceededError``, or what
        the push ended with."""
        asked = "wait_arrival"
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(
                lambda: self._has(cluster_id, tag) or cluster_id not in self._linked,
                max(0.0, deadline - time.monotonic()),
            )
            if not self._has(cluster_id, tag):
                if cluster_id not in self._linked:
                    why = f", and tag {tag!r} has not arrived"
                    raise refusal("no_link_to_cluster", asked=asked, value=cluster_id, why=why)
                raise refusal(
                    "tag_is_late", asked=asked, value=repr(tag), cluster_id=cluster_id, timeout=timeout_s
                )
            code, detail = self._take(cluster_id, tag)
        if code != LLMStatusCode.LLM_SUCCESS:
            raise class_for_code(code)(f"{asked}: cluster {cluster_id} said of tag {tag!r}: {detail}")

    def _has(self, cluster_id: int, tag: Tag) -> bool:
        return tag in self._unclaimed.get(cluster_id, ())


def _bytes_of(tag: Tag, detail: str) -> int:
    return _ENTRY_BYTES + sys.getsizeof(tag) + sys.getsizeof(detail)
