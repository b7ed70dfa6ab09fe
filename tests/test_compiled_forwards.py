"""Whole forwards under torch.compile(fullgraph=True): the layer ops stay, stay in their places, and a graph
serves any request, peer and block table. The cache is hidden: the graph holds its number.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

import torch_llm_datadist as datadist
from tests import paged_forwards as forwards
from tests.nodes import wait_until
from tests.paged_forwards import MAX_BLOCKS, TOKENS, Side, decode_forward, prefill_forward, slots_of, table_of
from torch_llm_datadist import LLMException, LLMStatusCode, emulator
from torch_llm_datadist import binding as bindings

# No pool of compiling processes, no precompiled headers, no trials of vector instructions.
QUICK_INDUCTOR = {
    "cpp.cxx": (None, "g++"),
    "cpp.vec_isa_ok": False,
    "cpp_cache_precompile_headers": False,
    "compile_threads": 1,
}
BACKENDS = ["eager", "aot_eager", "npugraph_ex", "inductor"]


@pytest.fixture(scope="module", autouse=True)
def no_compile_caches():
    """A cached graph would hide what the compiler does to the ops."""
    with torch.compiler.config.patch(force_disable_caches=True):
        yield


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def sides(backend):
    """One that prefills, and two peers to which it pushes. Inductor compiles for the CPU: host caches."""
    on_host = backend == "inductor"
    made = [Side(i + 1, device, on_host=on_host, in_one_slab=True) for i, device in enumerate((0, 1, 1))]
    made[0].link(made[1])
    made[0].link(made[2])
    yield made
    for side in made:
        side.datadist.finalize()


@pytest.fixture
def compiled(sides, backend):
    """The prefill of the first side and the decode of the others, compiled anew."""
    torch._dynamo.reset()
    counters.clear()
    forward = [prefill_forward(sides[0]), decode_forward(sides[1]), decode_forward(sides[2])]
    with inductor_config.patch(QUICK_INDUCTOR):
        yield [torch.compile(each, backend=backend, fullgraph=True) for each in forward]
    torch._dynamo.reset()


def on(device):
    """A capture is of the current device's stream."""
    return contextlib.nullcontext() if device == "cpu" else torch.npu.device(device)


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

    def inputs(self, side) -> list[torch.Tensor]:
        written = torch.arange(MAX_BLOCKS * forwards.BLOCK_SIZE) <= TOKENS
        of_prefill = [self.x, slots_of(self.src)]
        of_decode = [self.query, slots_of(self.dst, TOKENS + 1)[-1:], table_of(self.dst), written]
        return [each.to(side.device) for each in (of_prefill if side is self.prefill else of_decode)]

    def warm_up(self, prefill, decode) -> None:
        """npugraph_ex runs a new graph as it captures it and then replays it: two forwards on one bind, the
        second of which says so."""
        for side, forward in ((self.prefill, prefill), (self.decode, decode)):
            side.binding.bind([])
            with on(side.device):
                forward(*self.inputs(side))
            assert side.status.item() in (0, LLMStatusCode.LLM_PARAM_INVALID)
            side.status.zero_()

    def run(self, prefill, decode, **options) -> None:
        """Decode is queued first, so it waits for what it reads."""
        src, dst = self.src[: self.num_blocks], self.dst[: self.num_blocks]
        task = self.prefill.prepare(self.decode, src, dst, **options) if src else None
        if options.get("packed"):
            assert self.decode.datadist.cache_manager.expect(task.ticket, dst)
        self.prefill.binding.bind([task] if task else [])
        self.decode.binding.bind([task.ticket] if task else [])
        inputs, prompt = self.inputs(self.decode), self.inputs(self.prefill)
        # With everything on the CPU a wait holds the thread that calls it.
        with ThreadPoolExecutor(1) as waiting:
            if task is not None and self.decode.device == "cpu":
                generated = waiting.submit(decode, *inputs).result
            else:
                with on(self.decode.device):
                    generated = decode(*inputs).clone
            with on(self.prefill.device):
                result = prefill(*prompt).cpu()
            self.check(task, result, generated().cpu())

    def check(self, task, result, generated) -> None:
        assert self.prefill.status.item() == 0
        assert self.decode.status.item() == 0
        torch.testing.assert_close(result, self.plain, rtol=1e-3, atol=1e-3)
        if task is None:
            return
        assert ending_of(task.state) == 0
        assert ending_of(lambda: bindings.ticket_state(task.ticket)) == 0
        expected = torch.stack(self.stored)
        sent = min(TOKENS, self.num_blocks * forwards.BLOCK_SIZE)
        arrived = self.decode.content()[:, slots_of(self.dst)[:sent]]
        torch.testing.assert_close(arrived, expected[:, :sent], rtol=1e-3, atol=1e-3)
        if sent == TOKENS:
            expected = forwards.plain_decode(self.query, self.stored)
            torch.testing.assert_close(generated, expected, rtol=1e-3, atol=1e-3)


def test_one_compiled_forward_serves_other_requests_peers_block_tables_and_none(sides, compiled, backend):
    prefill, *decodes = compiled
    caches = [[tensor.data_ptr() for tensor in side.tensors] for side in sides]
    for i in range(2):
        request = Request(sides[0], sides[1 + i], i, num_blocks=0)
        if backend == "npugraph_ex":
            request.warm_up(prefill, decodes[i])
        request.run(prefill, decodes[i])

    compiled_so_far = counters["stats"]["unique_graphs"]

    with torch.compiler.set_stance("fail_on_recompile"):
        for i in range(2, 6):
            Request(sides[0], sides[1 + i % 2], i).run(prefill, decodes[i % 2])
        for num_blocks in (1, 0, MAX_BLOCKS, 1):
            Request(sides[0], sides[1], 6, num_blocks=num_blocks).run(prefill, decodes[0])

    assert counters["stats"]["unique_graphs"] == compiled_so_far == 3
    assert caches == [[tensor.data_ptr() for tensor in side.tensors] for side in sides]


def test_each_layer_of_a_compiled_forward_is_sent_and_awaited_once(sides, compiled, backend):
    """No op is dropped, none comes twice: the calls are counted, and the copies, that a replay makes, too."""
    prefill, decode, _ = compiled
    warm_up = Request(sides[0], sides[1], 0, num_blocks=0)
    if backend == "npugraph_ex":
        warm_up.warm_up(prefill, decode)
    warm_up.run(prefill, decode)
    request = Request(sides[0], sides[1], 1, num_blocks=1)
    counted = emulator.fail_task(1_000_000, 507013, direction="peer", times=1)

    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, experimental_config=config) as profile:
        request.run(prefill, decode)

    copies = counted.hits
    counted.disarm()
    calls = Counter(event.name for event in profile.events())
    times = 0 if backend == "npugraph_ex" else forwards.LAYERS
    assert calls["torch_llm_datadist::push_layer"] == calls["torch_llm_datadist::wait_layer"] == times
    # Keys and values of a layer lie in one slab: they are two rows of one copy.
    assert copies == (0 if backend == "inductor" else forwards.LAYERS)


def peak_of(device, forward, *inputs) -> int:
    """Bytes that a call allocates on the device beyond what was there."""
    torch.npu.synchronize(device)
    torch.npu.reset_peak_memory_stats(device)
    before = torch.npu.memory_allocated(device)
    forward(*inputs)
    torch.npu.synchronize(device)
    return torch.npu.max_memory_allocated(device) - before


def test_a_compiled_forward_takes_no_device_memory_for_the_cache(sides, compiled, backend, monkeypatch):
    """Of a cache that is much larger than what its forward computes."""
    if backend == "inductor":
        assert all(tensor.device.type == "cpu" for tensor in sides[0].tensors)
        return
    monkeypatch.setattr(forwards, "NUM_BLOCKS", 4096)
    large = Side(7, 0)
    request = Request(large, large, 0)
    try:
        for make, inputs in (
            (prefill_forward, request.inputs(large)),
            (decode_forward, large_decode_inputs(request, large)),
        ):
            large.binding = datadist.Binding(0, range(forwards.LAYERS))  # graphs of one wait for each other
            eager = make(large)
            compiled_one = torch.compile(eager, backend=backend, fullgraph=True)
            with on(large.device):
                large.binding.bind([])
                expected = peak_of(large.device, eager, *inputs)
                for _ in range(3):  # the first call compiles, and captures
                    large.binding.bind([])
                    peak = peak_of(large.device, compiled_one, *inputs)
            assert peak <= expected + large.tensors[0].nbytes // 4, (peak, expected)
    finally:
        large.datadist.finalize()


def large_decode_inputs(request, side) -> list[torch.Tensor]:
    written = torch.arange(MAX_BLOCKS * forwards.BLOCK_SIZE) <= TOKENS
    of_decode = [request.query, slots_of(request.dst, TOKENS + 1)[-1:], table_of(request.dst), written]
    return [each.to(side.device) for each in of_decode]


def test_a_compiled_forward_sends_packed_and_waits_for_what_it_expects(sides, compiled, backend):
    prefill, decode, _ = compiled
    if backend == "inductor":
        with pytest.raises(LLMException, match="host memory takes part"):
            sides[0].prepare(sides[1], [0], [1], packed=True)
        return
    warm_up = Request(sides[0], sides[1], 0, num_blocks=0)
    if backend == "npugraph_ex":
        warm_up.warm_up(prefill, decode)
    warm_up.run(prefill, decode)
    with torch.compiler.set_stance("fail_on_recompile"):
        for i, packed in enumerate([True, False, True]):
            Request(sides[0], sides[1], i).run(prefill, decode, packed=packed)
