"""Caches registered with ``receives=False``: nothing writes into them, so a push may send from what a
compiler made of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch._inductor import config as inductor_config

import torch_llm_datadist as datadist
from tests import paged_forwards as forwards
from tests.paged_forwards import NUM_BLOCKS, Side
from tests.streams import standing_still
from tests.test_compiled_forwards import QUICK_INDUCTOR
from tests.transfers import until
from torch_llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, announcements, ops

REFUSED = "was registered with receives=False"
Sides = tuple[Side, Side]


def linked(*, on_host: bool = False) -> Sides:
    """The first sends only."""
    made = Side(1, 0, on_host=on_host, receives=False), Side(2, 1, on_host=on_host)
    made[0].link(made[1])
    return made


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    made = linked()
    yield made
    for side in made:
        side.datadist.finalize()


@pytest.fixture(scope="module")
def host_sides() -> Iterator[Sides]:
    made = linked(on_host=True)
    yield made
    for side in made:
        side.datadist.finalize()


def copies_of(side: Side) -> list[torch.Tensor]:
    return [torch.full_like(tensor, 5 + i) for i, tensor in enumerate(side.tensors)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_graph_that_writes_the_cache_sends_what_it_wrote(
    request: pytest.FixtureRequest, backend: str
) -> None:
    """The op is handed a copy, which these compilers write back at the end."""
    here, there = request.getfixturevalue("host_sides" if backend == "inductor" else "sides")
    link = here.datadist.link_id(2)
    addresses = [tensor.data_ptr() for tensor in here.tensors]

    def step(
        x: torch.Tensor, tensors: list[torch.Tensor], src: torch.Tensor, dst: torch.Tensor
    ) -> torch.Tensor:
        for i, tensor in enumerate(tensors):
            tensor.copy_((x + i).expand_as(tensor))
        ops.push_blocks(here.status, tensors, src, dst, link=link)
        return x + 1

    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True), inductor_config.patch(QUICK_INDUCTOR):
        compiled = torch.compile(step, backend=backend, fullgraph=True)
        for value, (src, dst) in enumerate([([0, 3], [5, 2]), ([1, 4], [7, 5])], start=1):
            there.clear()
            x = torch.full((1, 1, *forwards.ROW), float(value), device=here.device)
            with torch.compiler.set_stance("default" if value == 1 else "fail_on_recompile"):
                result = compiled(x, here.tensors, torch.tensor(src), torch.tensor(dst))

            assert here.status.item() == 0
            assert torch.equal(result, x + 1)
            for i, (sent, got) in enumerate(zip(here.tensors, there.tensors, strict=True)):
                assert bool((sent == value + i).all())
                expected = torch.zeros_like(got)
                expected[dst] = value + i
                assert torch.equal(got, expected), i
    assert addresses == [tensor.data_ptr() for tensor in here.tensors]
    torch._dynamo.reset()


def test_push_cache_sends_an_entry_of_a_copy(sides: Sides) -> None:
    here, there = sides
    desc = CacheDesc(2, [2, 16], DataType.DT_FLOAT)
    kinds = ((here, False), (there, True))
    tensors = [[torch.zeros(2, 16, device=side.device) for _ in range(2)] for side, _ in kinds]
    caches = [
        side.datadist.cache_manager.register_cache(desc, each, remote_accessible=True, receives=receives)
        for (side, receives), each in zip(kinds, tensors, strict=True)
    ]
    assert here.datadist._running.links.sync(2, 10)
    copies = [torch.full_like(tensor, 3 + i) for i, tensor in enumerate(tensors[0])]

    ops.push_cache(
        here.status,
        copies,
        link=here.datadist.link_id(2),
        cache_id=caches[1].cache_id,
        src_batch=1,
        dst_batch=0,
    )

    assert here.status.item() == 0
    for i, tensor in enumerate(tensors[1]):
        assert tensor.cpu()[:, 0].tolist() == [3 + i, 0]
    for (side, _), cache in zip(kinds, caches, strict=True):
        side.datadist.cache_manager.unregister_cache(cache.cache_id)


def test_a_copy_is_held_until_it_was_sent_and_let_go_by_the_next(sides: Sides) -> None:
    here, _ = sides
    ids, link = torch.tensor([0]), here.datadist.link_id(2)

    def send() -> list[int]:
        """Where the copy lies that nobody here holds any more."""
        copies = copies_of(here)
        ops.push_blocks(here.status, copies, ids, ids, link=link)
        return [copy.data_ptr() for copy in copies]

    def taken() -> int:
        gc.collect()
        return torch.npu.memory_allocated(0)

    torch.npu.synchronize(0)
    with pytest.raises(LLMException):  # lets go of what was sent before, by other tests
        ops.push_blocks(here.status, copies_of(here)[1:], ids, ids, link=link)
    with standing_still():  # so it is not sent
        sent = send()
        first = taken()
        assert set(sent) <= taken_addresses()
    for _ in range(10):
        send()

    def taken_after_another() -> int:
        torch.npu.synchronize(0)
        assert here.status.item() == 0
        send()
        return taken()

    # All before it are given back, once they are through.
    until(lambda: taken_after_another() <= first)


def taken_addresses() -> set[int]:
    blocks = [block for segment in torch.npu.memory_snapshot() for block in segment["blocks"]]
    return {block["address"] for block in blocks if block["state"] == "active_allocated"}


def of_another_shape(side: Side) -> list[torch.Tensor]:
    return [torch.zeros(NUM_BLOCKS + 1, *tensor.shape[1:], device=side.device) for tensor in side.tensors]


UNKNOWN = {
    "another shape": of_another_shape,
    "fewer": lambda side: copies_of(side)[1:],
    "not contiguous": lambda side: [t.transpose(1, 2).contiguous().transpose(1, 2) for t in side.tensors],
    "on another device": lambda side: [tensor.cpu() for tensor in side.tensors],
    "in another order": lambda side: side.tensors[::-1],
    "some of it registered": lambda side: [*copies_of(side)[:-1], side.tensors[0]],
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_no_copy_of_the_cache_is_refused(sides: Sides, kind: str) -> None:
    here, _ = sides
    ids = torch.tensor([0])

    with pytest.raises(LLMException, match="hidden style"):
        ops.push_blocks(here.status, UNKNOWN[kind](here), ids, ids, link=here.datadist.link_id(2))


def test_a_copy_of_a_cache_that_receives_is_refused(sides: Sides) -> None:
    _, there = sides
    ids = torch.tensor([0])

    with pytest.raises(LLMException, match="hidden style"):
        ops.push_blocks(there.status, copies_of(there), ids, ids, link=there.datadist.link_id(1))


def test_a_copy_is_refused_where_the_graph_goes_on_while_it_is_sent(sides: Sides) -> None:
    here, _ = sides
    ids, link = torch.tensor([0]), here.datadist.link_id(2)
    copies = copies_of(here)
    ops.push_blocks(here.status, copies, ids, ids, link=link)

    with pytest.raises(LLMException, match="hold_stream=False"):  # also where it was just sent
        ops.push_blocks(here.status, copies, ids, ids, link=link, hold_stream=False)


def test_a_pull_into_a_copy_is_refused(sides: Sides) -> None:
    here, _ = sides
    ids, link = torch.tensor([0]), here.datadist.link_id(2)

    with pytest.raises(LLMException, match="hidden style"):
        ops.pull_blocks(here.status, copies_of(here), ids, ids, link=link, model_id=0)


def test_nothing_is_written_into_such_a_cache(sides: Sides) -> None:
    here, there = sides
    assert (here.cache.receives, there.cache.receives) == (False, True)
    calls: list[Any] = [
        lambda: there.prepare(here, [0], [0]),
        lambda: there.prepare(here, [0], [0], packed=True),
        lambda: there.datadist.cache_manager.push_blocks(BlocksCacheKey(1), there.cache, [0], [0]),
        lambda: here.datadist.cache_manager.pull_blocks(BlocksCacheKey(2), here.cache, [0], [0]),
    ]
    for call in calls:
        with pytest.raises(LLMException, match=REFUSED) as caught:
            call()
        assert caught.value.status_code == datadist.LLMStatusCode.LLM_PARAM_INVALID
    # Peers may read it.
    there.datadist.cache_manager.pull_blocks(BlocksCacheKey(1), there.cache, [0], [0])


def test_expect_refuses_what_a_peer_offers_for_such_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer would have refused, had it believed what it was told."""
    export = announcements.Announcements._export

    def without(self: Any, local: Any, peer: Any) -> Any:
        record = export(self, local, peer)
        return record if record is None else msgspec.structs.replace(record, receives=True)

    monkeypatch.setattr(announcements.Announcements, "_export", without)
    here, there = linked()
    try:
        task = there.prepare(here, [0], [1], packed=True)
        with pytest.raises(LLMException, match=REFUSED):
            here.datadist.cache_manager.expect(task.ticket, [1])
    finally:
        for side in (here, there):
            side.datadist.finalize()


def test_receives_is_a_bool() -> None:
    side = Side(1, 0)
    desc = CacheDesc(1, [2, 8], DataType.DT_FLOAT)
    try:
        with pytest.raises(TypeError, match="receives"):
            side.datadist.cache_manager.register_blocks_cache(
                desc,
                [torch.zeros(2, 8, device="npu:0")],
                receives=None,  # type: ignore[arg-type]
            )
    finally:
        side.datadist.finalize()
