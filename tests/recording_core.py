"""A stand-in for the native instance that moves no bytes: for tests of the control messages only."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from torch_llm_datadist.cache import Cache, CacheDesc
from torch_llm_datadist.data_type import DataType
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.identity import Identity, own_identity
from torch_llm_datadist.link import LinkService
from torch_llm_datadist.link_keys import LinkKeys
from torch_llm_datadist.registry import CacheRegistry, LocalCache

_handles = itertools.count(1)
_ends: dict[int, RecordingLink] = {}


@dataclass
class Segment:
    handle: bytes
    offset: int
    address: int
    kind: int = 0


@dataclass
class RecordingLink:
    peer_cluster_id: int
    peer_link: int = 0
    is_closed: bool = False
    death: str = ""
    remote_caches: dict[int, SimpleNamespace] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    in_use: set[int] = field(default_factory=set)


class RecordingInstance:
    """Knows what it was told. Both ends of a link are in this process and find each other by handle."""

    def __init__(self) -> None:
        self.links: dict[int, RecordingLink] = {}
        self.released: list[int] = []
        self.in_use: set[int] = set()
        self.fail_next_open: Exception | None = None
        self.has_released = threading.Event()
        self.exports = 0

    def export_cache(self, cache_id: int, link: int) -> list[Segment]:
        self.exports += 1
        return [Segment(b"cache", 64 * i, 4096 + i) for i in range(2)]

    def withdraw_cache(self, cache_id: int) -> None:
        pass

    def is_cache_in_use(self, cache_id: int) -> bool:
        return cache_id in self.in_use

    def release_cache(self, cache_id: int) -> None:
        self.released.append(cache_id)
        self.has_released.set()

    def open_link(
        self,
        cluster_id: int,
        name: str,
        device: int,
        pid: int,
        start_time: int,
        in_this_process: bool,
        is_fenced: bool = False,
        is_on_this_host: bool = True,
        is_in_this_super_pod: bool = True,
        transport: str = "mapped",
    ) -> tuple[int, Segment]:
        if self.fail_next_open is not None:
            error, self.fail_next_open = self.fail_next_open, None
            raise error
        handle = next(_handles)
        self.links[handle] = _ends[handle] = RecordingLink(cluster_id)
        return handle, Segment(b"page", 0, handle)

    def link_address(self, link: int) -> bytes:
        return b""

    def connect_link(
        self,
        link: int,
        peer_link: int,
        page: Segment,
        transport_address: bytes = b"",
        peer_proofs: Segment | None = None,
    ) -> None:
        self.links[link].peer_link = peer_link

    def export_proofs(self, link: int) -> Segment | None:
        return None

    def add_remote_cache(
        self,
        link: int,
        cache_id: int,
        model_id: int | None,
        is_blocks: bool,
        num_blocks: int,
        tensor_bytes: Sequence[int],
        segments: Sequence[Segment],
        receives: bool = True,
    ) -> None:
        self.links[link].remote_caches[cache_id] = SimpleNamespace(
            model_id=model_id,
            is_blocks=is_blocks,
            num_blocks=num_blocks,
            tensor_bytes=list(tensor_bytes),
            segments=list(segments),
        )

    def drop_remote_cache(self, link: int, cache_id: int) -> None:
        self.links[link].dropped.add(cache_id)

    def is_remote_cache_in_use(self, link: int, cache_id: int) -> bool:
        return cache_id in self.links[link].in_use

    def link_status(self, link: int) -> tuple[bool, int, str]:
        end = self.links[link]
        peer = _ends.get(end.peer_link)
        if end.death:
            return False, int(LLMStatusCode.LLM_LINK_FAILED), end.death
        if peer is not None and peer.is_closed:
            return False, int(LLMStatusCode.LLM_NOT_YET_LINK), "the peer closed the link"
        return True, 0, ""

    def cut_off_of(self, link: int) -> Callable[[], bool]:
        return lambda: False

    def close_link(self, link: int, patience_ms: int | None = None) -> None:
        self.links[link].is_closed = True

    def open_links(self) -> list[RecordingLink]:
        return [end for end in self.links.values() if not end.is_closed]


class Node:
    """An instance without a device: its control plane is real, its native core is not."""

    def __init__(
        self, cluster_id: int, *, listens: bool = False, keys: LinkKeys | None = None, **identity: object
    ) -> None:
        self.native = RecordingInstance()
        self.registry = CacheRegistry()
        own = own_identity(cluster_id, 0, remote_accessible=True, cann="test", authenticated=keys is not None)
        self.identity = Identity(**{**{f: getattr(own, f) for f in own.__struct_fields__}, **identity})
        self.links = LinkService(self.native, Segment, self.identity, self.registry, keys)  # type: ignore[arg-type]
        self.port = self.links.listen("127.0.0.1", 0) if listens else 0

    def register(
        self, cache_id: int, model_id: int | None = 0, *, remote_accessible: bool = True
    ) -> LocalCache:
        desc = CacheDesc(2, [4, 8], DataType.DT_INT8)
        cache = Cache(cache_id, desc, [4096, 8192], True, remote_accessible=remote_accessible)
        local = LocalCache(cache, model_id, desc.tensor_sizes)
        self.registry.add(local)
        self.links.announce(local)
        return local

    def unregister(self, cache_id: int) -> None:
        held = self.registry.withdraw(cache_id)
        assert held is not None
        self.links.withdraw(held)

    def only_silent(self) -> dict[int, None]:
        """Connections to its only listener that no message came from."""
        (door,) = self.links._control._gatekeeper._doors.values()
        return door.silent

    def only_link(self) -> RecordingLink:
        (end,) = self.native.open_links()
        return end
