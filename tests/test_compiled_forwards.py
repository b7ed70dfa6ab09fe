"""Whole forwards under torch.compile(fullgraph=True): the layer ops stay, stay in their places, and a graph
serves any request, peer and block table. The cache is hidden: the graph holds its number.
"""

from __future__ import annotations

import random

import pytest
import torch

from tests import paged_forwards as forwards
from tests.nodes import wait_until
from tests.paged_forwards import MAX_BLOCKS, TOKENS, Side, decode_forward, prefill_forward, slots_of, table_of
from torch_llm_datadist import binding as bindings

BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(scope="module", autouse=True)
def no_compile_caches():
    """A cached graph would hide what the compiler does to the ops."""
    with torch.compiler.config.patch(force_disable_caches=True):
        yield


@pytest.fixture(scope="module")
def sides():
    """One that prefills, and two peers to which it pushes."""
    made = [Side(1, 0), Side(2, 1), Side(3, 1)]
    made[0].link(made[1])
    made[0].link(made[2])
    yield made
    for side in made:
        side.datadist.finalize()


@pytest.fixture
def compiled(sides):
    """(backend) -> the prefill of the first side and the decode of the others, compiled anew."""

    def compile_all(backend):
        torch._dynamo.reset()
        forward = [prefill_forward(sides[0]), decode_forward(sides[1]), decode_forward(sides[2])]
        return [torch.compile(each, backend=backend, fullgraph=True) for each in forward]

    yield compile_all
    torch._dynamo.reset()


def ending_of(state) -> int:
    """The code that a transfer ended with; the host learns of the end a little later than the streams."""
    wait_until(lambda: state().has_ended)
    return state().code


class Request:
    """One prompt with its blocks at both ends; compares with plain torch."""

    def __init__(self, prefill: Side, decode: Side, seed: int, num_blocks: int = MAX_BLOCKS - 3) -> None:
        self.prefill, self.decode = prefill, decode
        draw = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(TOKENS, *forwards.ROW, generator=generator)
        self.query = torch.randn(1, *forwards.ROW, generator=generator)
        self.src = draw.sample(range(forwards.NUM_BLOCKS), MAX_BLOCKS)
        self.dst = draw.sample(range(forwards.NUM_BLOCKS), MAX_BLOCKS)
        self.num_blocks = num_blocks
        self.plain, self.stored = forwards.plain_prefill(self.x)

    def run(self, prefill, decode) -> None:
        """Decode is queued first, so it waits for what it reads."""
        src, dst = self.src[: self.num_blocks], self.dst[: self.num_blocks]
        task = self.prefill.prepare(self.decode, src, dst) if src else None
        self.prefill.binding.bind([task] if task else [])
        self.decode.binding.bind([task.ticket] if task else [])
        written = torch.arange(MAX_BLOCKS * forwards.BLOCK_SIZE) <= TOKENS
        inputs = [self.query, slots_of(self.dst, TOKENS + 1)[-1:], table_of(self.dst), written]
        with torch.no_grad():
            generated = decode(*[each.to(self.decode.device) for each in inputs])
            result = prefill(self.x.to(self.prefill.device), slots_of(self.src).to(self.prefill.device))
        self.check(task, result.cpu(), generated.cpu())

    def check(self, task, result, generated) -> None:
        assert self.prefill.status.item() == 0
        assert self.decode.status.item() == 0
        torch.testing.assert_close(result, self.plain)
        if task is None:
            return
        assert ending_of(task.state) == 0
        assert ending_of(lambda: bindings.ticket_state(task.ticket)) == 0
        expected = torch.stack(self.stored)
        sent = min(TOKENS, self.num_blocks * forwards.BLOCK_SIZE)
        arrived = self.decode.content()[:, slots_of(self.dst)[:sent]]
        torch.testing.assert_close(arrived, expected[:, :sent])
        if sent == TOKENS:
            expected = forwards.plain_decode(self.query, self.stored)
            torch.testing.assert_close(generated, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_compiled_forward_serves_other_requests_peers_block_tables_and_none(sides, compiled, backend):
    prefill, *decodes = compiled(backend)
    for i in range(2):
        Request(sides[0], sides[1 + i], i, num_blocks=i).run(prefill, decodes[i])

    with torch.compiler.set_stance("fail_on_recompile"):
        for i in range(2, 6):
            Request(sides[0], sides[1 + i % 2], i).run(prefill, decodes[i % 2])
        Request(sides[0], sides[1], 6, num_blocks=0).run(prefill, decodes[0])
        Request(sides[0], sides[1], 7, num_blocks=1).run(prefill, decodes[0])
