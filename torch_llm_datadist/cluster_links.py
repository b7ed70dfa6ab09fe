"""The part of ``LLMDataDist`` that links to instances which listen: one-sided links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from . import checks
from .cluster import LLMClusterInfo
from .cluster_calls import cluster_ids_of, group_failure, overall, read_clusters, read_group
from .errors import LLMStatusCode, NotYetLinkError
from .handshake import Target
from .instance_calls import InstanceCalls
from .link_table import LinkInfo
from .messages import refusal


class ClusterLinks(InstanceCalls):
    def link_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, *, fenced: bool = False
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Links to listening instances, all at the same time.

        Failures are returned, and logged with their reasons on the logger ``torch_llm_datadist``. A peer that
        does not listen yet is tried again until the timeout.

        Args:
            clusters: for each peer its cluster_id and its one remote address; while ``local_comm_res`` is
                empty or not set, also one local address.
            timeout: int32, > 0, in milliseconds, for the whole call.
            fenced: either end writes to staging of the other only, never to a block, so that what a lost
                peer still had queued reaches none. Only tickets that are expected travel on such a link
                (``CacheManager.expect``); a one-sided push or pull raises. Not in the original.

        Returns:
            The status of the last entry that failed, or ``LLM_SUCCESS``, and one status per entry:
            ``LLM_ALREADY_LINK``; ``LLM_PROCESSING_LINK`` while the same link is being made;
            ``LLM_LINK_FAILED`` when nobody answers or the two cannot be linked; ``LLM_TIMEOUT`` when the
            handshake was begun but did not end; ``LLM_PARAM_INVALID`` when the two ends are set up
            differently, another cluster listens there, or an entry has not exactly one remote address. An
            empty list gives ``(LLM_PARAM_INVALID, [])``.

        Raises:
            TypeError, ValueError, LLMException: bad arguments.

        Source: manual page link_clusters.

        >>> prefill.link_clusters([peer])  # linked before
        (<LLMStatusCode.LLM_ALREADY_LINK: 1343270920>, [<LLMStatusCode.LLM_ALREADY_LINK: 1343270920>])
        """
        running = self._initialised()
        asked = "link_clusters"
        entries = read_clusters(asked, clusters)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        checks.boolean(f"{asked}: fenced", fenced)
        for i, entry in enumerate(entries):
            if running.options.needs_local_ip and len(entry.local_ip_info_list) != 1:
                raise refusal(
                    "local_address_is_missing", asked=asked, at=i, value=len(entry.local_ip_info_list)
                )
        ids = cluster_ids_of(asked, entries)
        is_good = [len(entry.remote_addresses) == 1 for entry in entries]
        targets = [
            Target(cluster_id, *entry.remote_addresses[0], fenced=fenced)
            for cluster_id, entry, good in zip(ids, entries, is_good, strict=True)
            if good
        ]
        if running.each_end_links is not None:
            codes = running.each_end_links.link(running.links, targets, timeout_ms / 1000)
        else:
            codes = running.links.link(targets, timeout_ms / 1000)
        answers = iter(codes)
        return overall(
            asked, entries, [next(answers) if good else LLMStatusCode.LLM_PARAM_INVALID for good in is_good]
        )

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, force: bool = False
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Ends links. A link that is not there counts as ended.

        Without ``force`` running blocking transfers may end first, and the peer closes its end before this
        one is closed; ``LLM_UNLINK_FAILED`` when it does not answer in time, and the link stays. With
        ``force`` this end is closed at once.

        Args:
            clusters: for each peer its cluster_id, and without ``force`` its one remote address.
            timeout: int32, > 0, in milliseconds, for the whole call.

        Returns, raises: as ``link_clusters``.

        Source: manual page unlink_clusters.
        """
        running = self._initialised()
        asked = "unlink_clusters"
        entries = read_clusters(asked, clusters)
        timeout_ms = checks.timeout_ms(f"{asked}: timeout", timeout)
        checks.boolean(f"{asked}: force", force)
        ids = cluster_ids_of(asked, entries)
        if running.each_end_links is not None:  # it never asked for an address, and never for the peer
            force = True
            running.each_end_links.unlinked(ids)
        is_good = [force or len(entry.remote_addresses) == 1 for entry in entries]
        wanted = [cluster_id for cluster_id, good in zip(ids, is_good, strict=True) if good]
        answers = iter(running.links.unlink(wanted, timeout_ms / 1000, force))
        return overall(
            asked, entries, [next(answers) if good else LLMStatusCode.LLM_PARAM_INVALID for good in is_good]
        )

    # Not in the original.

    def link_id(self, cluster_id: int) -> int:
        """The native handle of the link to a cluster; ``NotYetLinkError`` without one. For ``ops``."""
        running = self._initialised()
        return running.links.table.get(checks.uint64("link_id: cluster_id", cluster_id), "link_id").handle

    def link_group(self, ranks: Mapping[int, str], timeout: int = 3000) -> None:
        """Links to all ranks of a peer's tensor-parallel group at the same time: to all of them or to none.

        A rank that is linked already stays so. When one fails, the links that this call made are ended again.

        Args:
            ranks: cluster_id → address at which that rank listens, ``"ip:port"`` or ``"[ipv6]:port"``.
            timeout: int32, > 0, in milliseconds, for the whole call.

        Raises:
            TypeError, ValueError: wrong types.
            LLMException: ``LLM_PARAM_INVALID`` for an empty group or a bad address; else the code of the
                first rank that failed, in the order of ``ranks``.

        >>> ranks = [start(cluster_id=10 + rank, device=rank) for rank in range(2)]
        >>> prefill.link_group({r.cluster_id: f"127.0.0.1:{r.listen_port}" for r in ranks}, timeout=10_000)
        >>> sorted(link.cluster_id for link in prefill.links())
        [2, 10, 11]
        >>> for rank in ranks:
        ...     rank.finalize()
        """
        running = self._initialised()
        asked = "link_group"
        targets = read_group(asked, ranks)
        timeout_s = checks.timeout_ms(f"{asked}: timeout", timeout) / 1000
        codes = running.links.link(targets, timeout_s)
        good = (LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_ALREADY_LINK)
        failed = [(target, code) for target, code in zip(targets, codes, strict=True) if code not in good]
        if not failed:
            return
        made = [
            t.cluster_id for t, code in zip(targets, codes, strict=True) if code == LLMStatusCode.LLM_SUCCESS
        ]
        running.links.unlink(made, timeout_s, force=True)
        raise group_failure(asked, failed, len(made))

    def wait_linked(self, cluster_ids: Iterable[int], timeout_s: float = 30.0) -> None:
        """Blocks until there is a link to each of the clusters, whoever makes it.

        Raises:
            TypeError, ValueError: wrong types, or no time that can pass.
            TimeoutExceededError: naming the clusters that are missing.

        >>> decode.wait_linked([1], timeout_s=5)
        """
        running = self._initialised()
        if not isinstance(cluster_ids, Iterable) or isinstance(cluster_ids, (str, bytes)):
            raise refusal(
                "bad_type",
                name="wait_linked: cluster_ids",
                value=checks.shown(cluster_ids),
                expected="a list of cluster ids",
            )
        wanted = [checks.uint64(f"wait_linked: cluster_ids[{i}]", c) for i, c in enumerate(cluster_ids)]
        timeout_ms = checks.seconds_as_ms("wait_linked: timeout_s", timeout_s)
        running.links.table.wait_linked(wanted, timeout_ms / 1000)

    def links(self) -> list[LinkInfo]:
        """The links there are, and their states; one whose peer has died may be there for 0.1 s as "lost".

        >>> [(link.cluster_id, link.state) for link in prefill.links()]
        [(2, 'linked')]
        """
        running = self._initialised()
        found = []
        for info in running.links.table.infos():
            with suppress(NotYetLinkError):  # it has ended meanwhile
                is_alive = running.instance.link_status(info.link)[0]
                found.append(info if is_alive else replace(info, state="lost"))
        return found

    def metrics(self) -> list[dict[str, str | int]]:
        """What went over each link that there is, for a monitoring system; counted by this end.

        Of each link: ``cluster_id``, ``link``, ``state`` and ``transport`` as in ``links``; ``transfers``,
        which this end began and which have ended, one per push, pull or task; ``failures``, as many of them
        as failed; ``bytes``, of those that did not; ``in_doubt``, the entries of ``blocks_in_doubt`` that
        are of this link. A link's counters begin at 0 and end with it.

        >>> [(each["cluster_id"], each["transport"]) for each in prefill.metrics()]
        [(2, 'mapped')]
        """
        running = self._initialised()
        doubts = Counter(doubt.link for doubt in running.cache_manager.blocks_in_doubt())
        found: list[dict[str, str | int]] = []
        for info in self.links():
            try:
                transfers, failures, moved = running.instance.link_counters(info.link)
            except NotYetLinkError:  # it has ended meanwhile
                continue
            found.append(
                {
                    "cluster_id": info.cluster_id,
                    "link": info.link,
                    "state": info.state,
                    "transport": info.transport,
                    "transfers": transfers,
                    "failures": failures,
                    "bytes": moved,
                    "in_doubt": doubts[info.link],
                }
            )
        return found
