"""``CacheManager.expect``: a receiver says where a ticket's blocks go, so that they may travel packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks
from .block_transfer import read_block_list
from .messages import refusal
from .peer_caches import PeerCaches


class ExpectedTransfers(PeerCaches):
    """The part of ``CacheManager`` that is about packed transfers at their receiver."""

    def expect(
        self,
        ticket: int,
        dst_blocks: Sequence[int] | torch.Tensor,
        *,
        timeout_s: float = 5.0,
    ) -> bool:
        """Says where the blocks of a ticket go, so that its push may travel packed.

        Many small blocks are gathered by the sender, sent as one piece per layer, and scattered here as they
        arrive; ``Binding.bind([ticket])`` waits for that as for any other ticket, before or after this call.
        A push goes packed when its sender asked for that (``prepare_push(packed=True)``), and otherwise when
        the planner thinks that it takes less time and this was called before the sender bound the task. Else
        it goes where the sender says, and this call has no effect.

        No stream waits. The first call on a link sets ``packed_staging_bytes`` of device memory aside; after
        that nothing is allocated as long as the lists are no longer.

        Args:
            ticket: of the peer's ``prepare_push``.
            dst_blocks: block ``src_blocks[i]`` goes to block ``dst_blocks[i]`` of the cache that the sender
                named. A list or tuple of ints; or int64 on the cache's device, read behind the earlier work
                of the current stream, where entries after the sender's last are padding. Of such a tensor an
                entry that names no block, or one a second time, is skipped: it is never written to, and the
                ticket and the status of its forward say ``LLM_PARAM_INVALID`` in the end.
            timeout_s: how long the sender's own word on the ticket may take.

        Returns:
            Whether it may go packed; False for a ticket that its sender sends direct in any case.

        Raises:
            TypeError, ValueError: wrong types; a negative block.
            LLMException: ``LLM_PARAM_INVALID`` for a ticket that is used up, discarded or expected already,
                for another number of blocks than are sent, and for a block outside the cache or listed twice;
                the ticket is still good. ``LLM_TIMEOUT`` when the sender has not confirmed the ticket.

        Not in the original.

        >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0, 1], [5, 6], packed=True)
        >>> decode.cache_manager.expect(task.ticket, [7, 4])  # at the receiver; it has the last word
        True
        >>> llm_datadist.discard(task)
        """
        asked = "expect"
        number = checks.integer(f"{asked}: ticket", ticket, 1, 2**53 - 1)
        timeout_ms = checks.seconds_as_ms(f"{asked}: timeout_s", timeout_s)
        may_pack, memory = self._native.ticket_expect(number, _read_blocks(asked, dst_blocks), timeout_ms)
        if memory is not None:
            self._links.announce_staging(number >> 32, memory, self._options.packed_staging_bytes)
        return bool(may_pack)


def _read_blocks(asked: str, dst_blocks: Sequence[int] | torch.Tensor) -> torch.Tensor:
    if isinstance(dst_blocks, torch.Tensor):
        if dst_blocks.device.type != "npu":
            raise refusal(
                "bad_value",
                name=f"{asked}: dst_blocks",
                value=f"a tensor on {dst_blocks.device}",
                expected="one on the cache's NPU, or a list",
            )
        return dst_blocks
    return torch.tensor(read_block_list(asked, "dst_blocks", dst_blocks), dtype=torch.int64)
