"""The demo's paged cache against transformers' own dense one, on the CPU."""

import base64

import pytest
import torch
from transformers import DynamicCache

from torch_llm_datadist import _native
from torch_llm_datadist.demo.forwards import CompiledForwards, Forwards
from torch_llm_datadist.demo.model import Generation, allocate_blocks, build_model
from torch_llm_datadist.demo.options import ModelShape, Options
from torch_llm_datadist.demo.paged_cache import NoHooks, PagedCache

SHAPE = ModelShape(layers=2, block_size=4)


@pytest.fixture(scope="module")
def model():
    return build_model(SHAPE, "cpu")


def prompt_of(length):
    return [7 * index % 251 for index in range(length)]


def paged_cache(tensors, block_ids):
    """On the CPU there is no instance to register it at."""
    return PagedCache(
        tensors, _native.load().paged_open(tensors), block_ids, torch.zeros(1, dtype=torch.int32)
    )


def paged_run(forwards, prompt, where="here", num_tokens=3, hooks=None):
    options = Options(prompt=prompt, tokens=num_tokens, shape=SHAPE)
    num_blocks, block_ids = options.scattered_blocks(where)
    cache = paged_cache(allocate_blocks(SHAPE, num_blocks, "cpu"), block_ids)
    forwards.prefill(cache, prompt[:-1], hooks)
    generation = Generation(forwards, cache, prompt, hooks)
    list(generation.steps(num_tokens))
    return generation.result()


@torch.no_grad()
def dense_run(model, prompt, num_tokens=3):
    """(logits after the prompt, greedy tokens)"""
    cache = DynamicCache(config=model.config)
    logits = model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1]
    first_logits, tokens = logits, []
    for _ in range(num_tokens):
        tokens.append(int(logits.argmax()))
        logits = model(torch.tensor([tokens[-1:]]), past_key_values=cache).logits[0, -1]
    return first_logits, tokens


@pytest.fixture(scope="module")
def forwards(model):
    return Forwards(model)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 8, 9, 10, 41])
def test_paged_cache_gives_the_logits_and_tokens_of_a_dense_cache(model, forwards, length):
    prompt = prompt_of(length)
    expected_logits, expected_tokens = dense_run(model, prompt)

    run = paged_run(forwards, prompt)

    logits = torch.frombuffer(bytearray(base64.b64decode(run.first_logits)), dtype=torch.float32)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert run.tokens == expected_tokens


def test_paged_cache_does_not_depend_on_where_its_blocks_lie(forwards):
    assert paged_run(forwards, prompt_of(10), "here") == paged_run(forwards, prompt_of(10), "there")


def test_digest_of_a_layer_changes_when_two_blocks_are_swapped(forwards):
    options = Options(prompt=prompt_of(10), tokens=1, shape=SHAPE)
    num_blocks, block_ids = options.scattered_blocks("here")
    tensors = allocate_blocks(SHAPE, num_blocks, "cpu")
    cache = paged_cache(tensors, block_ids)
    forwards.prefill(cache, options.prompt)

    swapped = [block_ids[1], block_ids[0], *block_ids[2:]]

    assert paged_cache(tensors, swapped).digest(0, 10) != cache.digest(0, 10)


class Recorder(NoHooks):
    """Notes the order of calls."""

    def __init__(self):
        self.calls = []

    def before_store(self, layer, keys):
        self.calls.append(("before", layer))
        return keys

    def after_store(self, layer, keys):
        self.calls.append(("after", layer))


def test_hooks_run_around_the_store_of_each_layer_in_order(forwards):
    recorder = Recorder()

    paged_run(forwards, prompt_of(5), num_tokens=1, hooks=recorder)

    one_forward = [(when, layer) for layer in range(2) for when in ("before", "after")]
    assert recorder.calls == one_forward * 2


def test_a_wait_that_fills_the_last_block_late_does_not_overwrite_the_new_token(forwards):
    """The case that store-then-wait gets wrong: the arriving block holds the new token's slot too."""
    prompt = prompt_of(6)
    expected = paged_run(forwards, prompt)
    options = Options(prompt=prompt, tokens=3, shape=SHAPE)
    num_blocks, block_ids = options.scattered_blocks("here")
    sent, received = (allocate_blocks(SHAPE, num_blocks, "cpu") for _ in range(2))
    forwards.prefill(paged_cache(sent, block_ids), prompt[:-1])
    generation = Generation(forwards, paged_cache(received, block_ids), prompt)

    class Arrival(NoHooks):
        def before_store(self, layer, keys):
            for tensor in (2 * layer, 2 * layer + 1) if not generation.tokens else ():
                received[tensor][block_ids[:2]] = sent[tensor][block_ids[:2]]
            return keys

    generation.hooks = Arrival()
    list(generation.steps(3))

    assert generation.result() == expected


def test_compiled_forwards_give_what_eager_ones_do_for_any_blocks(model, forwards, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")  # else eager attention rounds differently
    prompt = prompt_of(10)
    compiled = CompiledForwards(model, "aot_eager")
    num_blocks, block_ids = Options(prompt=prompt, tokens=3, shape=SHAPE).scattered_blocks("here")
    tensors = allocate_blocks(SHAPE, num_blocks, "cpu")
    handle, status = _native.load().paged_open(tensors), torch.zeros(1, dtype=torch.int32)

    def run(blocks):
        cache = PagedCache(tensors, handle, blocks, status)
        compiled.prefill(cache, prompt[:-1])
        generation = Generation(compiled, cache, prompt)
        list(generation.steps(3))
        return generation.result()

    expected = paged_run(forwards, prompt)
    assert run(block_ids) == expected
    with torch.compiler.set_stance("fail_on_recompile"):
        assert run(block_ids[::-1]) == expected


@pytest.mark.parametrize("position", [-1, 12])
def test_begin_decode_refuses_a_position_outside_the_blocks(position):
    cache = paged_cache(allocate_blocks(SHAPE, 3, "cpu"), [2, 0, 1])

    with pytest.raises(ValueError, match="hold 12"):
        cache.begin_decode(position)
