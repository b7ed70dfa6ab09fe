"""Who touched which bytes last."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch_llm_datadist.emulator.race_clock import Clock
from torch_llm_datadist.emulator.race_trace import Event, Line


class Access(NamedTuple):
    line: Line
    at: int
    origin: Event


@dataclass
class Piece:
    end: int
    write: Access | None = None
    reads: list[Access] = field(default_factory=list)


class Shadow:
    """The last write of each byte of one memory, and the reads since then."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.pieces: dict[int, Piece] = {}

    def _cut(self, edge: int) -> None:
        i = bisect_right(self.begins, edge) - 1
        if i < 0:
            return
        begin = self.begins[i]
        piece = self.pieces[begin]
        if begin == edge or piece.end <= edge:
            return
        self.begins.insert(i + 1, edge)
        self.pieces[edge] = Piece(piece.end, piece.write, list(piece.reads))
        piece.end = edge

    def touch(
        self, begin: int, end: int, access: Access, now: Clock, writes: bool
    ) -> Iterator[tuple[int, int, Access, bool]]:
        """What the access races with: where, with whom, and whether that one wrote."""
        self._cut(begin)
        self._cut(end)
        first, last = bisect_left(self.begins, begin), bisect_left(self.begins, end)
        inside = self.begins[first:last]
        for at in inside:
            piece = self.pieces[at]
            if piece.write is not None and not now.covers(piece.write.line, piece.write.at):
                yield at, piece.end, piece.write, True
            for read in piece.reads if writes else ():
                if not now.covers(read.line, read.at):
                    yield at, piece.end, read, False
        if writes:
            for at in inside:
                del self.pieces[at]
            self.begins[first:last] = [begin]
            self.pieces[begin] = Piece(end, access)
            return
        gaps, at = [], begin
        for known in inside:
            if known > at:
                gaps.append((at, known))
            piece = self.pieces[known]
            piece.reads = [read for read in piece.reads if not now.covers(read.line, read.at)] + [access]
            at = piece.end
        if at < end:
            gaps.append((at, end))
        for gap_begin, gap_end in gaps:
            self.begins.insert(bisect_left(self.begins, gap_begin), gap_begin)
            self.pieces[gap_begin] = Piece(gap_end, None, [access])

    def forget(self, begin: int, end: int) -> None:
        self._cut(begin)
        self._cut(end)
        first, last = bisect_left(self.begins, begin), bisect_left(self.begins, end)
        for at in self.begins[first:last]:
            del self.pieces[at]
        del self.begins[first:last]
