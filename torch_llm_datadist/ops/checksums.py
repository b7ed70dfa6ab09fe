"""The op that tells whether bytes are what they were. It is made of aten ops, so it runs where the tensors
are, in stream order and in a graph; a kernel of its own would have nothing to add but speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..messages import refusal
from ._library import ops

# Word i counts BASE**i times, mod 2**64. The powers are odd, so one word that changes changes the sum; and as
# BASE is 5 mod 8, two powers differ by an odd multiple of 4 times their distance, so that two words of 32
# bits that change places change it too, up to a distance of 2**28.
_BASE = 6364136223846793005
_PIECE_BYTES = 32 << 20  # of blocks at a time; widened to 64 bits they take twice as much

_library = torch.library.Library("torch_llm_datadist", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "checksum_blocks("
    "Tensor(b!)[] cache, "  # only read; marked, since a plain list is cloned whole by compilers
    "Tensor blocks) -> Tensor"
)


def checksum_blocks(cache: Sequence[Tensor], blocks: Tensor) -> Tensor:
    """A checksum of each of some blocks, of each tensor of a cache.

    In plain torch, with the words ``x`` of a block, int32 (bytes where 4 does not divide a block), in int64,
    which wraps around: ``sum(x[i] * 6364136223846793005**i for i in range(len(x)))``.

    One word that changes, and two different ones that change places, are always found; of other accidents
    one in some 2**32 is not. It protects against mistakes, not against somebody who wants to be missed.

    Stream: behind what is queued on the current stream; with ids on the device no host waits. It reads what
    is there at its place in the stream: put it behind ``finish`` or ``wait_layer``, or behind a transfer that
    holds the stream.

    Args:
        cache: contiguous tensors of one device, an NPU or the CPU; dimension 0 counts the blocks.
        blocks: int64[n], on that device, where they are not checked, or on the CPU; -1 is padding.

    Returns:
        int64[number of tensors, n] on the device of the cache; 0 for padding.

    Raises:
        LLMException: a value that does not fit the tensors, or ids on the CPU while the stream captures;
            nothing was queued.

    >>> tensor = torch.tensor([[1, 2], [3, 4], [1, 2]], dtype=torch.int32, device="npu:0")
    >>> sums = llm_datadist.ops.checksum_blocks([tensor], torch.tensor([0, 1, 2]))
    >>> sums.shape, bool(sums[0, 0] == sums[0, 2]), bool(sums[0, 0] == sums[0, 1])
    (torch.Size([1, 3]), True, False)
    """
    found: Tensor = ops.checksum_blocks.default(cache, blocks)
    return found


@torch.library.impl(_library, "checksum_blocks", "CPU")
@torch.library.impl(_library, "checksum_blocks", "PrivateUse1")
def _(cache: Sequence[Tensor], blocks: Tensor) -> Tensor:
    _check(cache, blocks)
    ids = blocks.to(cache[0].device)
    words = [_as_words(tensor) for tensor in cache]
    weights = {count: _powers(count, ids.device) for count in {part.shape[1] for part in words}}
    return torch.stack([_checksums_of(part, weights[part.shape[1]], ids) for part in words])


@torch.library.register_fake("torch_llm_datadist::checksum_blocks", lib=_library)
def _(cache: Sequence[Tensor], blocks: Tensor) -> Tensor:
    return torch.empty((len(cache), blocks.shape[0]), dtype=torch.int64, device=cache[0].device)


def _check(cache: Sequence[Tensor], blocks: Tensor) -> None:
    asked = "checksum_blocks"
    if not cache:
        raise refusal("bad_value", name=f"{asked}: cache", value="an empty list", expected="tensors")
    device = cache[0].device
    for i, tensor in enumerate(cache):
        if tensor.dim() < 1 or not tensor.numel() or not tensor.is_contiguous() or tensor.device != device:
            found = f"of {tensor.dim()} dimensions and {tensor.numel()} elements on {tensor.device}"
            if not tensor.is_contiguous():
                found += ", not contiguous"
            expected = f"a contiguous tensor of blocks on {device}"
            raise refusal("bad_value", name=f"{asked}: cache[{i}]", value=found, expected=expected)
    is_host = blocks.device.type == "cpu"
    if blocks.dtype != torch.int64 or blocks.dim() != 1 or not (is_host or blocks.device == device):
        given = f"{blocks.dtype} of {blocks.dim()} dimensions on {blocks.device}"
        expected = f"a one-dimensional int64 tensor on {device} or the CPU"
        raise refusal("bad_value", name=f"{asked}: blocks", value=given, expected=expected)
    if is_host and device.type == "npu" and _is_captured():
        raise refusal("stream_captures_host_ids", asked=asked, value="the current stream", device=device)
    num_blocks = min(tensor.shape[0] for tensor in cache)
    for i, block in enumerate(blocks.tolist() if is_host else ()):
        if not -1 <= block < num_blocks:
            raise refusal(
                "block_outside",
                asked=asked,
                list="blocks",
                at=i,
                value=block,
                cache="the cache",
                count=num_blocks,
            )


def _is_captured() -> bool:
    import torch_npu  # there is one, since there is such a tensor

    return bool(torch_npu.npu.is_current_stream_capturing())


def _checksums_of(words: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    at_once = max(1, _PIECE_BYTES // (words.shape[1] * words.element_size()))
    sums = []
    for first in range(0, len(ids), at_once):
        some = ids[first : first + at_once]
        values = words.index_select(0, some.clamp(min=0)).to(torch.int64)
        sums.append((values * weights).sum(1) * some.ge(0))
    return torch.cat(sums) if sums else torch.zeros_like(ids)


def _as_words(tensor: Tensor) -> Tensor:
    """[blocks, words]."""
    data = tensor.view(tensor.shape[0], -1).view(torch.uint8)
    fits = data.shape[1] % 4 == 0 and data.storage_offset() % 4 == 0
    return data.view(torch.int32) if fits else data


def _powers(count: int, device: torch.device) -> Tensor:
    """The first powers of the base, by doubling."""
    found = torch.ones(1, dtype=torch.int64, device=device)
    power = _BASE
    while found.shape[0] < count:
        found = torch.cat([found, found * _signed(power)])
        power = power * power % 2**64
    return found[:count]


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
