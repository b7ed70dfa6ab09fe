"""A peer fails at every stage: what the survivor sees, how soon, and that it goes on serving everybody else.

Each case records its row; ``make reliability`` makes docs/reliability.md of them.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import instances
from tests.links import pattern, push, start, wait_unlinked
from tests.peers import Peer
from tests.reliability import page, stages
from tests.reliability.cases import CASES, CUT, ENDS_WITHIN_S, FAULTS, KEEP_ALIVE_S, MOST_PAUSE_S, STAGES
from tests.reliability.stages import BYSTANDER, VICTIM, Seen
from torch_llm_datadist.emulator import faults

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SIGNALS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


class Scene:
    """The survivor, cluster 1, with a victim, 2, and a bystander, 3; the last two listen."""

    def __init__(self, peers: Callable[[int], list[Peer]]) -> None:
        self._peers = peers
        self.survivor, self.victim, self.bystander = peers(3)
        options = {"sync_kv_timeout": 10_000}
        self.survivor.call(start, 1, 0, options)
        self.port = self.victim.call(start, VICTIM, 1, options)
        port = self.bystander.call(start, BYSTANDER, 2, options)
        assert self.survivor.call(instances.link, BYSTANDER, port) == ["LLM_SUCCESS"]

    def link(self) -> None:
        assert self.survivor.call(instances.link, VICTIM, self.port) == ["LLM_SUCCESS"]
        self.victim.call(instances.wait_linked, 1)

    def fail(self, fault: str) -> None:
        if fault == "killed":
            self.victim.kill()
        else:
            self.victim.freeze()

    def bystander_is_served(self) -> str:
        for who, whom in ((self.survivor, BYSTANDER), (self.bystander, 1)):
            said = who.call(push, whom, [4], [7])
            assert said == "LLM_SUCCESS", said
        arrived: Any = self.bystander.call(instances.content)
        assert torch.equal(arrived[:, 7], pattern(1)[:, 4])
        return "pushes to and from the other peer"

    def is_replaced(self, fault: str) -> str:
        """By a process with the same cluster id, or, where it was frozen, by itself."""
        who = self.victim
        if fault == "killed":
            (who,) = self._peers(1)
            self.port = who.call(start, VICTIM, 1, {})
        else:
            who.thaw()
            who.call(wait_unlinked, 1, ENDS_WITHIN_S)
        assert self.survivor.call(instances.link, VICTIM, self.port) == ["LLM_SUCCESS"]
        assert self.survivor.call(push, VICTIM, [1], [6]) == "LLM_SUCCESS"
        arrived: Any = who.call(instances.content)
        assert torch.equal(arrived[:, 6], pattern(1)[:, 1])
        return "a new link to " + ("its successor" if fault == "killed" else "it, thawed")


def connect(scene: Scene, fault: str) -> Seen:
    scene.fail(fault)
    return scene.survivor.call(stages.connect, scene.port)  # type: ignore[no-any-return]


def handshake(scene: Scene, fault: str) -> Seen:
    scene.victim.call(stages.fail_in_handshake, int(SIGNALS[fault]))
    return scene.survivor.call(stages.connect, scene.port)  # type: ignore[no-any-return]


def first_use(scene: Scene, fault: str) -> Seen:
    scene.link()
    scene.fail(fault)
    return scene.survivor.call(stages.push_on)  # type: ignore[no-any-return]


def queued_push(scene: Scene, fault: str) -> Seen:
    scene.link()
    assert scene.survivor.call(push, VICTIM, [0], [0]) == "LLM_SUCCESS"
    # A frozen one's memory can be written: what ends the pushes is the loss of its link, so that comes first.
    scene.survivor.call(stages.queue_pushes, 0.3 if fault == "killed" else 2.5 * KEEP_ALIVE_S)
    scene.fail(fault)
    return scene.survivor.call(stages.read_statuses)  # type: ignore[no-any-return]


def running_push(scene: Scene, fault: str) -> Seen:
    scene.link()
    assert scene.survivor.call(push, VICTIM, [0], [0]) == "LLM_SUCCESS"
    first = scene.survivor.call(stages.address_of_first_block)
    held = faults.of(scene.survivor.pid).hold_copy(after=100, address=first)
    scene.survivor.send(stages.push_once)
    held.wait()
    scene.fail(fault)
    try:
        return scene.survivor.answer(ENDS_WITHIN_S)  # type: ignore[no-any-return]
    finally:
        held.disarm()


def wait(scene: Scene, fault: str) -> Seen:
    scene.link()
    scene.survivor.call(stages.bind_ticket, scene.victim.call(stages.prepare))
    scene.survivor.send(stages.wait_for_layers)
    scene.fail(fault)
    return scene.survivor.answer(ENDS_WITHIN_S)  # type: ignore[no-any-return]


def unlink(scene: Scene, fault: str) -> Seen:
    scene.link()
    scene.fail(fault)
    return scene.survivor.call(stages.ask_to_unlink, scene.port)  # type: ignore[no-any-return]


def finalize(scene: Scene, fault: str) -> Seen:
    scene.link()
    scene.fail(fault)
    return scene.survivor.call(stages.finalize)  # type: ignore[no-any-return]


DO: dict[str, Callable[[Scene, str], Seen]] = {
    "connect": connect,
    "handshake": handshake,
    "import": first_use,
    "queued push": queued_push,
    "running push": running_push,
    "wait": wait,
    "unlink": unlink,
    "finalize": finalize,
}
# What may be seen; a link that was never made, one that is lost, one that is ended.
NOT_MADE = {"LLM_LINK_FAILED", "LLM_TIMEOUT"}
LOST = {"LLM_NOT_YET_LINK"}
EXPECTED: dict[str, set[str]] = {
    "connect": NOT_MADE,
    "handshake": NOT_MADE,
    "import": LOST,
    "queued push": LOST,
    "running push": LOST,
    "wait": LOST,
    "unlink": {"LLM_SUCCESS", "LLM_UNLINK_FAILED, then with force LLM_SUCCESS"},
    "finalize": {"it returned"},
}


@contextlib.contextmanager
def serving_meanwhile(survivor: Peer, stage: str) -> Iterator[Callable[[], str]]:
    """The survivor pushes to the bystander all the time; gives how far apart these pushes were, in words."""
    if stage == "finalize":  # with the instance all of its links end
        yield lambda: ""
        return
    pauses: list[float] = []
    survivor.call(stages.push_meanwhile)
    yield lambda: f", before that at most {pauses[0] * 1000:.0f} ms apart"
    pauses.append(survivor.call(stages.longest_pause))
    assert pauses[0] < MOST_PAUSE_S


ON_ONE_HOST = [case for case in CASES if case[0] != CUT]


@pytest.mark.parametrize(
    ("fault", "stage"), ON_ONE_HOST, ids=[f"{fault}-{stage}" for fault, stage in ON_ONE_HOST]
)
def test_the_survivor_is_told_in_time_and_goes_on(
    peers: Callable[[int], list[Peer]], record_property: Callable[[str, object], None], fault: str, stage: str
) -> None:
    scene = Scene(peers)

    with serving_meanwhile(scene.survivor, stage) as pause:
        saw, after_s = DO[stage](scene, fault)

    assert saw in EXPECTED[stage]
    assert after_s < ENDS_WITHIN_S
    if stage == "finalize":
        # The survivor's process goes on with a new instance.
        scene.survivor.call(begin_anew)
        port = scene.bystander.call(listen_port)
        assert scene.survivor.call(instances.link, BYSTANDER, port) == ["LLM_SUCCESS"]
    usable = [scene.bystander_is_served() + pause()]
    if stage == "handshake" and fault == "frozen":
        with contextlib.suppress(ProcessLookupError):
            scene.victim.kill()
        fault_to_replace = "killed"
    else:
        fault_to_replace = fault
    usable.append(scene.is_replaced(fault_to_replace))
    page.record(record_property, page.Row(fault, stage, saw, f"{after_s:.1f}", "; ".join(usable)))


def begin_anew(state: SimpleNamespace, options: dict[str, Any] | None = None) -> None:
    start(state, 1, 0, options or {})


def listen_port(state: SimpleNamespace) -> int:
    return int(state.datadist.listen_port)


def test_the_page_lists_exactly_the_cases() -> None:
    rows = page.read(PAGE)

    assert [(row.fault, row.stage) for row in rows] == CASES
    for row in rows:
        assert row.saw in EXPECTED[row.stage]
        assert "hang" not in str(row)
    assert {fault for fault, _ in CASES} == set(FAULTS)
    assert {stage for _, stage in CASES} == set(STAGES) == set(DO)
