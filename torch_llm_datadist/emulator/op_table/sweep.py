"""Checks many calls in child processes: an op that fails on the device takes its process along."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

import torch

from .calls import Call
from .check import Outcome, Verdict, check, worst

STUCK_AFTER_S = 120.0


def _work(calls: list[tuple[str, list[Call]]], results: Connection) -> None:
    torch.set_num_threads(1)
    for name, samples in calls:
        verdict = worst([check(call) for call in samples])
        results.send((name, verdict))
        if "error code is 507035" in verdict.why:  # the stream is dead, and with it all that follows
            break
    results.close()
    os._exit(0)


def sweep(calls: dict[str, list[Call]]) -> dict[str, Verdict]:
    """A verdict for each overload. This process must not have used the device."""
    if torch.npu.is_initialized():  # type: ignore[attr-defined]
        raise RuntimeError("the device is in use already, and a process that uses one must not be forked")
    context = multiprocessing.get_context("fork")
    left = list(calls.items())
    verdicts: dict[str, Verdict] = {}
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(left, theirs))
        worker.start()
        theirs.close()
        done = len(verdicts)
        try:
            while ours.poll(STUCK_AFTER_S):
                name, verdict = ours.recv()
                verdicts[name] = verdict
            reason = f"did not end within {STUCK_AFTER_S:.0f} s"
        except EOFError:
            reason = "ends the process"
        worker.kill()
        worker.join()
        left = [(name, samples) for name, samples in left if name not in verdicts]
        if left and len(verdicts) == done:  # not one: the first one is the cause
            verdicts[left[0][0]] = Verdict(Outcome.RAISES, reason)
            left = left[1:]
    return verdicts
