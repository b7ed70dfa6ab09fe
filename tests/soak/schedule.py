"""What happens, one step after the other: the same seed gives the same steps, however fast they go.

A step says who and what; which blocks are free at that moment, and whether the two are linked, is only known
when it begins, and is decided by a generator of the step's own.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


class Kind(enum.Enum):
    PUSH = "push"
    TAGGED = "tagged push"
    PULL = "pull"
    PUBLISH = "pull of a publication"
    LAYERS = "push by layers"
    PACKED = "packed push by layers"
    ASYNC = "transfer_cache_async"
    ENTRY_PUSH = "push of a whole entry"
    ENTRY_PULL = "pull of a whole entry"
    HOST_PUSH = "push from or to host memory"
    HOST_PULL = "pull from or to host memory"
    GIVE_UP = "push given up"
    CANCEL = "push cancelled"
    LATE = "push past its deadline"
    STALL = "push of a sender that freezes"
    WRITE = "write"
    LOOK = "look"
    UNLINK = "unlink"
    KILL = "kill"
    FREEZE = "freeze"
    FREEZE_HOST = "freeze of the host"
    RESTART = "restart"


# How often each comes, compared with the others.
WEIGHTS: dict[Kind, float] = {
    Kind.PUSH: 20,
    Kind.TAGGED: 6,
    Kind.PULL: 16,
    Kind.PUBLISH: 10,
    Kind.LAYERS: 20,
    Kind.PACKED: 8,
    Kind.ASYNC: 6,
    Kind.ENTRY_PUSH: 5,
    Kind.ENTRY_PULL: 5,
    Kind.HOST_PUSH: 6,
    Kind.HOST_PULL: 6,
    Kind.GIVE_UP: 5,
    Kind.CANCEL: 5,
    Kind.LATE: 2,
    Kind.STALL: 0.7,
    Kind.WRITE: 8,
    Kind.LOOK: 6,
    Kind.UNLINK: 2,
    Kind.KILL: 2.5,
    Kind.FREEZE: 0.7,
    Kind.FREEZE_HOST: 0.3,
    Kind.RESTART: 0.3,
}


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        actor, other: two members.
        blocks: how many.
        pause_s: until the next step.
        delay_s: how long a kernel in front of the transfer takes; mostly 0.
        lasts_s: how long a freeze takes, or until one that was killed is back.
        way: from 0 to 1, decides between what the kind leaves open.
        seed: of what is decided when it begins.
    """

    number: int
    kind: Kind
    actor: int
    other: int
    blocks: int
    pause_s: float
    delay_s: float
    lasts_s: float
    way: float
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.number} {self.kind.value}: {self.actor} with {self.other}, {self.blocks} blocks, "
            f"delay {self.delay_s:.3f} s, lasts {self.lasts_s:.2f} s, way {self.way:.3f}, "
            f"pause {self.pause_s:.4f} s"
        )


def steps(
    seed: int, members: int, weights: Mapping[Kind, float] = WEIGHTS, pause_s: float = 0.02
) -> Iterator[Step]:
    """Without end. Member 0 is neither killed nor restarted, so that what leaks adds up there."""
    chance = random.Random(seed)
    kinds, often = list(weights), list(weights.values())
    number = 0
    while True:
        kind = chance.choices(kinds, often)[0]
        actor, other = chance.sample(range(members), 2)
        if actor == 0 and kind in (Kind.KILL, Kind.RESTART):
            actor, other = other, actor
        yield Step(
            number,
            kind,
            actor,
            other,
            blocks=chance.randint(1, 12),
            pause_s=chance.expovariate(1 / pause_s),
            delay_s=max(0.0, chance.uniform(-0.15, 0.05)),
            lasts_s=chance.choice((0.05, 0.3, 1.0, 3.0, 4.0)) * chance.uniform(0.5, 1.5),
            way=chance.random(),
            seed=chance.getrandbits(32),
        )
        number += 1
