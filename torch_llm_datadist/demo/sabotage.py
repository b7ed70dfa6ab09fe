"""Transfers that go wrong on purpose: each must show in the comparison, or the comparison means nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_llm_datadist.demo.options import Options
from torch_llm_datadist.demo.paged_cache import LayerHooks, PushLayers


def push_hooks(options: Options, status: Tensor, binding: int) -> LayerHooks:
    """What prefill does with each layer: push it, unless something else is asked for."""
    if options.sabotage == "flip":
        return FlipOneByte(status, binding, options.sabotaged_layer)
    if options.sabotage == "drop-layer":
        return DropOneLayer(status, binding, options.sabotaged_layer)
    return PushLayers(status, binding)


def wrong_table(dst_blocks: Sequence[int]) -> list[int]:
    """The first two destination blocks swapped."""
    return [dst_blocks[1], dst_blocks[0], *dst_blocks[2:]]


class FlipOneByte(PushLayers):
    """Inverts the lowest byte of one number among the keys of one layer on their way into the cache."""

    def __init__(self, status: Tensor, binding: int, layer: int) -> None:
        super().__init__(status, binding)
        self.layer = layer

    def before_store(self, layer: int, keys: Tensor) -> Tensor:
        if layer != self.layer:
            return keys
        bits = keys.contiguous().view(torch.int32)
        mask = torch.zeros_like(bits)
        mask[0, 0, 0] = 0xFF
        return bits.bitwise_xor(mask).view(torch.float32)


class DropOneLayer(PushLayers):
    """Keeps one layer back."""

    def __init__(self, status: Tensor, binding: int, layer: int) -> None:
        super().__init__(status, binding)
        self.layer = layer

    def after_store(self, layer: int, keys: Tensor) -> None:
        if layer != self.layer:
            super().after_store(layer, keys)
