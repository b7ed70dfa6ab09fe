"""Tagged pushes as the receiver learns of them: the sender says so once the bytes have landed."""

from __future__ import annotations

import logging
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
_MAX_UNCLAIMED = 65536  # per cluster


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
        self._linked: set[int] = set()

    # For the control thread.

    def linked(self, cluster_id: int) -> None:
        """What an earlier link brought is nobody's any more: its tags are those of another generation."""
        with self._changed:
            self._linked.add(cluster_id)
            self._unclaimed.pop(cluster_id, None)

    def ended(self, cluster_id: int) -> None:
        with self._changed:
            self._linked.discard(cluster_id)
            self._changed.notify_all()

    def add(self, cluster_id: int, tag: Tag, code: int, detail: str) -> None:
        with self._changed:
            unclaimed = self._unclaimed.setdefault(cluster_id, OrderedDict())
            unclaimed[tag] = (code, detail)
            if len(unclaimed) > _MAX_UNCLAIMED:
                lost, _ = unclaimed.popitem(last=False)
                logger.warning(
                    "cluster %d has pushed %d tags that nobody waits for; forgetting tag %r",
                    cluster_id,
                    _MAX_UNCLAIMED,
                    lost,
                )
            self._changed.notify_all()

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
            code, detail = self._unclaimed[cluster_id].pop(tag)
        if code != LLMStatusCode.LLM_SUCCESS:
            raise class_for_code(code)(f"{asked}: cluster {cluster_id} said of tag {tag!r}: {detail}")

    def _has(self, cluster_id: int, tag: Tag) -> bool:
        return tag in self._unclaimed.get(cluster_id, ())
