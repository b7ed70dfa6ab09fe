"""A blocking transfer: one op call, and a wait on the host for its end. No stream ever waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import TypeAlias

import torch

from . import late_copies, ops
from .block_transfer import BlockTransfer
from .cache import Cache
from .checks import as_int64
from .entry_transfer import EntryTransfer
from .errors import LLMException, LLMStatusCode, class_for_code
from .link_table import Link
from .messages import refusal
from .options import Options

# A transfer that failed and may still write: takes its task, which it frees, and completes the error.
Unfinished: TypeAlias = Callable[[int, LLMException], LLMException]


def has_come_here(native: ModuleType, device: int, timeout_ms: int, asked: str) -> bool:
    """Whether the current stream comes to the end of what is queued there in time."""
    # In lazy mode of the emulator a stream comes nowhere, unless a call of the runtime waits for it.
    if os.environ.get("TORCH_LLM_DATADIST_EMULATE_LAZY") == "1":
        return True
    return bool(native.wait_for_current_stream(device, timeout_ms, asked))


class BlockingCall:
    """Thread-safe."""

    def __init__(self, native: ModuleType, options: Options) -> None:
        self._native = native
        self._options = options
        self._per_thread = threading.local()

    def move_blocks(
        self,
        asked: str,
        op: Callable[..., None],
        cache: Cache,
        transfer: BlockTransfer,
        link: Link,
        model_id: int,
        unfinished: Unfinished,
        ticket: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Calls ``ops.push_blocks`` or ``ops.pull_blocks`` and waits: at most ``stream_timeout`` for the
        earlier work of the current stream, and ``sync_kv_timeout`` from then on.

        Args:
            asked: name of the caller's method, for messages.
            cache: the local cache.
            model_id: of the cache at the peer.
            unfinished: what to do when it fails and may still write.
            ticket: ``{"ticket": …}`` for a pull of what its holder published.

        Raises:
            LLMException: by the op, before anything was queued, or for how the transfer ended.
        """
        self._run(
            asked,
            lambda status, handle: op(
                status,
                list(cache.tensors),
                transfer.src_blocks,
                transfer.dst_blocks,
                link=link.handle,
                model_id=as_int64(model_id),
                src_layer=transfer.src_layer,
                dst_layer=transfer.dst_layer,
                num_layers=transfer.num_layers,
                tensors_per_layer=transfer.tensors_per_layer,
                timeout_ms=self._options.sync_kv_timeout_ms,
                hold_stream=False,
                transfer=handle,
                **ticket,
            ),
            unfinished,
        )

    def move_entry(
        self,
        asked: str,
        op: Callable[..., None],
        cache: Cache,
        transfer: EntryTransfer,
        link: Link,
        unfinished: Unfinished,
        ticket: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """As ``move_blocks``, with ``ops.push_cache`` or ``ops.pull_cache``."""
        try:
            self._run(
                asked,
                lambda status, handle: op(
                    status,
                    list(cache.tensors),
                    transfer.dst_blocks,
                    link=link.handle,
                    cache_id=transfer.cache_id,
                    src_batch=transfer.src_batch,
                    dst_batch=transfer.dst_batch,
                    size=transfer.size,
                    src_layer=transfer.src_layer,
                    dst_layer=transfer.dst_layer,
                    num_layers=transfer.num_layers,
                    tensors_per_layer=transfer.tensors_per_layer,
                    timeout_ms=self._options.sync_kv_timeout_ms,
                    hold_stream=False,
                    transfer=handle,
                    **ticket,
                ),
                unfinished,
            )
        except LLMException as error:
            name = "push_cache: " if op is ops.push_cache else "pull_cache: "
            if asked == name[:-2] or not str(error).startswith(name):
                raise
            message = f"{asked}: {str(error).removeprefix(name)}"
            renamed = type(error)(message, status_code=error.status_code)
            renamed.blocks_in_doubt = error.blocks_in_doubt
            raise renamed from None

    def copy(
        self, asked: str, what: str, caches: Sequence[Cache], call: Callable[[torch.Tensor], None]
    ) -> None:
        """Calls an op that copies on the current stream, and waits until that has got there, at most for
        ``stream_timeout``.

        Args:
            what: is copied, for messages.
            caches: the copies read or write them.
        """
        late_copies.let_go()
        status = self._status()
        call(status)
        is_done = False
        try:
            is_done = has_come_here(
                self._native, self._options.device, self._options.stream_timeout_ms, asked
            )
        finally:
            if not is_done:  # the copies may still write, the status as well
                del self._per_thread.status
                late_copies.hold(self._options.device, caches, status)
        if not is_done:
            raise refusal(
                "copy_is_late",
                asked=asked,
                what=what,
                device=self._options.device,
                value=self._options.stream_timeout_ms,
            )
        if int(status.item()) != 0:
            status.zero_()
            raise refusal("copy_was_refused", asked=asked, value="a copy")

    def _run(self, asked: str, call: Callable[[torch.Tensor, int], None], unfinished: Unfinished) -> None:
        late_copies.let_go()
        handle = self._native.transfer_create()
        try:
            call(self._status(), handle)
        except BaseException:
            self._native.transfer_free(handle)
            raise
        code, detail, task = self._native.transfer_outcome(handle, self._options.stream_timeout_ms)
        if code != LLMStatusCode.LLM_SUCCESS:
            error = class_for_code(code)(detail if detail.startswith(asked) else f"{asked}: {detail}")
            raise unfinished(task, error) if task else error

    def _status(self) -> torch.Tensor:
        """The op's status tensor, one per thread; the code that counts is the one of ``transfer_wait``."""
        if not hasattr(self._per_thread, "status"):
            device = f"npu:{self._options.device}"
            self._per_thread.status = torch.zeros(1, dtype=torch.int32, device=device)
        status: torch.Tensor = self._per_thread.status
        return status
