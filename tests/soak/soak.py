"""The conductor: starts one step after the other and does not wait for it, stands still now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence

from tests.soak import content, doubts, faults
from tests.soak.findings import MAY_GROW, Findings
from tests.soak.links import Links
from tests.soak.member import HANGS_AFTER_S, Life, Member, OverError, RefusedError
from tests.soak.schedule import WEIGHTS, Kind, Step, steps
from tests.soak.transfers import TRANSFERS

QUIET_WITHIN_S = 120.0
KEPT_EACH_TIME = 2 * MAY_GROW["device"]
FAULTS = {
    Kind.KILL: faults.kill,
    Kind.FREEZE: faults.freeze,
    Kind.FREEZE_HOST: faults.freeze_host,
    Kind.RESTART: faults.restart,
}


class Soak:
    """
    Args:
        calm_every_s: how often it stands still: all ends, everybody unlinks, every byte is looked at, and
            what each process holds is noted.
        weights: how often each kind of step comes.
        sabotage: "flip" spoils bytes that have arrived, "early" looks at blocks without a wait for their
            arrival, "reuse" hands blocks out that are in doubt, "leak" keeps more memory each time it stands
            still, "hang" asks for what is never answered. Each must be found.
        hangs_after_s: how long a member may take to answer.
    """

    def __init__(
        self,
        seed: int,
        members: int,
        seconds: float,
        calm_every_s: float = 30.0,
        weights: Mapping[Kind, float] = WEIGHTS,
        sabotage: str = "",
        hangs_after_s: float = HANGS_AFTER_S,
    ) -> None:
        self.findings = Findings()
        self.links = Links(self.findings)
        self.sabotage = sabotage
        self._weights = weights
        self._seed, self._seconds, self._calm_every_s = seed, seconds, calm_every_s
        self._members = [Member(index, self.findings, hangs_after_s) for index in range(members)]
        self._running: set[asyncio.Task[None]] = set()
        self._most = 4 * members
        self._last_frozen_at = 0.0

    async def run(self) -> Findings:
        await asyncio.gather(*(member.revive() for member in self._members))
        self.findings.say(f"{len(self._members)} members, seed {self._seed}")
        end = time.monotonic() + self._seconds
        calm_at = time.monotonic() + self._calm_every_s
        for step in steps(self._seed, len(self._members), self._weights):
            if time.monotonic() > end or (self.sabotage and self.findings.are_bad):
                break
            if time.monotonic() > calm_at:
                await self._calm()
                if self.sabotage:  # which ends what has found it
                    self.findings.judge_footprints()
                calm_at = time.monotonic() + self._calm_every_s
            while len(self._running) >= self._most:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._take(step), name=str(step))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.sleep(step.pause_s)
        await self._calm()
        self.findings.judge_footprints()
        for member in self._members:
            if member.life is not None:
                member.life.process.kill()
        return self.findings

    def last_frozen_at(self) -> float:
        if any(m.life is not None and m.life.process.is_frozen for m in self._members):
            self._last_frozen_at = time.monotonic()
        return self._last_frozen_at

    def has_reached_sabotage(self) -> bool:
        return self.findings.done.total() > 20

    async def look(self, life: Life, blocks: Sequence[int], stamps: list[int], which: str) -> None:
        """Compares every byte of these blocks with the model."""
        wrong = await life.ask("look", blocks, stamps)
        self.findings.bytes_checked += len(blocks) * content.TENSORS * content.BLOCK_BYTES
        for text in wrong:
            self.findings.add(self.findings.wrong, f"{life}, blocks {which}: {text}")

    async def _take(self, step: Step) -> None:
        began = time.monotonic()
        try:
            if step.kind in FAULTS:
                await FAULTS[step.kind](self, step, self._members[step.actor])
            else:
                await self._take_well(step)
        except OverError:
            self.findings.failed[step.kind.value] += 1
        except RefusedError as error:
            self.findings.failed[step.kind.value] += 1
            self.findings.say(f"step {step}: {error}")
        except Exception as error:
            self.findings.add(self.findings.broken, f"step {step}: {type(error).__name__}: {error}")
            raise
        finally:
            self.findings.took(str(step), time.monotonic() - began)

    async def _take_well(self, step: Step) -> None:
        a, b = (self._members[index].life for index in (step.actor, step.other))
        if a is None or b is None:
            self.findings.left_out["member away"] += 1
            return
        if step.kind in (Kind.WRITE, Kind.LOOK):
            await self._alone(step, a)
            return
        link = await self.links.between(a, b)
        if link is None:
            self.findings.left_out["no link"] += 1
        elif step.kind == Kind.UNLINK:
            await self.links.end(link, force=step.way < 0.5)
            self.findings.faults["unlinks"] += 1
        else:
            good = await TRANSFERS[step.kind](self, step, a, b, link)
            (self.findings.done if good else self.findings.failed)[step.kind.value] += 1

    async def _alone(self, step: Step, life: Life) -> None:
        if self.sabotage == "hang":
            await life.ask("never_answer")
        chance = random.Random(step.seed)
        if step.kind == Kind.WRITE:
            blocks = life.blocks.unused(chance, step.blocks)
            life.blocks.begin_write(blocks)
            await doubts.write(self, life, blocks)
            return
        known = life.blocks.known(chance, content.BLOCKS // 2)
        with life.blocks.reading(known) as stamps:
            await self.look(life, known, stamps, "at rest")

    async def _calm(self) -> None:
        """Lets everything end, and finds what is left over."""
        began = time.monotonic()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=QUIET_WITHIN_S)
            for task in late:
                self.findings.add(self.findings.hangs, f"still under way after {QUIET_WITHIN_S} s: {task}")
                task.cancel()
        stood_still = time.monotonic()
        for member in self._members:
            life = member.life
            if life is not None and life.process.is_dead:
                if life.process.has_died_by_itself:  # and not for a hang
                    self.findings.add(self.findings.broken, f"{life}: its process ended by itself")
                member.end()
                await member.revive()
        lives = [member.life for member in self._members if member.life is not None]
        assert len(lives) == len(self._members), "a member is not back"
        await self.links.end_all(lives)
        for life in lives:
            await self._inspect(life)
        if self.sabotage == "leak":
            await lives[0].ask("keep", KEPT_EACH_TIME)
        self.findings.say(
            f"{self.findings.done.total()} transfers, {self.findings.faults.total()} faults; all had ended "
            f"after {stood_still - began:.1f} s, and was looked at for {time.monotonic() - stood_still:.1f} s"
        )

    async def _inspect(self, life: Life) -> None:
        for side in (life, life.host):
            if side.blocks.in_use():
                text = f"{side}: {side.blocks.in_use()} blocks are still in use"
                self.findings.add(self.findings.hangs, text)
            known = side.blocks.known(random.Random(0))
            await self.look(side, known, side.blocks.stamps(known), "at the end of a round")
        for _ in range(200):
            found = await life.ask("footprint")
            if not (found["links"] or found["held"] or found["doubts"]):
                break
            await asyncio.sleep(0.05)
        for what in ("links", "held", "doubts"):
            if found[what]:
                self.findings.add(self.findings.leaks, f"{life}: {found[what]} {what} are left")
        self.findings.footprint(f"member {life.cluster_id}, pid {life.process.pid}", found)
