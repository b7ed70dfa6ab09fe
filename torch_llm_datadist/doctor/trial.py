"""One push from this process into another one, verified; what ``doctor`` runs as its last step.

Two processes, since instances of one reach each other's memory by its addresses: nothing is exported, nor
imported, and what most often fails is not tried.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch_npu

import torch_llm_datadist as llm_datadist
from torch_llm_datadist.demo.child import die_with_parent

KEYS_AND_VALUES, BLOCKS, BLOCK_BYTES = 2, 16, 32 << 10
SENDER, RECEIVER = 1, 2
# Of each step of the other process. The first one imports torch and opens a device.
_ANSWERS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 10.0


class TrialError(Exception):
    """What the trial found. The other process may have said more on stderr, which is this one's."""


def _sent() -> torch.Tensor:
    """The same in both processes."""
    shape = (KEYS_AND_VALUES, BLOCKS, BLOCK_BYTES)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _instance(
    cluster_id: int, device: int, tensors: list[torch.Tensor]
) -> tuple[llm_datadist.LLMDataDist, llm_datadist.Cache]:
    config = llm_datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    instance = llm_datadist.LLMDataDist(llm_datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    desc = llm_datadist.CacheDesc(len(tensors), list(tensors[0].shape), llm_datadist.DataType.DT_UINT8)
    cache = instance.cache_manager.register_blocks_cache(
        desc, tensors, llm_datadist.BlocksCacheKey(cluster_id)
    )
    return instance, cache


def receive(connection: Connection, parent: int, device: int) -> None:
    """The other process: says at which port it listens, then, when asked, whether the bytes are right."""
    die_with_parent(parent)
    sent = _sent()
    target = [torch.zeros_like(half).to(f"npu:{device}") for half in sent]
    instance, _ = _instance(RECEIVER, device, target)
    try:
        connection.send(instance.listen_port)
        connection.recv()
        connection.send(torch.equal(torch.stack([half.cpu() for half in target]), sent.flip(1)))
    finally:
        instance.finalize()


class Receiver:
    """The process that runs `receive`, as this one sees it."""

    def __init__(self, device: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=receive, args=(theirs, os.getpid(), device), daemon=True)
        self._process.start()
        theirs.close()  # else its end would not be seen

    def answer(self) -> Any:
        if not self._connection.poll(_ANSWERS_WITHIN_S):
            raise TrialError(f"the receiving process says nothing for {_ANSWERS_WITHIN_S:g} s")
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_ENDS_WITHIN_S)
            raise TrialError(f"the receiving process ended, status {self._process.exitcode}") from None

    def has_right_bytes(self) -> bool:
        with contextlib.suppress(OSError):  # it ended, as `answer` sees
            self._connection.send(None)
        return bool(self.answer())

    def end(self, patience_s: float) -> None:
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()


def _push(receiver: Receiver, device: int) -> str:
    """Returns what is to be said of it."""
    sent = _sent()
    sender, cache = _instance(SENDER, device, [half.to(f"npu:{device}") for half in sent])
    try:
        peer = llm_datadist.LLMClusterInfo()
        peer.remote_cluster_id = RECEIVER
        peer.append_local_ip_info("127.0.0.1", 0)
        peer.append_remote_ip_info("127.0.0.1", receiver.answer())
        code, codes = sender.link_clusters([peer])
        if code != llm_datadist.LLMStatusCode.LLM_SUCCESS:
            # Why is logged before this, by both.
            raise TrialError(f"linking two processes of this machine failed: {codes[0].name}")
        order = list(range(BLOCKS))
        begin = time.monotonic()
        sender.cache_manager.push_blocks(llm_datadist.BlocksCacheKey(RECEIVER), cache, order, order[::-1])
        took = time.monotonic() - begin
        [link] = sender.links()
        if not receiver.has_right_bytes():
            raise TrialError("a push arrived with wrong bytes")
        return f"arrived intact in {took * 1e3:.1f} ms, over {link.transport}"
    finally:
        sender.finalize()


def main() -> int:
    count = torch_npu.npu.device_count()
    if count == 0:
        print("torch_npu sees no device", file=sys.stderr)
        return 1
    receiver, patience_s = Receiver(count - 1), 0.0
    try:
        said = _push(receiver, device=0)
        patience_s = _ENDS_WITHIN_S
    except (TrialError, llm_datadist.LLMException) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        receiver.end(patience_s)
    size = KEYS_AND_VALUES * BLOCKS * BLOCK_BYTES
    print(f"{size >> 10} KiB from npu:0 to npu:{count - 1}, of {count} devices, between two processes {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
