"""Transfers that go wrong on purpose: each must show in the comparison, or the comparison means nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_llm_datadist import emulator
from torch_llm_datadist.demo.options import Options
from torch_llm_datadist.demo.paged_cache import LayerHooks, PagedCache, PushLayers


def push_hooks(options: Options, status: Tensor, binding: int, cache: PagedCache) -> LayerHooks:
    """What prefill does with each layer: push it, unless something else is asked for."""
    if options.sabotage == "flip":
        return FlipOneByte(status, binding, options.sabotaged_layer, cache)
    if options.sabotage == "drop-layer":
        return DropOneLayer(status, binding, options.sabotaged_layer)
    if options.prefill_delay_s:
        return LatePush(status, binding, options.prefill_delay_s)
    return PushLayers(status, binding)


def wrong_table(dst_blocks: Sequence[int]) -> list[int]:
    """The first two destination blocks swapped."""
    return [dst_blocks[1], dst_blocks[0], *dst_blocks[2:]]


class FlipOneByte(PushLayers):
    """Inverts the lowest byte of one number among the stored keys of one layer, then pushes."""

    def __init__(self, status: Tensor, binding: int, layer: int, cache: PagedCache) -> None:
        super().__init__(status, binding)
        self.layer = layer
        self.cache = cache

    def after_store(self, layer: int, stored: Tensor) -> None:
        if layer == self.layer:
            first_token = self.cache.step.slots_on_host[0]
            number = self.cache.paged_layers[layer].key_slots[first_token].view(torch.int32).flatten()[:1]
            number.bitwise_xor_(0xFF)
        super().after_store(layer, stored)


class DropOneLayer(PushLayers):
    """Keeps one layer back."""

    def __init__(self, status: Tensor, binding: int, layer: int) -> None:
        super().__init__(status, binding)
        self.layer = layer

    def after_store(self, layer: int, stored: Tensor) -> None:
        if layer != self.layer:
            super().after_store(layer, stored)


class LatePush(PushLayers):
    """Not sabotage: a prefill that takes long (emulated), while decode waits for it."""

    def __init__(self, status: Tensor, binding: int, delay_s: float) -> None:
        super().__init__(status, binding)
        self.delay_s = delay_s

    def before_store(self, layer: int, fresh: Tensor) -> None:
        if layer == 0:
            emulator.delay_stream(self.delay_s)
