"""A paged KV cache for transformers models, whose layers are pushed or awaited from inside the forward.

This file is the whole integration: copy it, and any model that calls ``cache.update(k, v, layer)`` sends
each layer as soon as it is computed, or holds each layer's attention until it has arrived.

    cache = PagedCache(tensors, block_ids)

    binding.bind([task])                                                # prefill
    cache.begin_prefill(num_tokens, PushLayers(status, binding.id))
    model(tokens, past_key_values=cache, position_ids=positions)
    datadist.ops.finish(status, tensors[-1], binding.id)

    binding.bind([ticket])                                              # decode
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

    def before_store(self, layer: int, fresh: Tensor) -> None:
        """`fresh` is read by the kernel that stores the layer's new tokens."""

    def after_store(self, layer: int, stored: Tensor) -> None:
        """`stored` was written by the last kernel that stored the layer's new tokens."""


class NoHooks:
    """A forward that neither sends nor waits."""

    def before_store(self, layer: int, fresh: Tensor) -> None:
        pass

    def after_store(self, layer: int, stored: Tensor) -> None:
        pass


class PushLayers(NoHooks):
    """Prefill: each layer leaves as soon as the stream has stored it."""

    def __init__(self, status: Tensor, binding: int) -> None:
        self.status = status
        self.binding = binding

    def after_store(self, layer: int, stored: Tensor) -> None:
        datadist.ops.push_layer(self.status, stored, layer, self.binding)


class WaitForLayers(NoHooks):
    """Decode: the stream holds each layer until its blocks have arrived."""

    def __init__(self, status: Tensor, binding: int) -> None:
        self.status = status
        self.binding = binding

    def before_store(self, layer: int, fresh: Tensor) -> None:
        datadist.ops.wait_layer(self.status, fresh, layer, self.binding)


class Step:
    """Where the current forward writes and what it may read; shared by all layers of one cache.

    `write_slot` and `past_length` keep their addresses from step to step, as a captured graph needs it.
    """

    def __init__(self, block_ids: Sequence[int], block_size: int, device: torch.device) -> None:
        offsets = torch.arange(block_size, dtype=torch.int64)
        slots = torch.tensor(block_ids, dtype=torch.int64)[:, None] * block_size + offsets
        self.slots_on_host = slots.flatten().tolist()
        self.slots = slots.flatten().to(device)
        self.write_slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.past_length = torch.zeros((), dtype=torch.int64, device=device)
        self.prefill_tokens: int | None = None
        self.hooks: LayerHooks = NoHooks()

    @property
    def capacity(self) -> int:
        return len(self.slots_on_host)

    def slots_to_write(self) -> Tensor:
        return self.write_slot if self.prefill_tokens is None else self.slots[: self.prefill_tokens]


class PagedLayer(CacheLayerMixin):
    """One layer of a `PagedCache`: stores new tokens into blocks, reads the sequence back from them."""

    is_compileable = True
    is_sliding = False

    def __init__(self, index: int, key_blocks: Tensor, value_blocks: Tensor, step: Step) -> None:
        super().__init__()
        self.index = index
        self.key_slots = key_blocks.flatten(0, 1)
        self.value_slots = value_blocks.flatten(0, 1)
        self.step = step
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the blocks exist, and are registered, before the first forward."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        # Wait first, store second: the last block that arrives may be partly filled, and its copy would
        # overwrite the slot of the token that is stored here.
        self.step.hooks.before_store(self.index, key_states)
        slots = self.step.slots_to_write()
        self.key_slots.index_copy_(0, slots, key_states[0].transpose(0, 1))
        self.value_slots.index_copy_(0, slots, value_states[0].transpose(0, 1))
        self.step.hooks.after_store(self.index, self.value_slots)

        if self.step.prefill_tokens is not None:
            return key_states, value_states
        return self._gather(self.key_slots), self._gather(self.value_slots)

    def _gather(self, stored: Tensor) -> Tensor:
        """All slots in token order, [1, heads, capacity, head_dim]; the mask hides the future ones."""
        return stored.index_select(0, self.step.slots).transpose(0, 1).unsqueeze(0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.step.prefill_tokens is not None:
            return query_length, 0
        return self.step.capacity, 0

    def get_seq_length(self) -> int:
        """In decode really a tensor, as in `StaticLayer`: so a graph does not change from step to step."""
        return 0 if self.step.prefill_tokens is not None else cast(int, self.step.past_length)

    def get_max_length(self) -> int:
        return self.step.capacity


class PagedCache(Cache):
    """The KV cache of one sequence, in the blocks `block_ids` of shared tensors.

    Args:
        tensors: keys and values of layer 0, keys and values of layer 1, and so on; each
            [num_blocks, block_size, kv_heads, head_dim], and zeroed: attention gives slots that were never
            written the weight 0, and 0 times a NaN is a NaN.
        block_ids: the blocks of this sequence, in token order.
    """

    def __init__(self, tensors: Sequence[Tensor], block_ids: Sequence[int]) -> None:
        self.step = Step(block_ids, tensors[0].shape[1], tensors[0].device)
        pairs = zip(tensors[0::2], tensors[1::2], strict=True)
        self.paged_layers = [PagedLayer(index, *pair, self.step) for index, pair in enumerate(pairs)]
        super().__init__(layers=list(self.paged_layers))

    def begin_prefill(self, num_tokens: int, hooks: LayerHooks | None = None) -> None:
        """The next forward stores tokens 0 … num_tokens - 1."""
        self._check_capacity(num_tokens)
        self.step.prefill_tokens = num_tokens
        self.step.hooks = hooks or NoHooks()

    def begin_decode(self, position: int, hooks: LayerHooks | None = None) -> None:
        """The next forward stores the token at `position` and attends to all up to it."""
        self._check_capacity(position + 1)
        self.step.prefill_tokens = None
        self.step.write_slot.fill_(self.step.slots_on_host[position])
        self.step.past_length.fill_(position)
        self.step.hooks = hooks or NoHooks()

    def digest(self, layer: int, num_tokens: int) -> str:
        """SHA-256 of the bytes of one layer's first `num_tokens` keys, then values, in token order."""
        slots = self.step.slots[:num_tokens]
        sha = hashlib.sha256()
        for stored in (self.paged_layers[layer].key_slots, self.paged_layers[layer].value_slots):
            sha.update(stored.index_select(0, slots).cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def _check_capacity(self, num_tokens: int) -> None:
        if not 0 < num_tokens <= self.step.capacity:
            raise ValueError(f"{num_tokens} tokens do not fit: the cache's blocks hold {self.step.capacity}")
