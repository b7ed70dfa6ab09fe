"""What keeps an op in a compiled graph, and in its place, taken away piece by piece: each piece matters.

The ops here have the schemas of ``push_layer`` and ``wait_layer``, or these less one mark. They look at, or
fill, the cache of their layer when they run, as a transfer would.
"""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config as inductor_config

from tests.test_compiled_forwards import QUICK_INDUCTOR

LAYERS = 2
NAMESPACE = "datadist_compiler_guards"
PUSHES = {
    "push": "(Tensor(a!) status, Tensor after, int layer) -> ()",
    "push_without_after": "(Tensor(a!) status, Tensor? after, int layer) -> ()",
    "push_without_mutation": "(Tensor status, Tensor after, int layer) -> ()",
}
WAITS = {
    "wait": "(Tensor(a!) status, Tensor(b!) before, int layer) -> ()",
    "wait_that_only_reads_before": "(Tensor(a!) status, Tensor before, int layer) -> ()",
}


@pytest.mark.parametrize(("guard", "real"), [("push", "push_layer"), ("wait", "wait_layer")])
def test_the_ops_here_are_marked_as_the_real_ones(guard, real):
    """So what breaks here without a mark breaks there."""
    schema = str(getattr(torch.ops.torch_llm_datadist, real).default._schema)
    ours = {**PUSHES, **WAITS}[guard]

    assert schema == f"torch_llm_datadist::{real}{ours}".replace("int layer", "int layer, int binding")


class Peer:
    """Both ends: what was pushed is kept, what is waited for arrives."""

    def __init__(self) -> None:
        self.caches: list[torch.Tensor] = []
        self.pushed: dict[int, torch.Tensor] = {}
        self.waited = 0

    def reset(self) -> None:
        self.caches = [torch.zeros(4, 8) for _ in range(LAYERS)]
        self.pushed, self.waited = {}, 0

    def push(self, status, after, layer):
        self.pushed[layer] = self.caches[layer].clone()

    def wait(self, status, before, layer):
        self.waited += 1
        self.caches[layer].fill_(layer + 1)


@pytest.fixture(scope="module")
def registered():
    peer = Peer()
    library = torch.library.Library(NAMESPACE, "DEF")
    for names, body in ((PUSHES, peer.push), (WAITS, peer.wait)):
        for name, schema in names.items():
            library.define(name + schema)
            library.impl(name, body, "CPU")
            torch.library.register_fake(f"{NAMESPACE}::{name}", lambda *args: None, lib=library)
    yield peer
    library._destroy()


@pytest.fixture
def peer(registered):
    registered.reset()
    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True), inductor_config.patch(QUICK_INDUCTOR):
        yield registered
    torch._dynamo.reset()


def op(name):
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def prefill(name, backend, peer):
    """The cache is written by traced kernels, in place, and goes right after."""

    def forward(x, caches, status):
        for layer, cache in enumerate(caches):
            cache.mul_(0.5).add_(x * (layer + 2))
            op(name)(status, None if name == "push_without_after" else cache, layer)
            x = torch.sin(x) + cache
        return x

    status = torch.zeros(1, dtype=torch.int32)
    torch.compile(forward, backend=backend, fullgraph=True)(torch.ones(4, 8), list(peer.caches), status)


def decode(name, backend, peer):
    """Each layer's kernels read what arrives in the wait."""

    def forward(x, caches, status):
        for layer, cache in enumerate(caches):
            query = x * 2 + 1
            op(name)(status, query, layer)
            scores = torch.softmax((query * cache).sum(-1), 0)
            x = query + (scores[:, None] * cache).sum(0)
        return x

    status = torch.zeros(1, dtype=torch.int32)
    return torch.compile(forward, backend=backend, fullgraph=True)(torch.ones(8), list(peer.caches), status)


def decoded():
    x = torch.ones(8)
    for layer in range(LAYERS):
        x = (x * 2 + 1) + (layer + 1)  # all rows of the cache are equal, so the weights' sum is what counts
    return x


@pytest.mark.parametrize(("name", "survives"), [("push", True), ("push_without_mutation", False)])
def test_without_the_mutation_the_op_vanishes(peer, name, survives):
    prefill(name, "aot_eager", peer)

    assert len(peer.pushed) == (LAYERS if survives else 0)


@pytest.mark.parametrize(("name", "is_ordered"), [("push", True), ("push_without_after", False)])
def test_without_after_the_push_overtakes_the_kernel_that_writes_the_cache(peer, name, is_ordered):
    prefill(name, "inductor", peer)

    assert len(peer.pushed) == LAYERS
    assert all(torch.equal(peer.pushed[i], peer.caches[i]) for i in range(LAYERS)) == is_ordered


@pytest.mark.parametrize(("name", "is_ordered"), [("wait", True), ("wait_that_only_reads_before", False)])
def test_without_the_mark_on_before_the_kernel_overtakes_the_wait(peer, name, is_ordered):
    result = decode(name, "inductor", peer)

    assert peer.waited == LAYERS
    assert torch.allclose(result, decoded()) == is_ordered
