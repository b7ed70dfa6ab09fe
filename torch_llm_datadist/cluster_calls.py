"""What the calls that name clusters have in common: their arguments read, their answers put together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from . import checks
from .cluster import LLMClusterInfo, endpoint, parse_endpoint
from .errors import LLMException, LLMStatusCode
from .handshake import Target
from .messages import failure, refusal

logger = logging.getLogger("torch_llm_datadist")


def read_clusters(asked: str, clusters: object) -> list[LLMClusterInfo]:
    if not isinstance(clusters, (list, tuple)):
        raise refusal(
            "bad_type", name=f"{asked}: clusters", value=repr(clusters), expected="a list of LLMClusterInfo"
        )
    return [
        checks.instance(f"{asked}: clusters[{i}]", entry, LLMClusterInfo) for i, entry in enumerate(clusters)
    ]


def cluster_ids_of(asked: str, entries: Sequence[LLMClusterInfo]) -> list[int]:
    return [
        checks.uint64(f"{asked}: clusters[{i}].remote_cluster_id", entry.remote_cluster_id)
        for i, entry in enumerate(entries)
    ]


def overall(
    asked: str, entries: Sequence[LLMClusterInfo], codes: list[LLMStatusCode]
) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
    if not entries:
        return LLMStatusCode.LLM_PARAM_INVALID, []
    for entry, code in zip(entries, codes, strict=True):
        if code == LLMStatusCode.LLM_PARAM_INVALID and len(entry.remote_addresses) != 1:
            logger.warning("%s: %r has not exactly one remote address (append_remote_ip_info)", asked, entry)
    failed = [code for code in codes if code != LLMStatusCode.LLM_SUCCESS]
    return (failed[-1] if failed else LLMStatusCode.LLM_SUCCESS), codes


def read_group(asked: str, ranks: Mapping[int, str]) -> list[Target]:
    given = checks.instance(f"{asked}: ranks", ranks, dict, what="a dict of cluster_id to address")
    if not given:
        raise refusal("bad_value", name=f"{asked}: ranks", value="empty", expected="at least one")
    return [
        Target(
            checks.uint64(f"{asked}: cluster_id", cluster_id),
            *parse_endpoint(f"{asked}: ranks[{cluster_id}]", address),
        )
        for cluster_id, address in given.items()
    ]


def group_failure(asked: str, failed: Sequence[tuple[Target, LLMStatusCode]], undone: int) -> LLMException:
    """What to raise when a group was not linked: with the code of the first rank that failed."""
    each = ", ".join(
        f"cluster {t.cluster_id} at {endpoint(t.ip, t.port)} ({code.name})" for t, code in failed
    )
    return failure(failed[0][1], "group_not_linked", asked=asked, value=each, undone=undone)
