"""The main job as a user runs it: its verdict, what gives the verdict a meaning, and how it ends."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from torch_llm_datadist.demo.channel import Channel
from torch_llm_datadist.demo.launcher import Conversation, DemoError
from torch_llm_datadist.demo.options import MODES, SABOTAGES
from torch_llm_datadist.transports import nixl_library

SMALL = ("--layers", "2", "--tokens", "4")
# Long enough that whatever a test does to a worker happens while decode waits for prefill on its stream.
LATE_PREFILL = (*SMALL, "--prefill-delay", "400")
START_TIMEOUT_S = 150
COMPILED_WITHIN_S = 400  # some seconds where nothing else runs


class Demo:
    """A demo that runs in a session of its own, as it would in a terminal, and its output so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch_llm_datadist", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.output = ""

    def wait_for(self, pattern: str, timeout_s: float = START_TIMEOUT_S) -> re.Match[str]:
        """Reads the output up to a match."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.output)):
            if not self._read(deadline):
                pytest.fail(f"no '{pattern}' in the demo's output:\n{self.output}")
        return match

    def wait_for_end(self, timeout_s: float) -> int:
        """Returns the exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"the demo did not end within {timeout_s} s:\n{self.output}")

    def _read(self, deadline: float) -> bool:
        if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        received = os.read(self.process.stdout.fileno(), 65536)
        self.output += received.decode(errors="replace")
        return bool(received)

    def worker(self, role: str) -> int:
        """The worker's process id."""
        return int(self.wait_for(rf"{role} on npu:\d \(pid (\d+)\)")[1])

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start() -> Iterator:
    """Starts demos, and ends those that a failed test left running."""
    demos = []

    def start_demo(*arguments: str) -> Demo:
        demos.append(Demo(*arguments))
        return demos[-1]

    yield start_demo
    for demo in demos:
        demo.close()


def wait_until_gone(pids: list[int], timeout_s: float) -> None:
    """Waits for the end of processes that are not our children."""
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
        os.close(descriptor)
        assert ended, f"process {pid} still runs after {timeout_s} s"


def shared_memory_of(pid: int) -> set[Path]:
    """The files in /dev/shm that a process has mapped or open; others come and go at any time."""
    found = set(re.findall(r"/dev/shm/.*", Path(f"/proc/{pid}/maps").read_text()))
    found |= {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    return {Path(name) for name in found if name.startswith("/dev/shm/")}


def prompt_of(length: int, directory: Path) -> str:
    file = directory / "prompt.txt"
    file.write_bytes(bytes(7 * index % 251 for index in range(length)))
    return str(file)


def test_demo_is_identical_and_says_so_in_json(start, tmp_path):
    demo = start(*SMALL, "--json", str(tmp_path / "result.json"))

    status = demo.wait_for_end(180)

    assert status == 0, demo.output
    assert "identical: yes" in demo.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["identical"] is True
    assert result["backend"] in ("emulated", "npu")
    assert result["tokens"] == 4
    assert result["blocks"] == 127
    assert result["bytes"] == 127 * 16 * 4 * 32 * 4 * 2 * 2
    assert result["seconds"] > 0


# Blocks have 16 tokens. With 18 bytes the last block that is sent holds one token,
# and the slot of the token with which decode begins.
@pytest.mark.parametrize(("length", "prefill_delay_s"), [(2, 0), (17, 0), (18, 1)])
def test_demo_is_identical_at_a_block_boundary_and_when_prefill_is_late(
    start, tmp_path, length, prefill_delay_s
):
    demo = start(*SMALL, "--prompt", prompt_of(length, tmp_path), "--prefill-delay", str(prefill_delay_s))

    status = demo.wait_for_end(180)

    assert status == 0, demo.output
    assert "identical: yes" in demo.output


@pytest.mark.parametrize("mode", ["compile", "graph"])
def test_demo_is_identical_compiled_and_captured(start, tmp_path, mode):
    prompt = prompt_of(40, tmp_path)
    demo = start(*SMALL, "--prompt", prompt, "--mode", mode, "--json", str(tmp_path / "result.json"))

    status = demo.wait_for_end(COMPILED_WITHIN_S)

    assert status == 0, demo.output
    assert "identical: yes" in demo.output
    assert json.loads((tmp_path / "result.json").read_text())["mode"] == mode


@pytest.mark.skipif(bool(nixl_library()[1]), reason=nixl_library()[1])
def test_demo_is_identical_across_two_hosts_with_a_slow_and_lossy_network(start, tmp_path):
    network = ("--hosts", "2", "--latency", "20", "--loss", "0.001")
    demo = start(*SMALL, *network, "--json", str(tmp_path / "result.json"))

    status = demo.wait_for_end(START_TIMEOUT_S)
    if status != 0 and "could not be made" in demo.output:
        pytest.skip(demo.output)

    assert status == 0, demo.output
    assert "linked over nixl" in demo.output
    assert "identical: yes" in demo.output
    carried = re.search(r"([\d,]+) packets, of which ([\d,]+) were lost", demo.output)
    packets, lost = (int(number.replace(",", "")) for number in carried.groups())
    sent_bytes = json.loads((tmp_path / "result.json").read_text())["bytes"]
    assert packets * 1500 > sent_bytes
    assert lost > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "sabotage",
    [
        pytest.param(s, marks=pytest.mark.races_on_purpose("the wait is left out") if s == "no-wait" else ())
        for s in SABOTAGES
    ],
)
def test_demo_notices_sabotage(start, tmp_path, mode, sabotage):
    result = tmp_path / "result.json"
    prompt = prompt_of(40, tmp_path)

    demo = start(*SMALL, "--prompt", prompt, "--mode", mode, "--sabotage", sabotage, "--json", str(result))
    status = demo.wait_for_end(COMPILED_WITHIN_S)

    assert status == 1
    assert "identical: no" in demo.output
    assert json.loads(result.read_text())["identical"] is False


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("victim", "survivor"), [("prefill", "decode"), ("decode", "prefill")])
def test_demo_ends_within_5_s_when_a_linked_worker_is_killed_or_frozen(start, victim, survivor, blow):
    demo = start(*LATE_PREFILL)
    workers = [demo.worker("prefill"), demo.worker("decode")]
    demo.wait_for("linked over")

    os.kill(demo.worker(victim), blow)
    status = demo.wait_for_end(5)

    assert status == 1
    # The library told the other worker, which says so; the launcher has not stepped in.
    assert re.search(rf"{survivor} \(pid \d+\) stopped: lost its peer {victim}", demo.output), demo.output
    wait_until_gone(workers, 1)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_demo_ends_within_5_s_when_a_worker_is_killed_or_frozen_before_the_link(start, blow):
    demo = start(*SMALL)
    workers = [demo.worker("prefill"), demo.worker("decode")]

    os.kill(workers[1], blow)
    status = demo.wait_for_end(5)

    assert status == 1
    reason = "was killed by SIGKILL" if blow == signal.SIGKILL else "has been frozen"
    assert re.search(rf"decode \(pid \d+\) {reason}", demo.output), demo.output
    wait_until_gone(workers, 1)


def stand_in(role: str, pid: int) -> tuple[SimpleNamespace, Channel]:
    """A child for the launcher, and its end of the channel."""
    channel, theirs = Channel.pair()
    child = SimpleNamespace(
        role=role, pid=pid, channel=channel, frozen_s=0.0,
        has_ended=lambda: False, ended_well=lambda: False, how_it_ended=lambda: "was killed by SIGKILL",
        watch_for_freeze=lambda: None, output_tail=lambda: "a traceback",
    )  # fmt: skip
    return child, Channel(theirs)


@pytest.mark.parametrize("is_sent_to", [False, True])
def test_the_last_words_of_a_worker_that_ends_at_once_are_heard(is_sent_to):
    """Decode says why and ends between the launcher's look at the channels and its look at the processes."""
    (prefill, prefills), (decode, decodes) = stand_in("prefill", 1), stand_in("decode", 2)
    conversation = Conversation([prefill, decode], SimpleNamespace(to_dict=dict), None)
    conversation._linked = {"prefill", "decode"}

    def prefill_has_ended() -> bool:
        if conversation._closed and not decode.has_ended():
            decodes.send("failed", message="lost its peer prefill", is_unexpected=False)
            decodes.close()
            decode.has_ended = lambda: True
            if is_sent_to:
                conversation._send(decode, "remote", info={})
        return bool(conversation._closed)

    prefill.has_ended = prefill_has_ended
    prefills.close()
    with pytest.raises(DemoError) as raised:
        conversation.hold()

    assert str(raised.value) == "decode (pid 2) stopped: lost its peer prefill"


def test_who_lost_its_peer_does_not_hide_why_the_peer_left():
    """Decode says first that the link is closed."""
    (prefill, prefills), (decode, decodes) = stand_in("prefill", 1), stand_in("decode", 2)
    conversation = Conversation([prefill, decode], SimpleNamespace(to_dict=dict), None)
    decodes.send("failed", message="lost its peer prefill: the peer closed it", is_unexpected=False)
    later = threading.Timer(0.1, prefills.send, ["failed"], {"message": "no room", "is_unexpected": True})

    later.start()
    with pytest.raises(DemoError) as raised:
        conversation.hold()
    later.join()

    assert str(raised.value) == (
        "decode (pid 2) stopped: lost its peer prefill: the peer closed it; prefill (pid 1) stopped: no room"
    )
    assert raised.value.output == "a traceback"


def test_demo_leaves_nothing_behind_after_ctrl_c(start):
    demo = start(*LATE_PREFILL)
    workers = [demo.worker("prefill"), demo.worker("decode")]
    demo.wait_for("linked over")
    shared_memory = set().union(*map(shared_memory_of, [demo.process.pid, *workers]))

    os.killpg(demo.process.pid, signal.SIGINT)
    status = demo.wait_for_end(5)

    assert status == 130
    wait_until_gone(workers, 1)
    assert not [file for file in shared_memory if file.exists()]


def test_demo_workers_end_when_the_launcher_is_killed(start):
    demo = start(*SMALL)
    workers = [demo.worker("prefill"), demo.worker("decode")]

    demo.process.kill()

    wait_until_gone(workers, 5)


@pytest.mark.parametrize("length", [0, 1])
def test_demo_refuses_a_prompt_that_leaves_nothing_to_prefill(start, tmp_path, length):
    demo = start("--prompt", prompt_of(length, tmp_path))

    status = demo.wait_for_end(30)

    assert status == 2
    assert "at least 2 are needed" in demo.output
