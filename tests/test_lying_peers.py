"""Peers that announce memory which they did not export: nothing of ours leaves what is really there."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.links import BLOCK_BYTES, BLOCKS, TENSORS, pattern, push, start, status_of
from tests.peers import Peer
from torch_llm_datadist import BlocksCacheKey, announcements, control, handshake, ops, wire
from torch_llm_datadist.announcements import Announcements
from torch_llm_datadist.emulator import faults

FAR = 1 << 40


def lie(state: SimpleNamespace, changes: dict[str, int]) -> None:
    """From now on this process announces segments with these values."""
    tell_truth = announcements.segment_record

    def record(segment: object, peer: object) -> wire.SegmentRecord:
        return msgspec.structs.replace(tell_truth(segment, peer), **changes)  # type: ignore[arg-type]

    announcements.segment_record = record  # type: ignore[assignment]


def lie_about_size(state: SimpleNamespace, factor: int) -> None:
    tell_truth = Announcements._export

    def export(self: Announcements, local: object, peer: object) -> wire.CacheRecord | None:
        record = tell_truth(self, local, peer)  # type: ignore[arg-type]
        if record is None:
            return None
        sizes = [size * factor for size in record.tensor_bytes]
        return msgspec.structs.replace(record, tensor_bytes=sizes, num_blocks=record.num_blocks * factor)

    Announcements._export = export  # type: ignore[method-assign]


def lie_about_page(state: SimpleNamespace, changes: dict[str, int]) -> None:
    tell_truth = handshake.segment_record

    def record(segment: object, peer: object) -> wire.SegmentRecord:
        return msgspec.structs.replace(tell_truth(segment, peer), **changes)  # type: ignore[arg-type]

    handshake.segment_record = record  # type: ignore[assignment]


def pull(state: SimpleNamespace, cluster_id: int, src: list[int], dst: list[int]) -> str:
    return status_of(lambda: instances.pull_blocks(state, cluster_id, src, dst))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": FAR}, f"a tensor of {BLOCKS * BLOCK_BYTES} bytes at offset {FAR} of an exported segment"),
        ({"offset": 2**63 - 1}, f"at offset {2**63 - 1} of an exported segment"),
    ],
)
def test_memory_outside_the_exported_segment_is_never_touched(
    peers: Callable[[int], list[Peer]], changes: dict[str, int], words: str
) -> None:
    liar, honest = peers(2)
    (other,) = peers(1)
    liar.call(lie, changes)
    liar.call(start, 1, 0, {})
    port = honest.call(start, 2, 1, {})
    other.call(start, 3, 0, {})
    assert liar.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert other.call(instances.link, 2, port) == ["LLM_SUCCESS"]

    for transfer in (push, pull):
        said = honest.call(transfer, 1, [0, 1], [2, 3])
        assert said.startswith("LLM_LINK_FAILED")
        assert words in said

    assert honest.call(push, 3, [0, 1], [2, 3]) == "LLM_SUCCESS"
    assert other.call(push, 2, [5], [6]) == "LLM_SUCCESS"
    assert liar.call(push, 2, [0, 1], [6, 7]) == "LLM_SUCCESS"  # what is told of ours is true


def test_a_cache_larger_than_its_segment_is_never_touched(peers: Callable[[int], list[Peer]]) -> None:
    factor = 1 << 20
    liar, honest = peers(2)
    liar.call(lie_about_size, factor)
    liar.call(start, 1, 0, {})
    port = honest.call(start, 2, 1, {})
    assert liar.call(instances.link, 2, port) == ["LLM_SUCCESS"]

    said = honest.call(push, 1, [0], [BLOCKS * factor - 1])

    assert said.startswith("LLM_LINK_FAILED")
    assert f"announced a tensor of {BLOCKS * BLOCK_BYTES * factor} bytes" in said
    assert "Nothing was sent; the link is still usable" in said
    assert liar.call(push, 2, [3], [4]) == "LLM_SUCCESS"
    assert honest.call(instances.content)[:, 4].equal(pattern(1)[:, 3])


@pytest.mark.parametrize("changes", [{"offset": FAR}, {"kind": 1}, {"kind": 2, "address": 4096}])
def test_a_page_outside_the_exported_segment_makes_no_link(
    peers: Callable[[int], list[Peer]], changes: dict[str, int]
) -> None:
    liar, honest, other = peers(3)
    liar.call(lie_about_page, changes)
    liar.call(start, 1, 0, {})
    port = honest.call(start, 2, 1, {})
    other.call(start, 3, 0, {})

    assert liar.call(instances.link, 2, port) == ["LLM_LINK_FAILED"]

    assert other.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert other.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def lie_about_proofs(state: SimpleNamespace, changes: dict[str, int]) -> None:
    tell_truth = handshake.Handshake._open_link

    def open_link(self: handshake.Handshake, peer: object) -> tuple[wire.SegmentRecord, wire.SegmentRecord]:
        page, proofs = tell_truth(self, peer)  # type: ignore[arg-type]
        assert proofs is not None
        return page, msgspec.structs.replace(proofs, **changes)

    handshake.Handshake._open_link = open_link  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "changes", [{"offset": FAR}, {"offset": 2**63 - 1}, {"kind": 1}, {"kind": 2, "address": 4096}]
)
def test_proofs_outside_the_exported_segment_make_no_link(
    peers: Callable[[int], list[Peer]], changes: dict[str, int]
) -> None:
    liar, honest, other = peers(3)
    verifies = {"verify_blocks": True}
    liar.call(lie_about_proofs, changes)
    liar.call(start, 1, 0, verifies)
    port = honest.call(start, 2, 1, verifies)
    other.call(start, 3, 0, verifies)

    assert liar.call(instances.link, 2, port) == ["LLM_LINK_FAILED"]

    assert other.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert other.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def take_a_cache_for_proofs(state: SimpleNamespace) -> None:
    """So this process says of its tickets that they are proven, to whoever never asked for it."""
    connect = handshake.Handshake._connect

    def lied_to(self: handshake.Handshake, peer: object, message: wire.Join | wire.Joined) -> None:
        proofs = message.caches[0].segments[0]
        connect(self, peer, msgspec.structs.replace(message, proofs=proofs))  # type: ignore[arg-type]

    handshake.Handshake._connect = lied_to  # type: ignore[method-assign]


def start_with_large_segments(state: SimpleNamespace) -> int:
    port = instances.start(state, 2, 1)
    instances.register(state, 2, TENSORS, BLOCKS, BLOCK_BYTES, apart=True)
    return port


def prepare_direct(state: SimpleNamespace) -> int:
    manager = state.datadist.cache_manager
    state.task = manager.prepare_push(BlocksCacheKey(2), state.cache, [0, 3], [0, 3], packed=False)
    return state.task.ticket  # type: ignore[no-any-return]


def receive(state: SimpleNamespace, ticket: int) -> int:
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(1))
    binding.bind([ticket], timeout_s=4.0)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")
    ops.wait_layer(status, status, 0, binding.id)
    torch.npu.synchronize()
    return int(status.item()) & 0xFFFFFFFF


def test_a_ticket_said_to_be_proven_to_who_does_not_verify_ends_in_time(
    peers: Callable[[int], list[Peer]],
) -> None:
    liar, honest, other = peers(3)
    liar.call(take_a_cache_for_proofs)
    liar.call(start, 1, 0, {"verify_blocks": True})
    port = honest.call(start_with_large_segments)
    other.call(start, 3, 0, {})
    assert liar.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert other.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    ticket = liar.call(prepare_direct)
    liar.send(send)

    assert honest.call(receive, ticket) == int(datadist.LLMStatusCode.LLM_TIMEOUT)

    assert liar.answer()[0] == "LLM_FAILED"
    assert other.call(push, 2, [0], [1]) == "LLM_SUCCESS"


def lie_about_staging(state: SimpleNamespace, changes: dict[str, int], size: int | None) -> None:
    tell_truth = control.segment_record
    announce = control.Control.announce_staging

    def record(segment: object, peer: object) -> wire.SegmentRecord:
        return msgspec.structs.replace(tell_truth(segment, peer), **changes)  # type: ignore[arg-type]

    def announce_more(self: control.Control, link: int, memory: object, size_bytes: int) -> None:
        announce(self, link, memory, size or size_bytes)  # type: ignore[arg-type]

    control.segment_record = record  # type: ignore[assignment]
    control.Control.announce_staging = announce_more  # type: ignore[method-assign]


def prepare_packed(state: SimpleNamespace, cluster_id: int) -> int:
    key = BlocksCacheKey(cluster_id)
    manager = state.datadist.cache_manager
    state.task = manager.prepare_push(key, state.cache, [0, 3], [0, 3], packed=True)
    return state.task.ticket  # type: ignore[no-any-return]


def expect(state: SimpleNamespace, ticket: int) -> None:
    torch.npu.set_device(state.device)
    assert state.datadist.cache_manager.expect(ticket, [5, 1])


def send(state: SimpleNamespace) -> tuple[str, str]:
    torch.npu.set_device(state.device)
    binding = datadist.Binding(state.device, range(1))
    binding.bind([state.task], timeout_s=15.0)
    status = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")
    ops.push_layer(status, status, 0, binding.id)
    ops.finish(status, status, binding.id)
    torch.npu.synchronize()
    found = state.task.state()
    return datadist.LLMStatusCode(found.code).name, found.detail


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"offset": FAR}, None),
        ({"offset": 2**63 - 1}, None),
        ({}, FAR),
        ({}, 2**63 - 1),
        ({"kind": 1}, None),
        ({"kind": 2, "address": 4096}, None),
    ],
    ids=["far off", "farther", "larger", "much larger", "of the host", "private"],
)
def test_staging_outside_the_exported_segment_is_never_touched(
    peers: Callable[[int], list[Peer]], changes: dict[str, int], size: int | None
) -> None:
    liar, honest = peers(2)
    liar.call(lie_about_staging, changes, size)
    liar.call(start, 1, 0, {})
    port = honest.call(start, 2, 1, {})
    assert liar.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    liar.call(expect, honest.call(prepare_packed, 1))

    code, detail = honest.call(send)

    assert code == "LLM_LINK_FAILED"
    assert "Nothing was sent; the link is still usable" in detail
    assert liar.call(instances.content).equal(pattern(1))
    assert honest.call(push, 1, [0, 1], [2, 3]) == "LLM_SUCCESS"
    assert liar.call(push, 2, [3], [4]) == "LLM_SUCCESS"


def refuse_while_a_stream_stands(state: SimpleNamespace) -> tuple[str, bool]:
    """How a task ends whose memory is refused, and whether the current stream stood all the while."""
    torch.npu.set_device(state.device)
    stream = torch.npu.current_stream()
    word = torch.zeros(1, dtype=torch.int32, device=f"npu:{state.device}")
    torch.npu.synchronize()
    binding = datadist.Binding(state.device, range(1))
    faults.freeze_stream(stream)
    try:
        word.fill_(1)
        binding.bind([state.task], timeout_s=60.0)
        deadline = time.monotonic() + 20
        while not (found := state.task.state()).has_ended and time.monotonic() < deadline:
            time.sleep(0.001)
        stood = not stream.query()
    finally:
        faults.thaw_stream(stream)
    torch.npu.synchronize()
    return datadist.LLMStatusCode(found.code).name, stood


def test_what_is_refused_is_unmapped_without_waiting_for_the_callers_stream(
    peers: Callable[[int], list[Peer]],
) -> None:
    """Which may wait for that very refusal, in the end of its forward."""
    liar, honest = peers(2)
    liar.call(lie_about_staging, {"offset": FAR}, None)
    liar.call(start, 1, 0, {})
    port = honest.call(start, 2, 1, {})
    assert liar.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    liar.call(expect, honest.call(prepare_packed, 1))

    assert honest.call(refuse_while_a_stream_stands) == ("LLM_LINK_FAILED", True)
