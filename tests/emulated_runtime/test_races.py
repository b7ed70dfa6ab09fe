"""The race checker, by small programs: those that race are reported, those with an order are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_llm_datadist.emulator.trace_tail import TraceTail

from .acl_harness import UNWATCHED, peer
from .race_lab import LAB, RaceLab


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> TraceTail:
    return TraceTail(tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def lab(traces: TraceTail) -> Iterator[RaceLab]:
    started = RaceLab(TORCH_LLM_DATADIST_EMULATE_TRACE=str(traces.directory))
    yield started
    started.close()


ORDERED = {
    "one_stream": "fill(one); read(one); fill(one)",
    "reads_only": "read(one); read(two)",
    "neighbouring_bytes": "fill(one, 0, 64); fill(two, 64, 64)",
    "event": "fill(one); wait(two, record(one)); fill(two)",
    "event_through_a_third_stream": """
        fill(one)
        wait(three, record(one))
        wait(two, record(three))
        fill(two)
    """,
    "hardware_event": """
        event = acl.hardware_event()
        fill(one)
        record(one, event)
        wait(two, event)
        fill(two)
    """,
    "host_waits_for_stream": "fill(one); acl.synchronize(one); fill(two)",
    "host_waits_for_device": "fill(one); acl.aclrtSynchronizeDevice(); fill(two)",
    "host_waits_for_event": "fill(one); acl.aclrtSynchronizeEvent(record(one)); fill(two)",
    "stream_query_says_complete": """
        fill(one)
        while not acl.is_idle(one): pass
        fill(two)
    """,
    "event_query_says_complete": """
        fill(one)
        event = record(one)
        while acl.last_out("aclrtQueryEventStatus", event) == 0: pass
        fill(two)
    """,
    "another_thread_waits": """
        fill(one)
        context = acl.out("aclrtGetCurrentContext")
        thread = threading.Thread(target=lambda: (acl.aclrtSetCurrentContext(context), acl.synchronize(one)))
        thread.start()
        thread.join()
        fill(two)
    """,
    "value_write_and_wait": "fill(one); write_word(one, 1); wait_word(two, 1); fill(two)",
    "value_wait_queued_first": "wait_word(two, 1); fill(two); fill(one); write_word(one, 1)",
    "value_wait_for_a_later_count": """
        write_word(one, 1); fill(one); write_word(one, 2)
        wait_word(two, 2); fill(two)
    """,
    "value_wait_equal_and_back": """
        wait_word(two, 1, c.EQ); fill(two); write_word(two, 0)
        fill(one); write_word(one, 1); wait_word(one, 0, c.EQ); fill(one)
    """,
    "flag_written_by_a_copy": """
        acl.write_word(other, 7)
        wait_word(two, 7); fill(two)
        fill(one)
        acl.copy(word, other, 8, one)
    """,
    "flag_written_by_a_copy_before_anybody_waits": """
        acl.write_word(other, 7)
        fill(one)
        acl.copy(word, other, 8, one)
        until_run(started + 2)
        wait_word(two, 7); fill(two)
    """,
    "flag_written_by_a_blocking_copy": """
        wait_word(two, 7); fill(two)
        fill(one)
        acl.synchronize(one)
        acl.write_word(word, 7)
    """,
    "copy_of_a_waited_on_word": """
        wait_word(three, 7)
        fill(one)
        write_word(one, 7)
        until_run(started + 3)
        acl.copy(other, word, 64, two); fill(two)
    """,
    "copy_of_a_word_that_is_written_while_it_is_copied": """
        wait_word(three, 7)
        held = faults.of(os.getpid()).hold_copy(0, stream=two)
        acl.copy(other, word, 64, two)
        held.wait()
        fill(one)
        write_word(one, 7)
        until_run(started + 3)
        held.disarm()
        fill(two)
    """,
    "blocking_copy_of_a_word_that_is_written_while_it_is_copied": """
        wait_word(three, 7)
        held = faults.of(os.getpid()).hold_copy(0, direction="d2h")
        context = acl.out("aclrtGetCurrentContext")
        thread = threading.Thread(target=lambda: (acl.aclrtSetCurrentContext(context), acl.read(word, 64)))
        thread.start()
        held.wait()
        fill(one)
        write_word(one, 7)
        until_run(started + 3)
        held.disarm()
        thread.join()
        fill(two)
    """,
    "value_that_nobody_is_known_to_have_written": """
        store_word(7)
        fill(one)
        until_run(started + 1)
        wait_word(two, 7); fill(two)
    """,
    "words_are_not_data": """
        wait_word(three, 1)
        write_word(one, 1); write_word(two, 1)
        acl.aclrtMemsetAsync(word, 8, 1, 8, one)
    """,
    "notify": """
        notify = acl.out("aclrtCreateNotify", 0)
        fill(one)
        acl.aclrtRecordNotify(notify, one)
        acl.aclrtWaitAndResetNotify(notify, two, 0)
        fill(two)
    """,
    "host_function_tells_the_host": """
        told = threading.Event()
        keep.append(Function(lambda _: told.set()))
        fill(one)
        acl.aclrtLaunchHostFunc(one, keep[-1], None)
        told.wait()
        fill(two)
    """,
    "host_function_waits_for_the_host": """
        go = threading.Event()
        keep.append(Function(lambda _: go.wait()))
        acl.aclrtLaunchHostFunc(two, keep[-1], None)
        fill(two)
        fill(one)
        acl.synchronize(one)
        go.set()
    """,
    "replay_after_its_stream": """
        begin(one); fill(one); graph = end(one)
        fill(one)
        acl.aclmdlRIExecuteAsync(graph, one)
        fill(one)
        acl.aclmdlRIExecuteAsync(graph, one)
    """,
    "lanes_of_a_replay": """
        begin(one)
        fill(one); wait(two, record(one))
        fill(two); wait(one, record(two))
        fill(one)
        graph = end(one)
        for _ in range(3):
            fill(one)
            acl.aclmdlRIExecuteAsync(graph, one)
            fill(one)
    """,
    "replays_on_two_streams_in_order": """
        begin(one); fill(one); graph = end(one)
        acl.aclmdlRIExecuteAsync(graph, one)
        wait(two, record(one))
        acl.aclmdlRIExecuteAsync(graph, two)
    """,
    "blocking_copy_after_a_sync": "fill(one); acl.synchronize(one); acl.read(mem, 64); fill(two)",
    "blocking_copy_before_submits": "acl.write(mem, bytes(64)); fill(one); wait(two, record(one)); fill(two)",
    "freed_memory_is_forgotten": """
        fill(one)
        until_run(started + 1)
        size = 2 << 20
        for _ in range(3):
            mem = acl.malloc(size, fill=None)
            goal = tasks_run() + 1
            fill(one)
            until_run(goal)
            acl.aclrtFree(mem)
    """,
    "abort": """
        fill(one)
        until_run(started + 1)
        acl.aclrtStreamAbort(one)
        fill(two)
    """,
    "rows_beside_each_other": """
        compute(one, writes=[(0, 32, 16, 64)])
        compute(two, writes=[(32, 32, 16, 64)])
    """,
    "compute_in_order": """
        compute(one, writes=[(0, 256, 1, 0)])
        wait(two, record(one))
        compute(two, reads=[(0, 256, 1, 0)], writes=[(512, 256, 1, 0)])
    """,
}

RACING = {
    "two_writes": "fill(one); fill(two)",
    "write_and_read": "fill(one); read(two)",
    "read_and_write": "read(one); fill(two)",
    "far_apart_in_time": "fill(one); until_run(started + 1); time.sleep(0.01); fill(two)",
    "one_byte_in_common": "fill(one, 0, 65); fill(two, 64, 64)",
    "event_recorded_too_early": "event = record(one); fill(one); wait(two, event); fill(two)",
    "event_that_nobody_waits_for": "fill(one); record(one); fill(two)",
    "host_waits_for_another_stream": "fill(one); acl.synchronize(three); fill(two)",
    "host_waits_too_late": "fill(one); fill(two); acl.synchronize(one)",
    "value_written_too_early": "write_word(one, 1); fill(one); wait_word(two, 1); fill(two)",
    "wait_for_another_word": """
        fill(one); write_word(one, 1); write_word(three, 1, at=8)
        wait_word(two, 1, at=8); fill(two)
    """,
    "wait_for_an_earlier_count": """
        write_word(one, 1); fill(one); write_word(one, 2)
        until_run(started + 3)
        wait_word(two, 1); fill(two)
    """,
    "copy_of_a_word_that_is_written_later": """
        wait_word(three, 7)
        acl.copy(other, word, 64, two)
        until_run(started + 1)
        fill(one); write_word(one, 7)
        fill(two)
    """,
    "value_that_nobody_is_known_to_have_written_too_early": """
        store_word(7)
        wait_word(two, 7)
        until_run(started + 1)
        fill(one)
        until_run(started + 2)
        fill(two)
    """,
    "record_of_another_notify": """
        notify, wrong = acl.out("aclrtCreateNotify", 0), acl.out("aclrtCreateNotify", 0)
        fill(one)
        acl.aclrtRecordNotify(notify, one); acl.aclrtRecordNotify(wrong, three)
        acl.aclrtWaitAndResetNotify(wrong, two, 0)
        fill(two)
    """,
    "replays_on_two_streams": """
        begin(one); fill(one); graph = end(one)
        begin(one); fill(one); same = end(one)
        acl.aclmdlRIExecuteAsync(graph, one)
        acl.aclmdlRIExecuteAsync(same, two)
    """,
    "lanes_with_no_edge_between": """
        begin(one)
        wait(two, record(one)); fill(one); fill(two); wait(one, record(two))
        graph = end(one)
        acl.aclmdlRIExecuteAsync(graph, one)
    """,
    "blocking_copy_without_a_sync": "fill(one); until_run(started + 1); acl.read(mem, 64)",
    "rows_that_cross": """
        compute(one, writes=[(0, 32, 16, 64)])
        compute(two, writes=[(96, 32, 1, 0), (31, 2, 1, 0)])
    """,
    "compute_without_order": """
        compute(one, writes=[(0, 256, 1, 0)])
        compute(two, reads=[(128, 256, 1, 0)])
    """,
    "pinned_memory": """
        host = acl.malloc_host(4096)
        acl.copy(host, mem, 64, one, c.DEVICE_TO_HOST)
        acl.copy(host, mem, 64, two, c.DEVICE_TO_HOST)
    """,
    "one_memory_at_two_addresses": """
        prop = (ctypes.c_byte * 64)()
        ctypes.memmove(prop, (ctypes.c_int32 * 5)(0, 0, 4, 0, 1), 20)
        size = 2 << 20
        physical = acl.out("aclrtMallocPhysical", size, ctypes.addressof(prop), 0)
        places = [acl.out("aclrtReserveMemAddress", size, 0, None, 0) for _ in range(2)]
        for place in places:
            acl.aclrtMapMem(place, size, 0, physical, 0)
        acl.aclrtMemsetAsync(places[0], 64, 1, 64, one)
        acl.aclrtMemsetAsync(places[1], 64, 1, 64, two)
    """,
}


@pytest.mark.parametrize("name", ORDERED)
def test_nothing_is_reported_when_ordered_by(lab: RaceLab, traces: TraceTail, name: str) -> None:
    assert lab.run_traced(ORDERED[name], traces) == ([], [])


@pytest.mark.parametrize("name", RACING)
def test_a_race_is_reported_for(lab: RaceLab, traces: TraceTail, name: str) -> None:
    reports, in_trace = lab.run_traced(RACING[name], traces)

    assert (len(reports), len(in_trace)) == (1, 1)


def test_a_report_names_both_tasks_and_the_bytes(lab: RaceLab) -> None:
    (report,) = lab.run("""
        acl.emuStreamDelay(one, 1)
        fill(one, 128, 64)
        until_run(started + 2)
        compute(two, reads=[(160, 8, 1, 0)])
    """)

    assert "8 bytes at offset 160" in report
    first, second = report.splitlines()[1:]
    assert "the write by aclrtMemsetAsync, task 1 of stream" in first
    assert "the read by aten::some_op, task 0 of stream" in second
    assert "submitted by thread 'python" in second


def test_a_pair_of_origins_is_reported_once(lab: RaceLab) -> None:
    assert len(lab.run("for _ in range(5): fill(one); fill(two)")) == 1


def test_stacks_are_reported_when_asked_for() -> None:
    asked = RaceLab(TORCH_LLM_DATADIST_EMULATE_STACKS="1")
    (report,) = asked.run("fill(one); fill(two)")
    asked.close()

    assert report.count("aclrtMemsetAsync") > 2
    assert "libascendcl.so" in report


def test_a_process_that_raced_ends_with_a_status_of_its_own_when_asked_to() -> None:
    with peer(LAB, **{**UNWATCHED, "TORCH_LLM_DATADIST_EMULATE_RACES": "fail"}) as racing:
        assert racing.hear() == "ready"
        racing.say('"fill(one); fill(two)"')
        racing.hear()
        _, errors = racing.process.communicate(timeout=20)

    assert racing.process.returncode == 86
    assert "1 races were found in this process" in errors


def test_reports_of_several_processes_come_together_in_one_file(tmp_path: Path) -> None:
    reports = tmp_path / "reports.txt"
    labs = [RaceLab(TORCH_LLM_DATADIST_EMULATE_RACE_REPORTS=str(reports)) for _ in range(2)]
    found = [lab.run("fill(one); fill(two)") for lab in labs]
    for lab in labs:
        lab.close()

    text = reports.read_text()
    for lab, (report,) in zip(labs, found, strict=True):
        assert f"process {lab.peer.process.pid}, {report}\n" in text
    assert text.count("race 1: ") == 2
