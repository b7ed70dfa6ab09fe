"""Devices and what binds a thread to one: contexts, peers, sets and resets."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import FEW_MS, Gate, in_thread, joined, peer


def test_forced_reset_takes_all_sets_back() -> None:
    program = """
    for _ in range(3):
        acl.aclrtSetDevice(2)
    acl.aclrtResetDeviceForce(2)
    say(acl.last_out('aclrtGetPrimaryCtxState', 2, None), acl.sync_code(None))
    acl.aclrtSetDevice(2)
    say(acl.last_out('aclrtGetPrimaryCtxState', 2, None), acl.sync_code(None))
    """
    with peer(program) as other:
        assert other.hear() == f"0 {c.NO_CONTEXT}"
        assert other.hear() == "1 0"


# One call of each kind that works on the current context.
WITHOUT_CONTEXT = {
    "aclrtMalloc": ("out", 64, 0),
    "aclrtMallocAlign32": ("out", 64, 0),
    "aclrtFree": (None,),
    "aclrtMallocHost": ("out", 64),
    "aclrtGetMemInfo": (1, "out", "out"),
    "aclrtMemcpy": (None, 0, None, 0, 0),
    "aclrtMemcpyAsync": (None, 0, None, 0, 0, None),
    "aclrtMemset": (None, 0, 0, 0),
    "aclrtMemsetAsync": (None, 0, 0, 0, None),
    "aclrtCreateStream": ("out",),
    "aclrtCreateStreamWithConfig": ("out", 0, 0),
    "aclrtSynchronizeStream": (None,),
    "aclrtStreamQuery": (None, "out"),
    "aclrtStreamAbort": (None,),
    "aclrtSynchronizeDevice": (),
    "aclrtCreateEvent": ("out",),
    "aclrtCreateEventExWithFlag": ("out", 1),
    "aclrtRecordEvent": (None, None),
    "aclrtStreamWaitEvent": (None, None),
    "aclrtValueWrite": (None, 0, 0, None),
    "aclrtValueWait": (None, 0, 0, None),
    "aclrtLaunchHostFunc": (None, None, None),
    "aclrtLaunchCallback": (None, None, 0, None),
    "aclrtCreateNotify": ("out", 0),
    "aclrtRecordNotify": (None, None),
    "aclrtWaitAndResetNotify": (None, None, 0),
    "aclrtIpcMemImportByKey": ("out", b"key", 0),
    "aclrtDeviceEnablePeerAccess": (1, 0),
    "aclmdlRICaptureBegin": (None, 0),
    "aclmdlRIExecuteAsync": (None, None),
    "aclrtGetCurrentContext": ("out",),
    "aclrtGetDevice": ("out",),
}


@pytest.mark.parametrize("name", WITHOUT_CONTEXT)
def test_thread_without_a_device_gets_107002(library: Acl, name: str) -> None:
    codes: list[int] = []

    def body() -> None:
        out = ctypes.create_string_buffer(64)
        codes.append(getattr(library.code, name)(*(out if a == "out" else a for a in WITHOUT_CONTEXT[name])))

    joined(in_thread(body))

    assert codes == [c.NO_CONTEXT]


@pytest.mark.parametrize("kind", ["ex", "hardware"])
def test_host_waits_for_and_asks_about_an_event_of_another_device(acl: Acl, kind: str) -> None:
    event = acl.event() if kind == "ex" else acl.hardware_event()
    mine, stream = acl.out("aclrtGetCurrentContext"), acl.stream()
    gate = Gate(acl, stream)
    acl.aclrtRecordEvent(event, stream)
    theirs = acl.context(1)

    before = acl.last_out("aclrtQueryEventStatus", event)
    waiting = acl.code.aclrtSynchronizeEventWithTimeout(event, FEW_MS)
    acl.aclrtSetCurrentContext(mine)
    gate.open()
    acl.aclrtSetCurrentContext(theirs)
    acl.aclrtSynchronizeEvent(event)
    after = acl.last_out("aclrtQueryEventStatus", event)

    acl.aclrtDestroyContext(theirs)
    acl.aclrtSetCurrentContext(mine)
    assert (before, waiting, after) == (0, c.EVENT_TIMEOUT, 1)


def test_peer_access_is_one_way_and_has_its_rules(acl: Acl) -> None:
    def status(device: int, peer_device: int) -> int:
        return acl.last_out("aclrtDevicePeerAccessStatus", device, peer_device)

    def can(device: int, peer_device: int) -> int:
        return acl.out("aclrtDeviceCanAccessPeer", device, peer_device, kind=ctypes.c_int32)

    assert (can(0, 1), can(1, 0), can(0, 0)) == (1, 1, 0)
    assert acl.code.aclrtDeviceCanAccessPeer(ctypes.byref(ctypes.c_int32()), 0, 99) == 107001
    assert acl.code.aclrtDeviceEnablePeerAccess(0, 0) == c.INVALID_PARAM  # itself
    assert acl.code.aclrtDeviceEnablePeerAccess(5, 1) == c.INVALID_PARAM  # no flags are defined
    assert acl.code.aclrtDeviceEnablePeerAccess(99, 0) == 107001
    acl.aclrtDeviceEnablePeerAccess(5, 0)
    assert (status(0, 5), status(5, 0)) == (1, 0)
    acl.aclrtDeviceDisablePeerAccess(5)
    assert status(0, 5) == 0
