"""``push_blocks`` under inductor, on host caches (CPU tensors), with the cache as an input of the graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

import torch_llm_datadist as datadist
from tests import paged_forwards as forwards
from tests.paged_forwards import Side
from tests.test_compiled_forwards import QUICK_INDUCTOR
from torch_llm_datadist import ops

TABLE = 4  # ids per call; what is not used is -1


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    made = Side(1, 0, on_host=True), Side(2, 1, on_host=True)
    made[0].link(made[1])
    torch._dynamo.reset()
    counters.clear()
    with torch.compiler.config.patch(force_disable_caches=True), inductor_config.patch(QUICK_INDUCTOR):
        yield made
    torch._dynamo.reset()
    for side in made:
        side.datadist.finalize()


def padded(ids: list[int]) -> torch.Tensor:
    return torch.tensor([*ids, *[-1] * (TABLE - len(ids))], dtype=torch.int64)


def test_push_blocks_sends_a_cache_that_the_graph_only_takes_and_never_recompiles(
    sides: tuple[Side, Side],
) -> None:
    here, there = sides
    link = here.datadist.link_id(2)
    addresses = [tensor.data_ptr() for tensor in here.tensors]

    def step(
        x: torch.Tensor, tensors: list[torch.Tensor], src: torch.Tensor, dst: torch.Tensor
    ) -> torch.Tensor:
        y = torch.sin(x) * 2
        ops.push_blocks(here.status, tensors, src, dst, link=link)
        return y + 1

    compiled = torch.compile(step, backend="inductor", fullgraph=True)
    content = torch.zeros_like(there.tensors[0])
    requests = [([0, 3], [5, 2]), ([], []), ([1], [7]), ([4, 5, 6, 7], [8, 9, 10, 11])]
    for i, (src, dst) in enumerate(requests):
        x = torch.full((2, 3), float(i + 1))
        for tensor in here.tensors:
            tensor.fill_(i + 1)
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            result = compiled(x, here.tensors, padded(src), padded(dst))
        content[dst] = i + 1

        torch.testing.assert_close(result, torch.sin(x) * 2 + 1)
        assert here.status.item() == 0
        assert all(torch.equal(tensor, content) for tensor in there.tensors)
    assert counters["stats"]["unique_graphs"] == 1
    assert addresses == [tensor.data_ptr() for tensor in here.tensors]


def test_push_blocks_refuses_a_cache_that_a_kernel_of_the_graph_writes_before(
    sides: tuple[Side, Side],
) -> None:
    """Inductor hands it a copy then."""
    here, there = sides
    link = here.datadist.link_id(2)

    def step(
        x: torch.Tensor, tensors: list[torch.Tensor], src: torch.Tensor, dst: torch.Tensor
    ) -> torch.Tensor:
        for tensor in tensors:
            tensor.copy_(x.expand_as(tensor))
        ops.push_blocks(here.status, tensors, src, dst, link=link)
        return x + 1

    compiled = torch.compile(step, backend="inductor", fullgraph=True)

    with pytest.raises(datadist.LLMException, match="hidden style"):
        compiled(torch.ones(1, 1, *forwards.ROW), here.tensors, padded([0]), padded([1]))
    assert all(not tensor.any() for tensor in there.tensors)
