"""Memory pools of an instance: one piece of device or host memory, handed out in whole pages."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import checks
from .messages import refusal
from .option_checks import load_object

if TYPE_CHECKING:
    import torch

DEFAULT_PAGE_SHIFT = 16
_LEAST_PAGE_SHIFT, _END_OF_PAGE_SHIFTS = 10, 31
_MAX_PAGES = 2**32 - 1


@dataclass(frozen=True)
class PoolConfig:
    """
    Attributes:
        memory_size: bytes of the pool.
        page_shift: a page has ``2**page_shift`` bytes; every tensor takes whole pages.
    """

    memory_size: int
    page_shift: int

    @property
    def page_bytes(self) -> int:
        return 1 << self.page_shift


def read_pool_config(name: str, text: str | None) -> PoolConfig | None:
    """From the JSON of ``mem_pool_cfg`` or ``host_mem_pool_cfg``; None when there is to be no pool.

    Raises:
        LLMException: ``LLM_PARAM_INVALID``; ``name`` begins the message.

    Source: manual page mem_pool_cfg.
    """
    if not text:
        return None
    given = load_object(name, text)
    if "memory_size" not in given:
        raise refusal("bad_value", name=name, value=checks.shown(text), expected="an object with memory_size")
    unknown = sorted(given.keys() - {"memory_size", "page_shift"})
    if unknown:
        raise refusal(
            "unknown_fields", name=name, value=", ".join(unknown), fields="memory_size and page_shift"
        )
    size = _natural(f"{name}: memory_size", given["memory_size"])
    shift = _natural(f"{name}: page_shift", given.get("page_shift", DEFAULT_PAGE_SHIFT))
    if not _LEAST_PAGE_SHIFT <= shift < _END_OF_PAGE_SHIFTS:
        raise refusal(
            "bad_value",
            name=f"{name}: page_shift",
            value=shift,
            expected=f"{_LEAST_PAGE_SHIFT} to {_END_OF_PAGE_SHIFTS - 1}",
        )
    if not 1 <= size >> shift < _MAX_PAGES:
        raise refusal(
            "bad_value",
            name=f"{name}: memory_size",
            value=size,
            expected=f"1 to {_MAX_PAGES - 1} pages of {1 << shift} bytes",
        )
    return PoolConfig(size, shift)


def _natural(name: str, value: object) -> int:
    if not checks.is_integer(value) or not isinstance(value, int) or value < 0:
        raise refusal("bad_value", name=name, value=repr(value), expected="an unsigned integer")
    return value


class MemoryPool:
    """Thread-safe.

    Args:
        name: the option that asked for it, for messages.
        memory: uint8[memory_size], on the device or the CPU.
    """

    def __init__(self, name: str, config: PoolConfig, memory: torch.Tensor) -> None:
        self._name = name
        self._page_bytes = config.page_bytes
        self._memory = memory
        self._pages = config.memory_size >> config.page_shift
        self._lock = threading.Lock()
        self._free = [(0, self._pages)]  # (first page, number of pages), sorted, never neighbours

    def require_room(self, tensors: int, total_bytes: int) -> None:
        """Raises ``OutOfMemoryError`` where even an empty pool could not hold so much."""
        if tensors > self._pages or total_bytes > self._pages * self._page_bytes:
            with self._lock:
                raise self._is_full(tensors, total_bytes)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """One uint8 tensor of each size in bytes, at a page of its own; all of them or none.

        Raises:
            OutOfMemoryError: naming what was wanted and what is free.
        """
        taken: list[tuple[int, int]] = []
        with self._lock:
            for size in sizes:
                first = self._take(-(-size // self._page_bytes))
                if first is None:
                    for start, length in taken:
                        self._give_back(start, -(-length // self._page_bytes))
                    raise self._is_full(len(sizes), sum(sizes))
                taken.append((first, size))
        return [self._memory.narrow(0, first * self._page_bytes, size) for first, size in taken]

    def free(self, pieces: Sequence[torch.Tensor]) -> None:
        """Takes back what ``allocate`` gave."""
        base = self._memory.data_ptr()
        with self._lock:
            for piece in pieces:
                first = (piece.data_ptr() - base) // self._page_bytes
                self._give_back(first, -(-piece.nbytes // self._page_bytes))

    def free_bytes(self) -> int:
        with self._lock:
            return sum(count for _, count in self._free) * self._page_bytes

    def _is_full(self, tensors: int, total_bytes: int) -> Exception:
        return refusal(
            "pool_is_full",
            tensors=tensors,
            value=total_bytes,
            pool=self._name,
            free=sum(count for _, count in self._free),
            pages=self._pages,
            each=self._page_bytes,
        )

    def _take(self, count: int) -> int | None:
        for i, (first, free) in enumerate(self._free):
            if free >= count:
                self._free[i : i + 1] = [(first + count, free - count)] if free > count else []
                return first
        return None

    def _give_back(self, first: int, count: int) -> None:
        i = bisect.bisect(self._free, (first, 0))
        if i < len(self._free) and self._free[i][0] == first + count:
            count += self._free.pop(i)[1]
        if i > 0 and sum(self._free[i - 1]) == first:
            first, before = self._free.pop(i - 1)
            count += before
            i -= 1
        self._free.insert(i, (first, count))
