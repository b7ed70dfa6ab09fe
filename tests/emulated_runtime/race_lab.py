"""A process with the race checker on, which runs small programs and says what was found in each."""

from __future__ import annotations

import json
import textwrap

from torch_llm_datadist.emulator.race_checker import Checker, Race
from torch_llm_datadist.emulator.trace_tail import TraceTail

from .acl_harness import UNWATCHED, Peer

# What each program finds: two streams, two pieces of device memory, and short names for what it does.
LAB = """
import json, time
from torch_llm_datadist.emulator import faults

Describe = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
keep = []

class Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("allocations", "bytes", "contexts", "streams", "events", "tasks", "copied")
    ]

def tasks_run():
    stats = Stats()
    acl.library.emuStats(ctypes.byref(stats))
    return stats.tasks

def until_run(goal):
    # Waits for tasks without an order that the checker could see.
    while tasks_run() < goal:
        time.sleep(0.0005)

def fill(stream, at=0, size=64):
    acl.aclrtMemsetAsync(mem + at, size, 1, size, stream)

def read(stream, at=0, size=64):
    acl.copy(other + 2048 + 64 * (stream == two), mem + at, size, stream)

def record(stream, event=None):
    event = event or acl.event()
    acl.aclrtRecordEvent(event, stream)
    return event

def wait(stream, event):
    acl.aclrtStreamWaitEvent(stream, event)

def compute(stream, reads=(), writes=(), name=b"aten::some_op"):
    def describe(_, facts):
        for at, width, rows, pitch in reads:
            acl.library.emuReads(*map(ctypes.c_void_p, (facts, mem + at, width, rows, pitch)))
        for at, width, rows, pitch in writes:
            acl.library.emuWrites(*map(ctypes.c_void_p, (facts, mem + at, width, rows, pitch)))
    keep.extend([Describe(describe), Function(lambda _: None), ctypes.c_char_p(name)])
    acl.emuLaunchCompute(stream, keep[-1], keep[-2], keep[-3], None, None)

def write_word(stream, value, at=0):
    acl.aclrtValueWrite(word + at, value, 0, stream)

def wait_word(stream, value, mode=c.GEQ, at=0):
    acl.aclrtValueWait(word + at, value, mode, stream)

def store_word(value):
    # As another process would: nothing that is watched writes it.
    ctypes.c_uint64.from_address(acl.library.emuHostAlias(ctypes.c_void_p(word))).value = value

def begin(stream):
    acl.aclmdlRICaptureBegin(stream, 0)

def end(stream):
    return acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)

def reports(since):
    found = []
    for i in range(since, acl.library.emuRaces()):
        text = ctypes.create_string_buffer(65536)
        acl.library.emuRaceReport(ctypes.c_int64(i), text, ctypes.c_size_t(65536))
        found.append(text.value.decode())
    return found

acl.library.emuRaces.restype = ctypes.c_int64
acl.context(0)
say("ready")
while line := hear():
    before = acl.library.emuRaces()
    one, two, three = acl.stream(), acl.stream(), acl.stream()
    mem, other, word = acl.malloc(4096), acl.malloc(4096), acl.malloc(4096)
    started = tasks_run()
    try:
        exec(json.loads(line), globals())
        for stream in (one, two, three):
            acl.synchronize(stream)
        if os.environ.get("TORCH_LLM_DATADIST_EMULATE_TRACE"):
            acl.library.emuFlush()
        say(json.dumps(reports(before)))
    except Exception as error:
        say(json.dumps(f"{type(error).__name__}: {error}"))
"""


class RaceLab:
    def __init__(self, **environment: str) -> None:
        self.peer = Peer(LAB, **{**UNWATCHED, "TORCH_LLM_DATADIST_EMULATE_RACES": "1", **environment})
        assert self.peer.hear() == "ready"

    def run(self, program: str) -> list[str]:
        """The reports of the races that the program makes."""
        self.peer.say(json.dumps(textwrap.dedent(program)))
        answer = json.loads(self.peer.hear())
        assert isinstance(answer, list), answer
        return answer

    def run_traced(self, program: str, tail: TraceTail) -> tuple[list[str], list[Race]]:
        """The same, and what is found in the trace of the program."""
        reports = self.run(program)
        return reports, Checker().run(tail.read())

    def close(self) -> None:
        self.peer.process.kill()
        self.peer.process.communicate()
