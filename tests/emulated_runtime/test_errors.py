"""What a program is told of failures: last errors per thread, failed tasks by callback."""

from __future__ import annotations

import ctypes
import threading

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import DEADLINE_S, HostFunction, in_thread, joined

ExceptionCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def test_peek_keeps_the_last_error_and_get_clears_it(acl: Acl) -> None:
    acl.library.aclrtGetLastError(0)
    acl.code.aclrtMalloc(None, 1, 0)
    acl.malloc(64)  # a success changes nothing

    assert [acl.library.aclrtPeekAtLastError(0) for _ in range(2)] == [c.INVALID_PARAM] * 2
    assert acl.library.aclrtGetLastError(0) == c.INVALID_PARAM
    assert acl.library.aclrtGetLastError(0) == 0


def test_last_error_is_of_the_thread_that_made_the_call(acl: Acl) -> None:
    acl.library.aclrtGetLastError(0)
    codes: list[int] = []

    def body() -> None:
        acl.code.aclrtMalloc(None, 1, 0)
        codes.append(acl.library.aclrtPeekAtLastError(0))

    joined(in_thread(body))

    assert codes == [c.NO_CONTEXT]
    assert acl.library.aclrtPeekAtLastError(0) == 0


def test_failed_task_is_told_to_the_exception_callback(acl: Acl) -> None:
    seen: list[list[int]] = []
    names = [f"aclrtGet{what}FromExceptionInfo" for what in ("StreamId", "DeviceId", "ErrorCode", "TaskId")]

    @ExceptionCallback
    def callback(info: int) -> None:
        seen.append([getattr(acl.library, name)(ctypes.c_void_p(info)) for name in names])

    stream, device = acl.stream(), acl.malloc(64)
    acl.aclrtMemsetAsync(device, 64, 1, 64, stream)
    acl.aclrtSetExceptionInfoCallback(callback)
    acl.copy(device, device + 64, 64, stream)  # runs out of its allocation
    code = acl.sync_code(stream)
    acl.aclrtSetExceptionInfoCallback(None)
    acl.copy(device, device + 64, 64, stream)
    acl.sync_code(stream)

    assert code == c.COPY_ENGINE
    assert seen == [[acl.last_out("aclrtStreamGetId", stream), 0, c.COPY_ENGINE, 1]]
    assert acl.library.aclrtGetDeviceIdFromExceptionInfo(None) == -1


# --- callbacks that a thread of the program serves ---

STREAM_SUBSCRIBE, THREAD_SUBSCRIBE, NOT_REGISTERED = 107011, 107012, 107015


def test_misuse_of_subscribed_callbacks_has_its_codes(acl: Acl) -> None:
    stream, me = acl.stream(), threading.get_ident()
    function = HostFunction(lambda _: None)

    assert acl.code.aclrtLaunchCallback(function, None, 1, stream) == NOT_REGISTERED
    assert acl.code.aclrtProcessReport(10) == THREAD_SUBSCRIBE
    acl.aclrtSubscribeReport(me, stream)
    assert acl.code.aclrtSubscribeReport(me + 1, stream) == STREAM_SUBSCRIBE  # one thread per stream
    assert acl.code.aclrtUnSubscribeReport(me + 1, stream) == THREAD_SUBSCRIBE
    assert acl.code.aclrtLaunchHostFunc(stream, function, None) == STREAM_SUBSCRIBE  # the kinds do not mix
    acl.aclrtUnSubscribeReport(me, stream)
    assert acl.code.aclrtUnSubscribeReport(me, stream) == THREAD_SUBSCRIBE
    assert acl.code.aclrtProcessReport(10) == THREAD_SUBSCRIBE
    acl.aclrtLaunchHostFunc(stream, function, None)
    acl.synchronize(stream)


def test_blocking_callback_holds_the_stream_and_the_other_kind_does_not(acl: Acl) -> None:
    stream, word, ran = acl.stream(), acl.malloc(64), []
    function = HostFunction(lambda _: ran.append(True))
    me = threading.get_ident()
    acl.aclrtSubscribeReport(me, stream)

    acl.aclrtLaunchCallback(function, None, 0, stream)
    acl.aclrtValueWrite(word, 1, 0, stream)
    acl.synchronize(stream)  # nobody served the callback yet
    assert ran == []
    acl.aclrtLaunchCallback(function, None, 1, stream)
    acl.aclrtValueWrite(word, 2, 0, stream)
    acl.aclrtProcessReport(DEADLINE_S * 1000)
    assert acl.read_word(word) == 1
    acl.aclrtProcessReport(DEADLINE_S * 1000)
    acl.synchronize(stream)

    assert len(ran) == 2
    assert acl.read_word(word) == 2
    acl.aclrtUnSubscribeReport(me, stream)


def test_1024_threads_may_subscribe(acl: Acl) -> None:
    streams = [acl.stream() for _ in range(1025)]
    codes = [acl.code.aclrtSubscribeReport(i + 1, stream) for i, stream in enumerate(streams)]
    for i, stream in enumerate(streams[:1024]):
        acl.aclrtUnSubscribeReport(i + 1, stream)

    assert codes == [0] * 1024 + [THREAD_SUBSCRIBE]


def test_message_stays_valid_until_the_next_time_it_is_asked_for(acl: Acl) -> None:
    acl.code.aclrtMalloc(None, 1, 0)
    acl.library.aclGetRecentErrMsg.restype = ctypes.c_void_p
    try:
        pointer = acl.library.aclGetRecentErrMsg()
        acl.code.aclrtFree(None)  # another failure, another message
        assert b"aclrtMalloc" in ctypes.string_at(pointer)
        assert b"aclrtFree" in ctypes.string_at(acl.library.aclGetRecentErrMsg())
        assert acl.library.aclGetRecentErrMsg() is None
    finally:
        acl.library.aclGetRecentErrMsg.restype = ctypes.c_char_p


def test_success_does_not_clear_the_last_error(acl: Acl) -> None:
    acl.code.aclrtFree(None)
    acl.malloc(64)

    assert acl.library.aclrtGetLastError(0) == c.INVALID_PARAM
    assert acl.library.aclrtGetLastError(0) == 0
