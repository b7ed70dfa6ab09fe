"""Simulated time: schedules computed by hand, on the numbers of the cost table."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from .acl_harness import PREAMBLE, ROOT, peer

SIMULATED = {"TORCH_LLM_DATADIST_EMULATE_TIME": "simulated"}

COMMON = """
from tests.emulated_runtime.acl_harness import HostFunction
MS = 1_000_000  # in ns
def now(stream=None):
    ns = ctypes.c_uint64()
    acl.emuClockNow(stream, ctypes.byref(ns))
    return ns.value
cost = {}
for index in range(9):
    name, value, source = ctypes.c_char_p(), ctypes.c_double(), ctypes.c_char_p()
    assert acl.library.emuCost(index, ctypes.byref(name), ctypes.byref(value), ctypes.byref(source)) == 0
    assert source.value
    cost[name.value.decode()] = value.value
COPY = round(cost["submit_copy_us"] * 1000)
OTHER = round(cost["submit_other_us"] * 1000)
TASK = round(cost["task_us"] * 1000)
def moving(size, rate):
    return round(size / cost[rate])
def delay(stream, ms):
    acl.emuStreamDelay(stream, round(ms * 1000))
def near(value, expected):
    assert abs(value - expected) <= 2, (value, expected)
"""

PROGRAM = (
    COMMON
    + """
def a_host_pays_for_each_submit():
    for _ in range(10):
        acl.copy(memory, memory + 4096, 64, one)
    near(now(), 10 * COPY)

def nobody_waits_for_a_task():
    import time
    start = time.monotonic()
    delay(one, 3600_000)
    acl.synchronize(one)
    assert time.monotonic() - start < 10
    near(now(), OTHER + 3600_000 * MS)

def tasks_of_a_stream_follow_each_other():
    delay(one, 1)
    delay(one, 2)
    acl.synchronize(one)
    near(now(one), OTHER + 3 * MS)
    near(now(), OTHER + 3 * MS)

def streams_overlap():
    delay(one, 5)
    delay(two, 3)
    acl.aclrtSynchronizeDevice()
    near(now(one), OTHER + 5 * MS)
    near(now(two), 2 * OTHER + 3 * MS)
    near(now(), OTHER + 5 * MS)

def a_task_starts_after_it_was_submitted():
    delay(one, 5)
    acl.synchronize(one)
    delay(two, 1)
    acl.synchronize(two)
    near(now(two), OTHER + 5 * MS + OTHER + 1 * MS)

def an_event_joins_two_streams():
    delay(one, 5)
    acl.aclrtRecordEvent(event, one)
    delay(two, 1)
    acl.aclrtStreamWaitEvent(two, event)
    delay(two, 2)
    acl.synchronize(two)
    near(now(two), OTHER + 5 * MS + TASK + 2 * MS)

def an_event_that_was_reached_before_holds_nobody_up():
    acl.aclrtRecordEvent(event, one)
    delay(two, 5)
    acl.aclrtStreamWaitEvent(two, event)
    acl.synchronize(two)
    near(now(two), 2 * OTHER + 5 * MS + TASK)

def events_tell_simulated_times():
    start, end = (acl.event(c.EVENT_SYNC | c.EVENT_TIME_LINE) for _ in range(2))
    acl.aclrtRecordEvent(start, one)
    delay(one, 7)
    acl.aclrtRecordEvent(end, one)
    acl.synchronize(one)
    ms = ctypes.c_float()
    acl.aclrtEventElapsedTime(ctypes.byref(ms), start, end)
    assert abs(ms.value - 7 - (OTHER + TASK) / MS) < 0.001 or abs(ms.value - 7 - TASK / MS) < 0.003, ms.value

def a_wait_for_an_event_moves_the_host_to_the_record_only():
    delay(one, 2)
    acl.aclrtRecordEvent(event, one)
    delay(one, 50)
    acl.aclrtSynchronizeEvent(event)
    near(now(), OTHER + 2 * MS + TASK)

def a_copy_takes_its_link_for_its_bytes():
    acl.copy(memory, host, SIZE, one, c.HOST_TO_DEVICE)
    acl.synchronize(one)
    near(now(), COPY + TASK + moving(SIZE, "host_to_device_GBs"))

def two_copies_share_one_link_direction():
    acl.copy(memory, host, SIZE, one, c.HOST_TO_DEVICE)
    acl.copy(memory + SIZE, host, SIZE, two, c.HOST_TO_DEVICE)
    acl.aclrtSynchronizeDevice()
    ends = sorted((now(one), now(two)))
    near(ends[1] - ends[0], moving(SIZE, "host_to_device_GBs"))

def the_two_directions_do_not_share():
    acl.copy(memory, host, SIZE, one, c.HOST_TO_DEVICE)
    acl.copy(host + SIZE, memory + SIZE, SIZE, two, c.DEVICE_TO_HOST)
    acl.aclrtSynchronizeDevice()
    near(now(one), COPY + TASK + moving(SIZE, "host_to_device_GBs"))
    near(now(two), 2 * COPY + TASK + moving(SIZE, "device_to_host_GBs"))

def a_copy_inside_the_device_reads_and_writes_its_memory():
    acl.copy(memory, memory + SIZE, SIZE, one)
    acl.synchronize(one)
    near(now(), COPY + TASK + moving(2 * SIZE, "memory_GBs"))

def a_copy_to_another_device_takes_the_peer_link():
    acl.aclrtDeviceEnablePeerAccess(1, 0)
    other = acl.context(1)
    theirs = acl.malloc(SIZE, fill=None)
    acl.aclrtSetCurrentContext(context)
    acl.emuClockReset()
    acl.copy(theirs, memory, SIZE, one)
    acl.synchronize(one)
    near(now(), COPY + TASK + moving(SIZE, "peer_write_GBs"))
    acl.copy(memory, theirs, SIZE, two)
    acl.synchronize(two)
    near(now(), 2 * (COPY + TASK) + moving(SIZE, "peer_write_GBs") + moving(SIZE, "peer_read_GBs"))
    acl.aclrtDestroyContext(other)
    acl.aclrtSetCurrentContext(context)

def a_word_carries_its_writers_time():
    delay(one, 9)
    acl.aclrtValueWrite(memory, 5, 0, one)
    acl.aclrtValueWait(memory, 5, c.EQ, two)
    acl.synchronize(two)
    near(now(two), OTHER + 9 * MS + TASK)

def a_wait_that_looks_late_finds_its_words_time_behind_those_of_others():
    delay(one, 9)
    acl.aclrtValueWrite(memory, 5, 0, one)
    for other in range(1, 8):  # all of them share places with it
        acl.aclrtValueWrite(memory + other * 8192, 5, 0, one)
    def have_run():
        acl.aclrtSetCurrentContext(context)
        acl.synchronize(one)
    thread = threading.Thread(target=have_run)  # which does not move the main thread's clock
    thread.start()
    thread.join()
    acl.aclrtValueWait(memory, 5, c.EQ, two)
    acl.synchronize(two)
    near(now(two), OTHER + 9 * MS + TASK)

def an_old_word_holds_nobody_up():
    acl.aclrtValueWrite(memory, 5, 0, one)
    acl.synchronize(one)
    before = now()
    delay(two, 3)
    acl.aclrtValueWait(memory, 5, c.EQ, two)
    acl.synchronize(two)
    near(now(two), before + OTHER + 3 * MS + TASK)

def a_blocking_copy_takes_the_hosts_time():
    acl.aclrtMemcpy(memory, SIZE, host, SIZE, c.HOST_TO_DEVICE)
    near(now(), COPY + TASK + moving(SIZE, "host_to_device_GBs"))

def a_replay_runs_its_lanes_side_by_side():
    acl.aclmdlRICaptureBegin(one, 2)
    acl.aclrtRecordEvent(event, one)
    acl.aclrtStreamWaitEvent(two, event)
    delay(one, 4)
    delay(two, 6)
    joined = acl.event()
    acl.aclrtRecordEvent(joined, two)
    acl.aclrtStreamWaitEvent(one, joined)
    graph = acl.last_out("aclmdlRICaptureEnd", one, kind=ctypes.c_void_p)
    acl.emuClockReset()
    acl.aclmdlRIExecuteAsync(graph, one)
    acl.synchronize(one)
    near(now(), OTHER + TASK + 6 * MS + TASK)

def threads_have_clocks_that_do_not_move_the_main_one():
    def other():
        acl.aclrtSetCurrentContext(context)
        delay(two, 100)
        acl.synchronize(two)
        seen.append(now())
    seen = []
    delay(one, 1)
    acl.synchronize(one)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    near(seen[0], OTHER + 1 * MS + OTHER + 100 * MS)
    near(now(), OTHER + 1 * MS)

SIZE = 8 << 20
for case in sys.argv[1:]:
    context = acl.context(0)
    memory, host, one, two = acl.malloc(2 * SIZE), acl.malloc_host(2 * SIZE), acl.stream(), acl.stream()
    event = acl.event()
    acl.emuClockReset()
    try:
        globals()[case]()
        say(case, "passed")
    except Exception:
        import traceback
        say(case, repr(traceback.format_exc()))
    acl.aclrtFree(memory)
    acl.aclrtFreeHost(host)
    acl.aclrtDestroyContext(context)
"""
)

CASES = [
    line[4:].split("(")[0]
    for line in PROGRAM.removeprefix(COMMON).splitlines()
    if line.startswith("def ") and line.endswith("():")
]


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(PROGRAM), *CASES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **SIMULATED},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return {case: said.get(case, done.stderr) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_simulated_time(case: str, reports: dict[str, str]) -> None:
    assert reports[case] == "passed"


def test_a_word_carries_its_writers_time_to_another_process() -> None:
    program = (
        COMMON
        + """
context = acl.context(0)
memory, one = acl.malloc(2 << 20), acl.stream()
say(acl.export(memory, 2 << 20).decode())
theirs = acl.import_key(hear().encode())
acl.emuClockReset()
"""
    )
    writes = (
        "delay(one, 30)\nacl.aclrtValueWrite(theirs, 7, 0, one)\nacl.synchronize(one)\nsay(now())\nhear()"
    )
    waits = "acl.aclrtValueWait(memory, 7, c.EQ, one)\nacl.synchronize(one)\nsay(now())\nhear()"
    with peer(program + writes, **SIMULATED) as writer, peer(program + waits, **SIMULATED) as waiter:
        keys = writer.hear(), waiter.hear()
        writer.say(keys[1])
        waiter.say(keys[0])

        wrote, waited = int(writer.hear()), int(waiter.hear())

        # Both clocks stood at the few microseconds of their own start when they were set to 0.
        assert abs(waited - wrote) < 1_000_000
        assert waited > 30_000_000
        writer.say("end")
        waiter.say("end")


def test_each_product_has_a_table_of_its_own() -> None:
    rates = {}
    for product in ("A2", "A3"):
        with peer(
            COMMON + "say(cost['peer_write_GBs'])", TORCH_LLM_DATADIST_EMULATE_PROFILE=product, **SIMULATED
        ) as asked:
            rates[product] = float(asked.hear())

    assert rates == {"A2": 20.3, "A3": 165.0}


def test_without_the_mode_there_is_no_simulated_time() -> None:
    with peer(
        "say(acl.code.emuClockNow(None, ctypes.addressof(ctypes.c_uint64())), acl.code.emuClockReset())"
    ) as asked:
        assert asked.hear() == "207000 207000"
