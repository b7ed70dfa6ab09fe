"""The bytes of a block: each write has a stamp of its own, and everything follows from that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

LAYERS = 2
TENSORS = 2 * LAYERS
BLOCKS = 64
BLOCK_BYTES = 4096

_WORDS = BLOCK_BYTES // 8
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def stamp(cluster_id: int, generation: int, number: int) -> int:
    """The ``number``-th write into a block of that member, in its life ``generation``."""
    return cluster_id << 48 | generation << 32 | number


def name_of(value: int) -> str:
    return f"write {value & 0xFFFFFFFF} of member {value >> 48} in life {value >> 32 & 0xFFFF}"


def rows(stamps: list[int], tensor: int) -> Bytes:
    """uint8[len(stamps), BLOCK_BYTES]; the first eight bytes are the stamp, so that a stray block can be
    named."""
    seeds = np.array(stamps, dtype=np.uint64)[:, None]
    words = (seeds * np.uint64(TENSORS) + np.uint64(tensor)) * np.uint64(_WORDS)
    words = (words + np.arange(_WORDS, dtype=np.uint64)) * _STEP
    words ^= words >> np.uint64(29)
    words *= _MIX
    words ^= words >> np.uint64(32)
    words[:, 0] = seeds[:, 0]
    return words.view(np.uint8)


def describe_difference(found: Bytes, value: int, tensor: int) -> str:
    """Of one row; empty when there is none."""
    expected = rows([value], tensor)[0]
    wrong = np.flatnonzero(found != expected)
    if not len(wrong):
        return ""
    holds = int(found[:8].view(np.uint64)[0])
    return (
        f"{len(wrong)} of {BLOCK_BYTES} bytes of tensor {tensor} are wrong, the first at {wrong[0]}: "
        f"expected {name_of(value)}, found {name_of(holds) if holds != value else 'part of it'}"
    )
