"""What each block of a member holds, and who uses it: the model that the bytes are checked against."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.soak import content


class Blocks:
    """Of one member in one life of it.

    A block is read by any number of transfers, or written by one. What is written holds nothing known until
    that write has ended and was checked.
    """

    ON_HOST = 0x8000  # in a generation: the stamps of blocks in host memory are others

    def __init__(self, cluster_id: int, generation: int) -> None:
        self._cluster_id, self._generation = cluster_id, generation
        self._writes = 0
        self._readers = [0] * content.BLOCKS
        self._is_written = [False] * content.BLOCKS
        self._stamps: list[int] = self.fresh(content.BLOCKS)

    def __len__(self) -> int:
        return content.BLOCKS

    def fresh(self, count: int) -> list[int]:
        """New stamps, for blocks that this member writes itself."""
        first = self._writes
        self._writes += count
        return [
            content.stamp(self._cluster_id, self._generation, number) for number in range(first, self._writes)
        ]

    def stamps(self, blocks: Sequence[int]) -> list[int]:
        return [self._stamps[block] for block in blocks]

    def known(self, chance: random.Random, count: int = content.BLOCKS) -> list[int]:
        """Blocks that nobody writes; at most so many."""
        return self._some(chance, count, [b for b in range(content.BLOCKS) if not self._is_written[b]])

    def unused(self, chance: random.Random, count: int) -> list[int]:
        """Blocks that nobody reads or writes; at most so many."""
        free = [b for b in range(content.BLOCKS) if not self._is_written[b] and not self._readers[b]]
        return self._some(chance, count, free)

    def in_use(self) -> int:
        return sum(self._is_written) + sum(1 for readers in self._readers if readers)

    @contextmanager
    def reading(self, blocks: Sequence[int]) -> Iterator[list[int]]:
        """They keep what they hold meanwhile; gives their stamps."""
        for block in blocks:
            assert not self._is_written[block], f"block {block} is read while it is written"
            self._readers[block] += 1
        try:
            yield self.stamps(blocks)
        finally:
            for block in blocks:
                self._readers[block] -= 1

    def begin_write(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            assert not self._is_written[block], f"block {block} is written twice"
            assert not self._readers[block], f"block {block} is written while it is read"
            self._is_written[block] = True

    def end_write(self, blocks: Sequence[int], stamps: Sequence[int]) -> None:
        for block, stamp in zip(blocks, stamps, strict=True):
            self._stamps[block] = stamp
            self._is_written[block] = False

    @staticmethod
    def _some(chance: random.Random, count: int, among: list[int]) -> list[int]:
        return chance.sample(among, min(count, len(among)))
