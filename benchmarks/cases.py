"""What is moved: so many blocks in each of so many tensors, scattered over twice as many."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    tensors: int
    blocks: int  # of one transfer
    block_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.tensors * self.blocks * self.block_bytes

    def halves(self) -> tuple[list[int], list[int]]:
        """Two transfers that touch every block once: no page is met for the first time while it counts."""
        return list(range(self.blocks)), list(range(self.blocks, 2 * self.blocks))

    def __str__(self) -> str:
        return f"{self.tensors} x {self.blocks} blocks of {self.block_bytes >> 10} KiB"


CASES = {
    "a": Case(64, 16, 256 << 10),
    "b": Case(64, 1, 256 << 10),
    "c": Case(61, 16, 144 << 10),
    "d": Case(64, 64, 16 << 10),
    "e": Case(1, 1, 256 << 10),
    "f": Case(1, 1, 4 << 10),
}
