"""The demo's model: a small Llama with fixed random weights, one token per byte, and its greedy decoding."""

import base64
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from torch_llm_datadist.demo.compare import Generated
from torch_llm_datadist.demo.forwards import Forwards
from torch_llm_datadist.demo.options import ModelShape
from torch_llm_datadist.demo.paged_cache import LayerHooks, PagedCache


def build_model(shape: ModelShape, device: str) -> LlamaForCausalLM:
    """Builds the same weights in every process: on the CPU from a seed, then moved.

    With the usual `initializer_range` of 0.02 a random model repeats one token whatever its cache holds.
    """
    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=shape.hidden_size,
        intermediate_size=2 * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1 << 20,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).eval().to(device)


def allocate_blocks(shape: ModelShape, num_blocks: int, device: str) -> list[Tensor]:
    """Keys and values of layer 0, keys and values of layer 1, and so on."""
    size = (num_blocks, shape.block_size, shape.kv_heads, shape.head_dim)
    return [torch.zeros(size, device=device) for _ in range(2 * shape.layers)]


class Generation:
    """Greedy decoding of a prompt whose tokens but the last one are in the cache, or on their way to it.

    Args:
        hooks: of each step's forward.
        before_step: called with a step's number right before its forward, to bind what it serves.
        wait_for_stream: called before the host copies to or from the device, which would block it.
    """

    def __init__(
        self,
        forwards: Forwards,
        cache: PagedCache,
        prompt: Sequence[int],
        hooks: LayerHooks | None = None,
        before_step: Callable[[int], None] = lambda step: None,
        wait_for_stream: Callable[[], None] = lambda: None,
    ) -> None:
        self.forwards = forwards
        self.cache = cache
        self.prompt = prompt
        self.hooks = hooks
        self.before_step = before_step
        self.wait_for_stream = wait_for_stream
        self.tokens: list[int] = []
        self.first_logits = ""

    def steps(self, count: int) -> Iterator[int]:
        """Yields each new token."""
        self.wait_for_stream()
        token = self.prompt[-1]
        for step in range(count):
            self.before_step(step)
            on_device = self.forwards.decode(self.cache, token, len(self.prompt) - 1 + step, self.hooks)
            self.wait_for_stream()
            logits = on_device.cpu()
            if not self.tokens:
                self.first_logits = base64.b64encode(logits.numpy().tobytes()).decode()
            token = int(logits.argmax())
            self.tokens.append(token)
            yield token

    def result(self) -> Generated:
        layers = range(len(self.cache.layers))
        digests = [self.cache.digest(layer, len(self.prompt)) for layer in layers]
        return Generated(self.tokens, self.first_logits, digests)
