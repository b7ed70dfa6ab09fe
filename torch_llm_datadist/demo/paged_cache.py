"""A paged KV cache for transformers models, whose layers are pushed or awaited from inside the forward.

This file is the whole integration: copy it, and any model that calls ``cache.update(k, v, layer)`` sends
each layer as soon as it is computed, or holds each layer's attention until it has arrived. The same forward
runs eagerly, under ``torch.compile(fullgraph=True)`` and as a captured NPUGraph: a graph sees the cache's
number and this sequence's slots, never the cache.

    registered = cache_manager.register_blocks_cache(desc, tensors, key)
    cache = PagedCache(registered.tensors, registered.handle, block_ids, status)

    binding.bind([task])                                                # prefill
    cache.begin_prefill(num_tokens, PushLayers(status, binding.id))
    model(tokens, past_key_values=cache, position_ids=positions)
    datadist.ops.finish(status, status, binding.id)

    binding.bind([ticket])                                              # decode; then bind(())
    cache.begin_decode(position, WaitForLayers(status, binding.id))
    model(token, past_key_values=cache, position_ids=positions)
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

import torch_llm_datadist as datadist


class LayerHooks(Protocol):
    """What happens around the store of one layer, on the current stream."""

    def before_store(self, layer: int, keys: Tensor) -> Tensor:
        """The keys to store; an op in here is ordered by them before the store."""

    def after_store(self, layer: int, keys: Tensor) -> None:
        """`keys` were stored by the layer's last kernel."""


class NoHooks:
    """A forward that neither sends nor waits."""

    def before_store(self, layer: int, keys: Tensor) -> Tensor:
        return keys

    def after_store(self, layer: int, keys: Tensor) -> None:
        pass


class PushLayers(NoHooks):
    """Prefill: each layer leaves as soon as the stream has stored it."""

    def __init__(self, status: Tensor, binding: int) -> None:
        self.status = status
        self.binding = binding

    def after_store(self, layer: int, keys: Tensor) -> None:
        datadist.ops.push_layer(self.status, keys, layer, self.binding)


class WaitForLayers(NoHooks):
    """Decode: the stream holds each layer until its blocks have arrived."""

    def __init__(self, status: Tensor, binding: int) -> None:
        self.status = status
        self.binding = binding

    def before_store(self, layer: int, keys: Tensor) -> Tensor:
        datadist.ops.wait_layer(self.status, keys, layer, self.binding)
        return keys


class Step:
    """Where the current forward writes and what it may read; shared by all layers of one cache.

    Decode's `write_slots` and `past_length` keep their addresses from step to step, as a captured graph needs
    it.
    """

    def __init__(self, block_ids: Sequence[int], block_size: int, device: torch.device) -> None:
        offsets = torch.arange(block_size, dtype=torch.int64)
        blocks = torch.tensor(block_ids, dtype=torch.int64)
        slots = (blocks[:, None] * block_size + offsets).flatten()
        self.slots_on_host = slots.tolist()
        self.block_size = block_size
        self.slots = slots.to(device)
        self.block_table = blocks.to(device)
        self.decode_slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.write_slots = self.decode_slot
        self.past_length = torch.zeros((), dtype=torch.int64, device=device)
        self.is_prefill = False
        self.hooks: LayerHooks = NoHooks()

    @property
    def capacity(self) -> int:
        return len(self.slots_on_host)


class PagedLayer(CacheLayerMixin):
    """One layer of a `PagedCache`: stores new tokens into blocks, reads the sequence back from them."""

    is_compileable = True
    is_sliding = False

    def __init__(self, index: int, cache: int, status: Tensor, step: Step) -> None:
        super().__init__()
        self.index = index
        self.cache = cache
        self.status = status
        self.step = step
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the blocks exist, and are registered, before the first forward."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        step = self.step
        keys, values = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        # Wait first, store second: the last block that arrives may be partly filled, and its copy would
        # overwrite the slot of the token that is stored here.
        keys = step.hooks.before_store(self.index, keys)
        datadist.ops.store_layer(
            self.status, keys, values, step.write_slots, layer=self.index, cache=self.cache
        )
        step.hooks.after_store(self.index, keys)
        if step.is_prefill:
            return key_states, value_states
        # All slots in token order; the mask hides the future ones.
        stored = datadist.ops.read_layer(
            self.status,
            keys,
            values,
            step.block_table,
            block_size=step.block_size,
            layer=self.index,
            cache=self.cache,
        )
        return stored[0].transpose(0, 1).unsqueeze(0), stored[1].transpose(0, 1).unsqueeze(0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.step.is_prefill:
            return query_length, 0
        return self.step.capacity, 0

    def get_seq_length(self) -> int:
        """In decode really a tensor, as in `StaticLayer`: so a graph does not change from step to step."""
        return 0 if self.step.is_prefill else cast(int, self.step.past_length)

    def get_max_length(self) -> int:
        return self.step.capacity


class PagedCache(Cache):
    """The KV cache of one sequence, in the blocks `block_ids` of a registered cache.

    Args:
        tensors: keys and values of layer 0, keys and values of layer 1, and so on; each
            [num_blocks, block_size, kv_heads, head_dim], and zeroed: attention gives slots that were never
            written the weight 0, and 0 times a NaN is a NaN.
        handle: of the registered cache, which has these tensors.
        block_ids: the blocks of this sequence, in token order.
        status: int32[1] beside the tensors, the one that the hooks have.
    """

    def __init__(
        self, tensors: Sequence[Tensor], handle: int, block_ids: Sequence[int], status: Tensor
    ) -> None:
        self.tensors = list(tensors)
        self.step = Step(block_ids, tensors[0].shape[1], tensors[0].device)
        layers = range(len(tensors) // 2)
        super().__init__(layers=[PagedLayer(index, handle, status, self.step) for index in layers])

    def begin_prefill(self, num_tokens: int, hooks: LayerHooks | None = None) -> None:
        """The next forward stores tokens 0 … num_tokens - 1."""
        self._check_capacity(num_tokens)
        self.step.is_prefill = True
        self.step.write_slots = self.step.slots[:num_tokens]
        self.step.hooks = hooks or NoHooks()

    def begin_decode(self, position: int, hooks: LayerHooks | None = None) -> None:
        """The next forward stores the token at `position` and attends to all up to it."""
        self._check_capacity(position + 1)
        self.step.is_prefill = False
        self.step.write_slots = self.step.decode_slot
        self.step.decode_slot.fill_(self.step.slots_on_host[position])
        self.step.past_length.fill_(position)
        self.step.hooks = hooks or NoHooks()

    def digest(self, layer: int, num_tokens: int) -> str:
        """SHA-256 of the bytes of one layer's first `num_tokens` keys, then values, in token order."""
        slots = self.step.slots[:num_tokens]
        sha = hashlib.sha256()
        for stored in self.tensors[2 * layer : 2 * layer + 2]:
            rows = stored.flatten(0, 1).index_select(0, slots)
            sha.update(rows.cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def _check_capacity(self, num_tokens: int) -> None:
        if not 0 < num_tokens <= self.step.capacity:
            raise ValueError(f"{num_tokens} tokens do not fit: the cache's blocks hold {self.step.capacity}")
