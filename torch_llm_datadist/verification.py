"""Whether the blocks of a transfer are the same at both ends: the peer's are read once more, and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from . import ops
from .block_transfer import BlockTransfer
from .errors import LinkBusyError

if TYPE_CHECKING:
    from . import _C

_SHOWN = 8


class Difference(NamedTuple):
    """``tensor`` counts from the first tensor of the transfer."""

    tensor: int
    local_block: int
    remote_block: int

    def __str__(self) -> str:
        return f"tensor {self.tensor} of local block {self.local_block} and remote block {self.remote_block}"


def shown_differences(differences: Sequence[Difference]) -> str:
    more = len(differences) - _SHOWN
    return ", ".join(map(str, differences[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def read_back(
    instance: _C.Instance,
    read: Callable[[list[torch.Tensor], BlockTransfer], None],
    tensors: Sequence[torch.Tensor],
    transfer: BlockTransfer,
    *,
    is_push: bool,
) -> list[Difference]:
    """What differs between the local and the remote blocks of a transfer that has ended.

    Args:
        read: pulls blocks of the peer into a cache made of those tensors, and waits for it.
        tensors: the local cache.
    """
    if is_push:
        local, remote = transfer.src_blocks, transfer.dst_blocks
        local_layer, remote_layer = transfer.src_layer, transfer.dst_layer
    else:
        local, remote = transfer.dst_blocks, transfer.src_blocks
        local_layer, remote_layer = transfer.dst_layer, transfer.src_layer
    each, count = transfer.tensors_per_layer, transfer.num_layers
    here = list(tensors[local_layer * each : (local_layer + count) * each])
    there = [t.new_empty((len(remote), *t.shape[1:])) for t in here]
    all_of_them = torch.arange(len(remote))
    cache_id = instance.register_cache(there, len(remote), True)
    try:
        read(there, BlockTransfer(remote, all_of_them, remote_layer, 0, count, each))
        differs = ops.checksum_blocks(here, local) != ops.checksum_blocks(there, all_of_them)
        found = differs.cpu().nonzero().tolist()
    finally:
        instance.withdraw_cache(cache_id)
        with contextlib.suppress(LinkBusyError):  # a copy that was given up may still write it: it stays held
            instance.release_cache(cache_id)
    return [Difference(t, int(local[i]), int(remote[i])) for t, i in found]
