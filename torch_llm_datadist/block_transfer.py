"""What a push or pull moves, checked as far as this end can: blocks and layers of the local cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import checks
from .link_table import Link
from .messages import refusal

DEFAULT_TENSORS_PER_LAYER = 2


@dataclass(frozen=True)
class BlockTransfer:
    """
    Attributes:
        src_blocks, dst_blocks: CPU int64, as many in one as in the other; block i goes to block i.
        src_layer, dst_layer: the first layer at either end.
        num_layers: layers to move.
        tensors_per_layer: tensors that make a layer.
    """

    src_blocks: torch.Tensor
    dst_blocks: torch.Tensor
    src_layer: int
    dst_layer: int
    num_layers: int
    tensors_per_layer: int


def read_blocks(
    asked: str, src_blocks: object, dst_blocks: object, *, local: str, num_blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks two block lists; ``local`` names the one that indexes the local cache."""
    src = read_block_list(asked, "src_blocks", () if src_blocks is None else src_blocks)
    dst = read_block_list(asked, "dst_blocks", dst_blocks)
    if len(src) != len(dst):
        raise refusal("lists_of_unequal_length", asked=asked, src=len(src), dst=len(dst))
    check_blocks_inside(asked, local, src if local == "src_blocks" else dst, num_blocks)
    return torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64)


def read_block_list(asked: str, name: str, blocks: object) -> list[int]:
    """A list or tuple of block indices that is not empty."""
    found = checks.integers(f"{asked}: {name}", blocks)
    if not found:
        raise refusal("list_is_empty", asked=asked, list=name, value=blocks)
    return found


def check_blocks_inside(asked: str, name: str, blocks: Sequence[int], num_blocks: int) -> None:
    if max(blocks) >= num_blocks:
        i = next(i for i, block in enumerate(blocks) if block >= num_blocks)
        cache = "the local cache"
        raise refusal(
            "block_outside", asked=asked, list=name, at=i, value=blocks[i], cache=cache, count=num_blocks
        )


def read_layer_range(asked: str, name: str, value: object) -> range | None:
    """A range of layers with step 1 that is not empty, or None when it was not given."""
    if value is None:
        return None
    return checks.layer_range(f"{asked}: {name}", value)


def read_tensors_per_layer(asked: str, value: object) -> int:
    checked = checks.uint32(f"{asked}: tensor_num_per_layer", value)
    if checked == 0:
        raise refusal("no_tensors_per_layer", asked=asked, value=checked)
    return checked


def whole_layers(asked: str, num_tensors: int, tensors_per_layer: int) -> int:
    """How many layers the local cache has; the seed wants the number of tensors to be a multiple."""
    if tensors_per_layer > num_tensors or num_tensors % tensors_per_layer:
        raise refusal(
            "tensors_per_layer_do_not_divide", asked=asked, value=tensors_per_layer, count=num_tensors
        )
    return num_tensors // tensors_per_layer


def read_push_layers(
    asked: str,
    num_tensors: int,
    src_layer_range: object,
    dst_layer_range: object,
    tensor_num_per_layer: object,
    *,
    is_strict: bool = False,
) -> tuple[range, range, int]:
    """Source layers, destination layers, tensors per layer. No range means all layers of the source.

    The seeds want tensors per layer to divide the number of tensors where there is a range and it is not the
    default; otherwise each tensor is made a layer of its own here. ``is_strict``: in any case.
    """
    src = read_layer_range(asked, "src_layer_range", src_layer_range)
    dst = read_layer_range(asked, "dst_layer_range", dst_layer_range)
    per_layer = read_tensors_per_layer(asked, tensor_num_per_layer)
    is_whole = src is None and dst is None
    if is_strict or num_tensors < per_layer or not (is_whole or per_layer == DEFAULT_TENSORS_PER_LAYER):
        whole_layers(asked, num_tensors, per_layer)
    if is_whole and num_tensors % per_layer:
        return range(num_tensors), range(num_tensors), 1
    everything = range(num_tensors // per_layer)
    src, dst = src or everything, dst or everything
    _check_local_range(asked, "src_layer_range", src, len(everything))
    checks.same_length(asked, src, dst)
    if num_tensors % per_layer:
        return _tensors_of(src, per_layer), _tensors_of(dst, per_layer), 1
    return src, dst, per_layer


def _tensors_of(layers: range, tensors_per_layer: int) -> range:
    return range(layers.start * tensors_per_layer, layers.stop * tensors_per_layer)


def read_pull_layers(
    asked: str,
    num_tensors: int,
    src_layer_range: object,
    dst_layer_range: object,
    tensor_num_per_layer: object,
) -> tuple[range | None, range, int]:
    """Source layers (None: all that the remote cache has), destination layers, tensors per layer.

    Without a range all tensors are one layer, and ``tensor_num_per_layer`` counts for nothing.
    """
    src = read_layer_range(asked, "src_layer_range", src_layer_range)
    dst = read_layer_range(asked, "dst_layer_range", dst_layer_range)
    per_layer = read_tensors_per_layer(asked, tensor_num_per_layer)
    if src is None and dst is None:
        return None, range(1), num_tensors
    everything = range(whole_layers(asked, num_tensors, per_layer))
    dst = dst or everything
    _check_local_range(asked, "dst_layer_range", dst, len(everything))
    if src is not None:
        checks.same_length(asked, src, dst)
    return src, dst, per_layer


def check_remote_count(
    asked: str, link: Link, remote_tensors: int, layers: range, tensors_per_layer: int
) -> None:
    """Without a source range the whole remote cache is meant, so it has to have as many tensors as are
    pulled.
    """
    wanted = len(layers) * tensors_per_layer
    if remote_tensors != wanted:
        raise refusal(
            "other_number_of_tensors",
            asked=asked,
            value=remote_tensors,
            count=wanted,
            cluster_id=link.cluster_id,
            peer=link.peer,
        )


def _check_local_range(asked: str, name: str, layers: range, num_layers: int) -> None:
    if layers.stop > num_layers:
        raise refusal("layer_range_outside", asked=asked, name=name, value=layers, count=num_layers)
