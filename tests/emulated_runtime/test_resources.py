"""What a device has a number of: streams, events; and streams that are made for special uses."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import peer

NOT_ON_THIS_STREAM = 107045
FAST_LAUNCH, FAST_SYNC, PERSISTENT, HUGE, CPU_SCHEDULE, DEVICE_ONLY = 1, 2, 4, 8, 16, 32

COUNT = """
def made_until_full(name):
    out, made = ctypes.c_void_p(), 0
    call = getattr(acl.library, name)
    while (code := call(ctypes.byref(out))) == 0:
        made += 1
    return made, code, out.value
acl.context()
before = acl.out(AVAILABLE, kind=ctypes.c_uint32)
made, code, last = made_until_full(CREATE)
left = acl.out(AVAILABLE, kind=ctypes.c_uint32)
getattr(acl, DESTROY)(last)
again = getattr(acl.library, CREATE)(ctypes.byref(ctypes.c_void_p()))
acl.context(1)
say(before == made, made, code, left, again, getattr(acl.library, CREATE)(ctypes.byref(ctypes.c_void_p())))
"""


@pytest.mark.parametrize(
    ("create", "destroy", "available", "count", "code"),
    [
        # One of the 1984 is the context's default stream.
        ("aclrtCreateStream", "aclrtDestroyStream", "aclrtGetStreamAvailableNum", 1983, 207008),
        ("aclrtCreateEvent", "aclrtDestroyEvent", "aclrtGetEventAvailNum", 65536, 207007),
    ],
)
def test_device_has_so_many_and_one_more_is_refused(
    create: str, destroy: str, available: str, count: int, code: int
) -> None:
    program = COUNT.replace("CREATE", repr(create)).replace("DESTROY", repr(destroy))

    with peer(program.replace("AVAILABLE", repr(available))) as other:
        assert other.hear() == f"True {count} {code} 0 0 0"


def test_ex_events_are_not_counted(acl: Acl) -> None:
    before = acl.out("aclrtGetEventAvailNum", kind=ctypes.c_uint32)
    acl.event()

    assert acl.out("aclrtGetEventAvailNum", kind=ctypes.c_uint32) == before


def stream_with(acl: Acl, flags: int, priority: int = 0) -> int:
    return acl.out("aclrtCreateStreamWithConfig", priority, flags)


@pytest.mark.parametrize("flags", [0, FAST_LAUNCH, FAST_SYNC, FAST_LAUNCH | FAST_SYNC, HUGE, CPU_SCHEDULE])
def test_flags_of_a_stream_are_kept_and_change_nothing(acl: Acl, flags: int) -> None:
    stream, word = stream_with(acl, flags, priority=3), acl.malloc(64)

    acl.aclrtValueWrite(word, 1, 0, stream)
    acl.synchronize(stream)

    assert acl.read_word(word) == 1
    assert acl.last_out("aclrtStreamGetFlags", stream, kind=ctypes.c_uint32) == flags
    assert acl.last_out("aclrtStreamGetPriority", stream, kind=ctypes.c_uint32) == 3


def test_persistent_stream_is_neither_waited_for_nor_asked(acl: Acl) -> None:
    stream = stream_with(acl, PERSISTENT)

    assert acl.sync_code(stream) == NOT_ON_THIS_STREAM
    assert acl.code.aclrtStreamQuery(stream, ctypes.byref(ctypes.c_int32())) == NOT_ON_THIS_STREAM
    acl.aclrtDestroyStream(stream)


def test_stream_for_device_code_takes_nothing_from_the_host(acl: Acl) -> None:
    stream, word = stream_with(acl, DEVICE_ONLY), acl.malloc(64)

    assert acl.code.aclrtValueWrite(word, 1, 0, stream) == NOT_ON_THIS_STREAM
    assert acl.code.aclrtMemsetAsync(word, 8, 0, 8, stream) == NOT_ON_THIS_STREAM
    acl.aclrtDestroyStream(stream)


def test_unknown_stream_flag_is_refused(acl: Acl) -> None:
    out = ctypes.c_void_p()

    assert acl.code.aclrtCreateStreamWithConfig(ctypes.byref(out), 0, 0x40) == c.INVALID_PARAM
