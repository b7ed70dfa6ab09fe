"""``tag=`` of a push: whatever becomes of it, the receiver's ``wait_arrival`` is answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .arrivals import Tag
from .errors import LLMException, LLMStatusCode
from .link import LinkService


@contextmanager
def tagged(links: LinkService, cluster_id: int, tag: Tag | None) -> Iterator[None]:
    """Around a blocking push whose arguments have been checked.

    Args:
        tag: as ``arrivals.read_tag`` gives it; None: the receiver is not told.
    """
    try:
        yield
    except LLMException as error:
        if tag is not None:
            links.tell_pushed(cluster_id, tag, int(error.status_code), str(error))
        raise
    if tag is not None:
        links.tell_pushed(cluster_id, tag, LLMStatusCode.LLM_SUCCESS, "")
