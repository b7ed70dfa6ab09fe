"""The arguments of ``transfer_cache_async``, checked in the order in which the original does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import checks
from .cache import Cache
from .data_type import Placement
from .messages import refusal
from .transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig

TENSORS_PER_LAYER = 2  # of a transfer by layers, always
ASKED = "transfer_cache_async"


@dataclass(frozen=True)
class TransferRequest:
    """
    Attributes:
        src_blocks, dst_blocks: both empty: entry to entry; only the second: entry to blocks; both: blocks to
            blocks.
        dst_block_bytes: of one block of the destination; 0 when the caller left it out.
        layers: per config the layers of the source.
    """

    cache: Cache
    synchronizer: LayerSynchronizer
    configs: Sequence[TransferConfig | TransferWithCacheKeyConfig]
    src_blocks: list[int]
    dst_blocks: list[int]
    dst_block_bytes: int
    layers: list[range]


def read_transfer(
    src_cache: object,
    layer_synchronizer: object,
    transfer_configs: object,
    src_block_indices: object,
    dst_block_indices: object,
    dst_block_memory_size: object,
    *,
    remote_accessible: bool,
) -> TransferRequest:
    cache = checks.instance(f"{ASKED}: src_cache", src_cache, Cache)
    if cache.cache_desc.placement == Placement.HOST:
        raise refusal(
            "bad_value", name=f"{ASKED}: src_cache", value="in host memory", expected="device memory"
        )
    dst = _indices("dst_block_indices", dst_block_indices)
    src = _indices("src_block_indices", src_block_indices)
    size = 0
    if dst_block_memory_size is not None:
        size = checks.uint64(f"{ASKED}: dst_block_memory_size", dst_block_memory_size)
    _check_indices(src, dst, size)
    if not isinstance(layer_synchronizer, LayerSynchronizer):
        raise refusal(
            "bad_type",
            name=f"{ASKED}: layer_synchronizer",
            value=repr(layer_synchronizer),
            expected="a LayerSynchronizer",
        )
    configs = _configs(transfer_configs, remote_accessible)
    if size and not dst:
        raise refusal("block_size_without_blocks", asked=ASKED, value=size)
    layers = _layers(cache, configs, bool(src))
    return TransferRequest(cache, layer_synchronizer, configs, src, dst, size, layers)


def _indices(name: str, value: object) -> list[int]:
    return [] if value is None else checks.integers(f"{ASKED}: {name}", value)


def _check_indices(src: list[int], dst: list[int], size: int) -> None:
    if src and not dst:
        raise refusal("blocks_into_a_contiguous_cache", asked=ASKED, value="no dst_block_indices")
    if src and len(src) != len(dst):
        raise refusal("indices_of_unequal_length", asked=ASKED, src=len(src), dst=len(dst))
    if dst and not src and not size:
        raise refusal("block_size_is_missing", asked=ASKED, value="missing")


def _configs(value: object, remote_accessible: bool) -> Sequence[TransferConfig | TransferWithCacheKeyConfig]:
    kind: type[TransferConfig | TransferWithCacheKeyConfig]
    kind, mode = (TransferWithCacheKeyConfig, "on") if remote_accessible else (TransferConfig, "off")
    if not isinstance(value, (list, tuple)):
        raise refusal(
            "bad_type",
            name=f"{ASKED}: transfer_configs",
            value=repr(value),
            expected=f"a list or tuple of {kind.__name__}",
        )
    return [
        checks.instance(
            f"{ASKED}: transfer_configs[{i}]",
            config,
            kind,
            what=f"a {kind.__name__}, since enable_remote_cache_accessible is {mode}",
        )
        for i, config in enumerate(value)
    ]


def _layers(
    cache: Cache, configs: Sequence[TransferConfig | TransferWithCacheKeyConfig], has_src_blocks: bool
) -> list[range]:
    tensors = cache.cache_desc.num_tensors
    if tensors % TENSORS_PER_LAYER:
        raise refusal("tensors_are_no_pairs", asked=ASKED, value=tensors, each=TENSORS_PER_LAYER)
    everything = range(tensors // TENSORS_PER_LAYER)
    found = []
    for i, config in enumerate(configs):
        name = f"{ASKED}: transfer_configs[{i}]"
        layers = everything if config.src_layer_range is None else config.src_layer_range
        if layers.stop > len(everything):
            raise refusal("src_layers_outside", asked=name, value=layers, count=len(everything))
        if has_src_blocks and config.src_batch_index:
            raise refusal(
                "batch_index_with_blocks",
                asked=name,
                name="src_batch_index",
                value=config.src_batch_index,
                what="src_block_indices",
            )
        if isinstance(config, TransferWithCacheKeyConfig):
            config.check(name)
        elif len(config.dst_addrs) != TENSORS_PER_LAYER * len(layers):
            raise refusal(
                "other_number_of_dst_addrs",
                asked=name,
                value=len(config.dst_addrs),
                count=TENSORS_PER_LAYER * len(layers),
                layers=layers,
            )
        found.append(layers)
    return found
