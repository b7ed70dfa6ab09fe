"""Any bytes are lists of blocks, which are planned, or refused for the right reason; and the copies of a plan
move exactly the bytes of its pairs.

    byte 0      tensors (2 bits), how they lie (2 bits)
    byte 1, 2   blocks of the source and of the destination
    byte 3      bytes of a block
    the rest    a source and a destination each; an odd last byte is a source alone
"""

from __future__ import annotations

import torch

from torch_llm_datadist import LLMException, LLMStatusCode, _native

BLOCK_BYTES = (64, 1, 7, 4096, 2_500_001, 5_000_000, 5_000_001)  # a row of several has 5 000 000 at most
MAX_WIDTH = 5_000_000
PADDING = -1
# Beside ids from -1 to one too many.
HOSTILE = (-2, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**31), -(2**63))
SRC, DST = 1 << 30, 1 << 42

Tensor = tuple[int, int, int, int, int]  # src, dst, bytes of a block, slab at either end


def ids_of(data: bytes, count: int) -> list[int]:
    usual = 256 - len(HOSTILE)
    return [byte % (count + 2) - 1 if byte < usual else HOSTILE[byte - usual] for byte in data]


def tensors_of(count: int, layout: int, blocks: int, block_bytes: int) -> list[Tensor]:
    """In one allocation at either end, side by side or at uneven distances; or in one each."""
    size, slab = blocks * block_bytes, 0 if layout == 0 else 9
    gaps = (0, 1 << 21) if layout == 3 else (0, 0)
    return [
        (
            SRC + t * size + gaps[t % 2],
            DST + t * (size + (512 if layout == 2 else 0)),
            block_bytes,
            slab,
            slab,
        )
        for t in range(count)
    ]


def reason_to_refuse(src: list[int], dst: list[int], src_count: int, dst_count: int) -> str | None:
    if len(src) != len(dst):
        return "go in pairs"
    for at, (s, d) in enumerate(zip(src, dst, strict=True)):
        if (s, d) == (PADDING, PADDING):
            continue
        if not 0 <= s < src_count:
            return f"src_blocks[{at}] = {s} is outside"
        if not 0 <= d < dst_count:
            return f"dst_blocks[{at}] = {d} is outside"
    seen = set()
    for d in dst:
        if d in seen:
            return "twice"
        if d != PADDING:
            seen.add(d)
    return None


def plan(
    tensors: list[Tensor], src: list[int], dst: list[int], src_count: int, dst_count: int
) -> tuple[LLMException | None, list[tuple[int, int, int, int, int, int]]]:
    ids = torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64)
    try:
        return None, _native.load().plan_copies(tensors, *ids, src_count, dst_count)
    except LLMException as error:
        return error, []


def one_input(data: bytes) -> bool:
    """Whether it was planned. Raises for anything that must not happen."""
    head, body = (data + bytes(4))[:4], data[4:]
    src_count, dst_count = 1 + head[1] % 80, 1 + head[2] % 80
    src, dst = ids_of(body[0::2], src_count), ids_of(body[1::2], dst_count)
    block_bytes = BLOCK_BYTES[head[3] % len(BLOCK_BYTES)]
    tensors = tensors_of(1 + (head[0] & 3), head[0] >> 2 & 3, max(src_count, dst_count), block_bytes)
    reason = reason_to_refuse(src, dst, src_count, dst_count)
    refusal, copies = plan(tensors, src, dst, src_count, dst_count)
    if refusal is not None:
        assert refusal.status_code == LLMStatusCode.LLM_PARAM_INVALID, refusal
        assert reason is not None, f"refused: {refusal}"
        assert reason in str(refusal), (reason, str(refusal))
        return False
    assert reason is None, f"not refused: {reason}"
    pairs = [(s, d) for s, d in zip(src, dst, strict=True) if s != PADDING]
    expected = {to + d * block_bytes: start + s * block_bytes for start, to, *_ in tensors for s, d in pairs}
    moved: dict[int, int] = {}
    for start, to, width, height, src_pitch, dst_pitch in copies:
        assert width > 0
        assert width % block_bytes == 0
        assert height == 1 or width <= MAX_WIDTH
        for row in range(height):
            for offset in range(0, width, block_bytes):
                assert to + row * dst_pitch + offset not in moved, "written twice"
                moved[to + row * dst_pitch + offset] = start + row * src_pitch + offset
    assert moved == expected
    assert len(copies) <= len(expected)
    return True
