"""The demo's model: a small Llama with fixed random weights, one token per byte, its two kinds of forward."""

import base64
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from torch_llm_datadist.demo.compare import Generated
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


@torch.no_grad()
def prefill(
    model: LlamaForCausalLM, cache: PagedCache, tokens: Sequence[int], hooks: LayerHooks | None = None
) -> None:
    """Stores the keys and values of `tokens`. No logits: decode begins with the prompt's last token."""
    cache.begin_prefill(len(tokens), hooks)
    input_ids = torch.tensor([tokens]).to(model.device)
    positions = torch.arange(len(tokens)).unsqueeze(0).to(model.device)
    model.model(input_ids, position_ids=positions, past_key_values=cache, use_cache=True)


@torch.no_grad()
def decode(
    model: LlamaForCausalLM, cache: PagedCache, token: int, position: int, hooks: LayerHooks | None = None
) -> Tensor:
    """Runs one token at `position` and returns the logits of the next one, [vocab]."""
    cache.begin_decode(position, hooks)
    input_ids = torch.tensor([[token]]).to(model.device)
    positions = torch.tensor([[position]]).to(model.device)
    return model(input_ids, position_ids=positions, past_key_values=cache, use_cache=True).logits[0, -1]


class Generation:
    """Greedy decoding of a prompt whose tokens but the last one are in the cache, or on their way to it."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        cache: PagedCache,
        prompt: Sequence[int],
        wait_for_stream: Callable[[], None] = lambda: None,
    ) -> None:
        """`wait_for_stream` is called before the host copies to or from the device, which would block it."""
        self.model = model
        self.cache = cache
        self.prompt = prompt
        self.wait_for_stream = wait_for_stream
        self.tokens: list[int] = []
        self.first_logits = ""

    def steps(self, count: int, first_hooks: LayerHooks | None = None) -> Iterator[int]:
        """Yields each new token. Only the first step waits for transfers, so only it has hooks."""
        self.wait_for_stream()
        token, hooks = self.prompt[-1], first_hooks
        for position in range(len(self.prompt) - 1, len(self.prompt) - 1 + count):
            on_device = decode(self.model, self.cache, token, position, hooks)
            self.wait_for_stream()
            logits = on_device.cpu()
            if not self.tokens:
                self.first_logits = base64.b64encode(logits.numpy().tobytes()).decode()
            token, hooks = int(logits.argmax()), None
            self.tokens.append(token)
            yield token

    def result(self) -> Generated:
        layers = range(len(self.cache.layers))
        digests = [self.cache.digest(layer, len(self.prompt)) for layer in layers]
        return Generated(self.tokens, self.first_logits, digests)
