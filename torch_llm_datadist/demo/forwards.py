"""The model's two kinds of forward, run eagerly, compiled, or (decode) as a captured graph."""

from collections.abc import Callable, Sequence

import torch
import torch_npu
from torch import Tensor
from transformers import LlamaForCausalLM

from torch_llm_datadist.demo.paged_cache import LayerHooks, PagedCache

Forward = Callable[[Tensor, Tensor, PagedCache], Tensor]


class Forwards:
    """Eager. A forward takes its token ids and positions, and the cache that was told what comes."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._prefill: Forward = self._run_layers
        self._decode: Forward = self._run_all

    def _run_layers(self, input_ids: Tensor, positions: Tensor, cache: PagedCache) -> Tensor:
        hidden: Tensor = self.model.model(
            input_ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def _run_all(self, input_ids: Tensor, positions: Tensor, cache: PagedCache) -> Tensor:
        logits: Tensor = self.model(
            input_ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        return logits[0, -1]

    @torch.no_grad()
    def prefill(
        self,
        cache: PagedCache,
        tokens: Sequence[int],
        hooks: LayerHooks | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Stores the keys and values of `tokens`. No logits: decode begins with the prompt's last token.

        `before` is called when all that the host copies to the device is there.
        """
        cache.begin_prefill(len(tokens), hooks)
        input_ids = torch.tensor([tokens]).to(self.model.device)
        positions = torch.arange(len(tokens)).unsqueeze(0).to(self.model.device)
        before()
        self._prefill(input_ids, positions, cache)

    def warm_up(self, cache: PagedCache, position: int, hooks: LayerHooks | None = None) -> None:
        """Makes ready what `decode` with this cache and these hooks needs, before anything is bound to it;
        the binding, if the hooks have one, is bound to no transfer. What it stores at `position` is noise.
        """

    @torch.no_grad()
    def decode(self, cache: PagedCache, token: int, position: int, hooks: LayerHooks | None = None) -> Tensor:
        """Runs one token at `position` and returns the logits of the next one, [vocab]."""
        cache.begin_decode(position, hooks)
        input_ids = torch.tensor([[token]]).to(self.model.device)
        positions = torch.tensor([[position]]).to(self.model.device)
        return self._decode(input_ids, positions, cache)


class CompiledForwards(Forwards):
    """One graph without a break for each kind of forward; it serves all requests."""

    def __init__(self, model: LlamaForCausalLM, backend: str) -> None:
        super().__init__(model)
        self._prefill = torch.compile(self._prefill, backend=backend, fullgraph=True)
        self._decode = torch.compile(self._decode, backend=backend, fullgraph=True)


class CapturedForwards(Forwards):
    """Decode as an NPUGraph, captured once and replayed for each token. Prefill is eager: its length varies,
    and one launch of large kernels gains nothing from a graph.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(model)
        self._graph: torch_npu.npu.NPUGraph | None = None
        self._input_ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        self._positions = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        self._logits = torch.empty(0)

    @torch.no_grad()
    def warm_up(self, cache: PagedCache, position: int, hooks: LayerHooks | None = None) -> None:
        cache.begin_decode(position, hooks)
        self._run_all(self._input_ids, self._positions, cache)
        torch_npu.npu.current_stream().synchronize()
        self._graph = torch_npu.npu.NPUGraph()
        with torch_npu.npu.graph(self._graph):
            self._logits = self._run_all(self._input_ids, self._positions, cache)

    @torch.no_grad()
    def decode(self, cache: PagedCache, token: int, position: int, hooks: LayerHooks | None = None) -> Tensor:
        assert self._graph is not None, "decode before warm_up"
        cache.begin_decode(position, hooks)
        self._input_ids.fill_(token)
        self._positions.fill_(position)
        self._graph.replay()
        return self._logits


def forwards_for(model: LlamaForCausalLM, mode: str, backend: str) -> Forwards:
    """`mode`: eager, compile or graph; `backend`: of torch.compile."""
    if mode == "compile":
        return CompiledForwards(model, backend)
    return CapturedForwards(model) if mode == "graph" else Forwards(model)
