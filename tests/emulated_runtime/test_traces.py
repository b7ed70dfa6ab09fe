"""The trace of a process, and the races between processes that are found in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torch_llm_datadist.emulator import races

from .acl_harness import Peer, peer

Event = dict[str, Any]

TRACED = """
acl.context(0)
one, two = acl.stream(), acl.stream()
mem, other, event = acl.malloc(4096), acl.malloc(4096), acl.event()
acl.aclrtMemsetAsync(mem, 64, 1, 64, one)
acl.aclrtRecordEvent(event, one)
acl.aclrtStreamWaitEvent(two, event)
acl.copy(other, mem, 64, two)
acl.aclrtValueWrite(other + 64, 5, 0, two)
acl.synchronize(two)
acl.read(mem, 64)
acl.aclrtFree(other)
acl.library.emuFlush()
say(acl.last_out("aclrtStreamGetId", one), acl.last_out("aclrtStreamGetId", two))
"""


def trace_of(program: str, directory: Path, ends: bool = True) -> tuple[list[Event], list[str]]:
    with peer(program, TORCH_LLM_DATADIST_EMULATE_TRACE=str(directory)) as traced:
        said = traced.hear().split()
        if ends:
            traced.end()
        else:
            traced.kill()
        return list(races.read_trace(directory / f"trace.{traced.process.pid}.json")), said


def named(events: list[Event], category: str, name: str, phase: str = "X") -> list[Event]:
    return [e for e in events if (e.get("cat"), e["name"], e["ph"]) == (category, name, phase)]


def test_a_trace_has_calls_by_thread_and_tasks_by_stream(tmp_path: Path) -> None:
    events, (one, two) = trace_of(TRACED, tmp_path / "made")

    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    (copy,) = named(events, "task", "aclrtMemcpyAsync")
    assert tracks[copy["tid"]] == f"device 0 stream {two}"
    assert (copy["args"]["kind"], copy["args"]["bytes"]) == ("copy", 64)
    assert copy["args"]["direction"] == "within a device"
    (call,) = named(events, "call", "aclrtMemcpyAsync")
    assert tracks[call["tid"]] == "thread python"
    assert call["ts"] <= copy["args"]["submitted"] / 1000 <= call["ts"] + call["dur"] <= copy["ts"] + 1e6
    (write,) = named(events, "task", "aclrtValueWrite")
    assert (write["args"]["word"][1], write["args"]["value"]) == (copy["args"]["writes"][0][1] + 64, 5)
    (fill,) = named(events, "task", "aclrtMemsetAsync")
    assert fill["args"]["writes"] == copy["args"]["reads"]
    assert tracks[fill["tid"]] == f"device 0 stream {one}"


def test_arrows_lead_from_submit_to_task_and_from_record_to_wait(tmp_path: Path) -> None:
    events, _ = trace_of(TRACED, tmp_path)

    (copy,) = named(events, "task", "aclrtMemcpyAsync")
    (start,) = named(events, "submit", "aclrtMemcpyAsync", "s")
    (finish,) = named(events, "submit", "aclrtMemcpyAsync", "f")
    assert start["id"] == finish["id"]
    assert (finish["tid"], finish["ts"]) == (copy["tid"], copy["ts"])
    (recorded,), (waited,) = named(events, "sync", "sync", "s"), named(events, "sync", "sync", "f")
    assert recorded["id"] == waited["id"]
    assert recorded["tid"] == named(events, "task", "aclrtRecordEvent")[0]["tid"]
    assert waited["tid"] == named(events, "task", "aclrtStreamWaitEvent")[0]["tid"]


TELLS = """
import threading, time
from tests.emulated_runtime.acl_harness import HostFunction
acl.context(0)
told, stream = threading.Event(), acl.stream()
@HostFunction
def tell(_):
    told.set()
    time.sleep(0.02)
acl.aclrtLaunchHostFunc(stream, tell, None)
told.wait()
acl.library.emuFlush()
say("flushed")
hear()
"""


def test_a_flush_has_the_host_function_that_told_of_something_and_has_not_returned(tmp_path: Path) -> None:
    events, _ = trace_of(TELLS, tmp_path, ends=False)

    assert len(named(events, "task", "aclrtLaunchHostFunc")) == 1


def test_a_killed_process_leaves_what_it_wrote(tmp_path: Path) -> None:
    events, _ = trace_of(TRACED + "\nacl.aclrtMemsetAsync(mem, 4, 1, 4, one)\nhear()\n", tmp_path, ends=False)

    assert len(named(events, "task", "aclrtMemcpyAsync")) == 1


def test_a_line_that_was_cut_off_ends_a_trace_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.1.json"
    path.write_text('[\n{"ph":"M","name":"a"},\n{"ph":"M","na')

    with pytest.warns(UserWarning, match=r"trace\.1\.json is cut off in line 3"):
        assert [event["name"] for event in races.read_trace(path)] == ["a"]


def test_a_trace_that_finds_no_room_ends_with_a_word_and_the_program_goes_on(tmp_path: Path) -> None:
    program = """
    import resource
    acl.context(0)
    one, memory = acl.stream(), acl.malloc(4096)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for _ in range(3):
        for _ in range(100):
            acl.aclrtMemsetAsync(memory, 64, 1, 64, one)
        acl.synchronize(one)
        acl.library.emuFlush()
    say("goes on")
    """
    with peer(program, TORCH_LLM_DATADIST_EMULATE_TRACE=str(tmp_path)) as traced:
        assert traced.hear() == "goes on"
        said = traced.end()

    assert said.count("is cut off: File too large") == 1
    with pytest.warns(UserWarning, match="is cut off in line"):
        assert list(races.read_trace(tmp_path / f"trace.{traced.process.pid}.json"))


def test_a_directory_that_cannot_be_made_is_told_and_the_program_goes_on() -> None:
    with peer(TRACED, TORCH_LLM_DATADIST_EMULATE_TRACE="/proc/no/such") as traced:
        traced.hear()
        errors = traced.end()

    assert "no trace: '/proc/no/such/trace." in errors


# Two processes: one owns memory and a flag and reads, the other writes both.
OWNER = """
acl.context(0)
stream = acl.stream()
mem, mine = acl.malloc(1 << 21), acl.malloc(4096)
say(acl.export(mem, 1 << 21)[:-1].decode())
hear()
{wait}
acl.copy(mine, mem + 4096, 64, stream)
say("submitted")
hear()  # a host that waited earlier would order what the other submits later
acl.synchronize(stream)
say("read")
hear()
acl.library.emuFlush()
say("done")
hear()
"""

WRITER = """
acl.context(0)
stream, gate = acl.stream(), acl.malloc(64)
mem = acl.import_key(hear().encode() + b"\\0")
say("ready")
hear()
acl.aclrtMemsetAsync(gate, 64, 1, 64, stream)
acl.copy(mem + 4096, gate, 64, stream)
{flag}
acl.aclrtSynchronizeDevice()  # both streams: the trace has all of it
acl.library.emuFlush()
say("written")
hear()
"""

VALUE_WAIT = "acl.aclrtValueWait(mem, 1, c.GEQ, stream)"
VALUE_WRITE = "acl.aclrtValueWrite(mem, 1, 0, stream)"
OTHER_WORD = "; acl.aclrtValueWrite(mem + 8, 1, 0, acl.stream())"
WORD_COPY = "acl.copy(mem, gate, 8, stream)"


def run_pair(directory: Path, wait: str, flag: str, host_waits: bool = False) -> tuple[Peer, Peer]:
    traced = {"TORCH_LLM_DATADIST_EMULATE_TRACE": str(directory)}
    with (
        peer(OWNER.format(wait=wait), **traced) as owner,
        peer(WRITER.format(flag=flag), **traced) as writer,
    ):
        writer.say(owner.hear())
        assert writer.hear() == "ready"
        if not host_waits:
            owner.say("go")
            assert owner.hear() == "submitted"
        writer.say("go")
        assert writer.hear() == "written"
        if host_waits:
            owner.say("go")
            assert owner.hear() == "submitted"
        owner.say("wait")
        assert owner.hear() == "read"
        owner.say("end")
        assert owner.hear() == "done"
        return owner, writer


@pytest.mark.parametrize("flag", [VALUE_WRITE, WORD_COPY], ids=["value_write", "copy_of_a_word"])
def test_processes_that_wait_for_each_others_words_do_not_race(tmp_path: Path, flag: str) -> None:
    run_pair(tmp_path, VALUE_WAIT, flag)

    assert races.find_races([tmp_path]) == []


def test_a_word_that_is_copied_to_a_peer_may_be_polled_by_it(tmp_path: Path) -> None:
    polls, reads_elsewhere = "acl.copy(mine + 64, mem, 8, stream)", "mem += 1 << 16"

    run_pair(tmp_path, f"{polls}; {reads_elsewhere}", WORD_COPY)

    assert races.find_races([tmp_path]) == []


def test_a_host_that_waited_and_told_another_orders_what_that_submits(tmp_path: Path) -> None:
    run_pair(tmp_path, "", "", host_waits=True)

    assert races.find_races([tmp_path]) == []


@pytest.mark.parametrize(
    ("wait", "flag"),
    [("", VALUE_WRITE), (VALUE_WAIT.replace("mem", "mem + 8"), VALUE_WRITE + OTHER_WORD)],
    ids=["no_wait", "wait_for_another_word"],
)
def test_a_missing_wait_between_processes_is_found_with_both_origins(
    tmp_path: Path, wait: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, writer = run_pair(tmp_path, wait, flag)

    assert races.main([str(tmp_path)]) == 1
    report = capsys.readouterr().out
    assert "64 bytes at offset 4096 of memory" in report
    assert f"of process {owner.process.pid}" in report
    assert f"of process {writer.process.pid}" in report
    assert report.endswith("1 races\n")
    (race,) = races.find_races([tmp_path])
    by_process = {race.earlier["pid"]: race.earlier_wrote, race.later["pid"]: race.later_writes}
    assert by_process == {owner.process.pid: False, writer.process.pid: True}


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        races.find_races([tmp_path])


def test_copies_into_imported_memory_name_the_peer(tmp_path: Path) -> None:
    owner, writer = run_pair(tmp_path, VALUE_WAIT, VALUE_WRITE)

    events = list(races.read_trace(tmp_path / f"trace.{writer.process.pid}.json"))
    (copy,) = named(events, "task", "aclrtMemcpyAsync")
    assert copy["args"]["peer"] == owner.process.pid
    assert copy["args"]["direction"] == "to or from a peer"
