"""Freezes a stream, queues more behind it than fits in torch_npu's queue, and thaws it by its Stream."""

from __future__ import annotations

import threading
import time

import torch

from torch_llm_datadist.emulator import faults

MORE_THAN_FITS = 9000  # tasks; about 6000 fit
STANDS_STILL_AFTER = 5000
queued = 0


def queue_them(stream: torch.npu.Stream, counter: torch.Tensor) -> None:
    global queued
    with torch.npu.stream(stream):
        for _ in range(MORE_THAN_FITS):
            counter.add_(1)
            queued += 1


side = torch.npu.Stream()
counter = torch.zeros(1, device="npu")
torch.npu.synchronize()
faults.freeze_stream(side)
queueing = threading.Thread(target=queue_them, args=[side, counter])
queueing.start()
before = 0
while queued < STANDS_STILL_AFTER or queued != before:  # until it stands still
    before = queued
    time.sleep(0.2)
faults.thaw_stream(side)
queueing.join()
side.synchronize()
assert before < MORE_THAN_FITS, "all of it fitted: nothing stood still"
assert counter.item() == MORE_THAN_FITS
