"""Kills, freezes and restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.soak.member import KEEP_ALIVE_S, Life, Member, OverError
from tests.soak.schedule import Step
from torch_llm_datadist.emulator import faults

if TYPE_CHECKING:
    from tests.soak.soak import Soak

BACK_AFTER_AT_MOST_S = 1.0


async def kill(soak: Soak, step: Step, member: Member) -> None:
    """SIGKILL, wherever it is, frozen or not; a successor with the same cluster id follows."""
    life = member.end()
    if life is None:
        soak.findings.left_out["kill"] += 1
        return
    if life.process.has_died_by_itself:
        soak.findings.add(soak.findings.broken, f"{life}: its process ended by itself")
    else:
        life.process.kill()
        soak.findings.faults["kills"] += 1
    await asyncio.to_thread(life.process.join)
    await asyncio.sleep(min(step.lasts_s, BACK_AFTER_AT_MOST_S))
    await member.revive()
    soak.findings.recovered["members back"] += 1


async def freeze(soak: Soak, step: Step, member: Member) -> None:
    """SIGSTOP: its emulated device stops with it."""
    life = member.life
    if life is None or life.process.is_frozen:
        soak.findings.left_out["freeze"] += 1
        return
    life.process.freeze()
    soak.findings.faults["freezes"] += 1
    try:
        await asyncio.sleep(step.lasts_s)
    finally:
        life.process.thaw()


async def stall(soak: Soak, step: Step, life: Life) -> None:
    """A freeze soon, longer than a link lasts without a sign of life."""
    await asyncio.sleep(0.1)
    if not life.is_over and not life.process.is_frozen:
        life.process.freeze()
        soak.findings.faults["freezes"] += 1
        await asyncio.sleep(1.5 * KEEP_ALIVE_S + 0.1 * step.lasts_s)
        life.process.thaw()


async def freeze_host(soak: Soak, step: Step, member: Member) -> None:
    """Its threads stop, its device goes on, as SIGSTOP does it to a real one."""
    life = member.life
    if life is None or life.process.is_frozen:
        soak.findings.left_out["freeze"] += 1
        return
    process, control = life.process, faults.of(life.process.pid)
    process.is_frozen = True
    try:
        await asyncio.to_thread(control.freeze_host)
        soak.findings.faults["freezes of the host"] += 1
        await asyncio.sleep(step.lasts_s)
        await asyncio.to_thread(control.thaw_host)
    except OSError:
        if not process.is_dead:
            raise
    finally:
        process.mark_thawed()


async def restart(soak: Soak, step: Step, member: Member) -> None:
    """``finalize`` with whatever is under way, and a new instance in the same process."""
    life = member.end()
    if life is None:
        soak.findings.left_out["restart"] += 1
        return
    soak.findings.faults["restarts"] += 1
    try:
        await life.stop()
        await member.revive(life.process)
    except OverError:
        await member.revive()
    soak.findings.recovered["members back"] += 1
