"""Blocks that a failed transfer may still write: nobody gets them before the library says that nobody will.

Then they are written anew at once, and looked at a little later: what still comes is found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.soak.member import Life

if TYPE_CHECKING:
    from tests.soak.soak import Soak

CLEARED_WITHIN_S = 60.0  # without anybody being frozen
LOOKED_AT_AGAIN_S = 0.3


async def settle(soak: Soak, life: Life, blocks: Sequence[int], command: str, number: int) -> None:
    """``command`` says whether they may still be written, by the link or ticket ``number``."""
    if soak.sabotage != "reuse":
        await _cleared(soak, life, command, number, blocks)
    await write(soak, life, blocks)
    soak.findings.recovered["blocks out of doubt"] += len(blocks)
    with life.blocks.reading(blocks) as stamps:
        await asyncio.sleep(LOOKED_AT_AGAIN_S)
        await soak.look(life, blocks, stamps, "that had been in doubt")


async def _cleared(soak: Soak, life: Life, command: str, *args: Any) -> None:
    began = time.monotonic()
    while await life.ask(command, *args):
        began = max(began, soak.last_frozen_at())
        if time.monotonic() - began > CLEARED_WITHIN_S:
            text = f"{life}: {command}{args} has not become false within {CLEARED_WITHIN_S} s"
            soak.findings.add(soak.findings.hangs, text)
            began = time.monotonic()
        await asyncio.sleep(0.02)


async def write(soak: Soak, life: Life, blocks: Sequence[int]) -> None:
    """New bytes into blocks that nobody else reads or writes."""
    stamps = life.blocks.fresh(len(blocks))
    await life.ask("write", blocks, stamps)
    life.blocks.end_write(blocks, stamps)
