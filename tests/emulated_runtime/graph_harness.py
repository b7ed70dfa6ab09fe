"""What the tests of captures and graphs share: codes, captures, replays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from .acl_calls import Acl
from .acl_harness import in_thread, joined

GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALIDATED = range(3)

CONTEXT_OF_MODEL = 107004
DEPENDENCY = 107024
UNJOINED = 107025
MODEL_CAPTURED = 107026
STREAM_CAPTURED = 107027
EVENT_CAPTURED = 107028
NOT_CAPTURED = 107029
NOT_IN_THIS_MODE = 107030
DEFAULT_STREAM = 107031
CONFLICT = 107032
GROUP_STATUS = 107033
GROUP_INTERRUPTED = 107034
WRONG_STREAM = 107036
RUNNING = 107037
WRONG_THREAD = 107038
WOULD_BLOCK = 107041
OF_A_GRAPH = 107045
BRANCH_CAPTURING = 107046
NO_EVENT = 207007
NO_STREAM = 207008
GRAPH_FAILED = 507011
GRAPH_ABORTED = 507023
SPOILED = 507903


def begin(acl: Acl, stream: int | None, mode: int = GLOBAL) -> None:
    acl.aclmdlRICaptureBegin(stream, mode)


def end(acl: Acl, stream: int) -> int:
    return acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)


def end_code(acl: Acl, stream: int) -> int:
    out = ctypes.c_void_p()
    return acl.code.aclmdlRICaptureEnd(stream, ctypes.byref(out))


def status(acl: Acl, stream: int) -> int:
    return info(acl, stream)[0]


def info(acl: Acl, stream: int) -> tuple[int, int | None]:
    found, graph = ctypes.c_int32(), ctypes.c_void_p()
    acl.aclmdlRICaptureGetInfo(stream, ctypes.byref(found), ctypes.byref(graph))
    assert (graph.value is None) == (found.value == NONE)
    return found.value, graph.value


def exchange(acl: Acl, mode: int) -> int:
    out = ctypes.c_int32(mode)
    acl.aclmdlRICaptureThreadExchangeMode(ctypes.byref(out))
    return out.value


def fork(acl: Acl, stream: int, side: int) -> None:
    """Pulls the side stream into the capture."""
    event = acl.event()
    acl.aclrtRecordEvent(event, stream)
    acl.aclrtStreamWaitEvent(side, event)


def join(acl: Acl, stream: int, side: int) -> None:
    fork(acl, side, stream)


def captured(acl: Acl, stream: int, body: Callable[[], object], mode: int = GLOBAL) -> int:
    begin(acl, stream, mode)
    body()
    return end(acl, stream)


def replay(acl: Acl, graph: int, stream: int) -> None:
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.synchronize(stream)


def elsewhere(acl: Acl, call: Callable[[], int]) -> int:
    """What the call returns on another thread, in the same context."""
    context = acl.out("aclrtGetCurrentContext")
    codes: list[int] = []

    def body() -> None:
        acl.aclrtSetCurrentContext(context)
        codes.append(call())

    joined(in_thread(body))
    return codes[0]


def streams_left(acl: Acl) -> int:
    return acl.out("aclrtGetStreamAvailableNum", kind=ctypes.c_uint32)


def events_left(acl: Acl) -> int:
    return acl.out("aclrtGetEventAvailNum", kind=ctypes.c_uint32)
