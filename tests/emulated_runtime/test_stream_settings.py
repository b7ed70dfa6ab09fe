"""What is set on streams, devices and the process, and read back."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl

FAILURE_MODE, OVERFLOW_CHECK, CUSTOM_TAG, CACHE_OP_INFO, PRIORITY = range(1, 6)


def attribute(acl: Acl, stream: int, which: int) -> int:
    value = (ctypes.c_uint32 * 4)()
    acl.aclrtGetStreamAttribute(stream, which, value)
    return value[0]


def set_attribute(acl: Acl, stream: int, which: int, value: int) -> int:
    return acl.code.aclrtSetStreamAttribute(stream, which, (ctypes.c_uint32 * 4)(value))


@pytest.mark.parametrize("which", [FAILURE_MODE, OVERFLOW_CHECK, CUSTOM_TAG, CACHE_OP_INFO])
def test_stream_attribute_is_kept_by_its_stream(acl: Acl, which: int) -> None:
    stream, other = acl.stream(), acl.stream()

    assert attribute(acl, stream, which) == 0
    assert set_attribute(acl, stream, which, 1) == 0

    assert (attribute(acl, stream, which), attribute(acl, other, which)) == (1, 0)


def test_failure_mode_set_as_an_attribute_counts(acl: Acl) -> None:
    stream, memory = acl.stream(), acl.malloc(64)
    set_attribute(acl, stream, FAILURE_MODE, 1)
    assert set_attribute(acl, stream, FAILURE_MODE, 0) == c.INVALID_PARAM  # once
    assert acl.code.aclrtSetStreamFailureMode(stream, 1) == c.INVALID_PARAM

    acl.copy(memory, memory + 64, 64, stream)  # fails

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert acl.sync_code(None) == c.COPY_ENGINE


def test_priority_is_read_and_not_set_as_an_attribute(acl: Acl) -> None:
    stream = acl.out("aclrtCreateStreamWithConfig", 5, 0)

    assert attribute(acl, stream, PRIORITY) == 5
    assert set_attribute(acl, stream, PRIORITY, 1) == c.INVALID_PARAM
    assert set_attribute(acl, stream, 6, 1) == c.INVALID_PARAM
    assert acl.code.aclrtGetStreamAttribute(stream, 0, (ctypes.c_uint32 * 4)()) == c.INVALID_PARAM


def test_overflow_switch_is_the_attribute(acl: Acl) -> None:
    stream, other = acl.stream(), acl.stream()

    acl.aclrtSetStreamOverflowSwitch(stream, 1)

    assert acl.last_out("aclrtGetStreamOverflowSwitch", stream, kind=ctypes.c_uint32) == 1
    assert attribute(acl, stream, OVERFLOW_CHECK) == 1
    assert acl.last_out("aclrtGetStreamOverflowSwitch", other, kind=ctypes.c_uint32) == 0
    assert acl.code.aclrtSetStreamOverflowSwitch(0x1234, 1) == c.BAD_HANDLE


def test_stream_ids_differ(acl: Acl) -> None:
    assert len({acl.last_out("aclrtStreamGetId", acl.stream()) for _ in range(10)}) == 10


@pytest.mark.parametrize("of", ["stream", "device"])
def test_core_limits_are_24_and_48_until_they_are_set(acl: Acl, of: str) -> None:
    whose, kind = (acl.stream(), "Stream") if of == "stream" else (0, "Device")

    def limits() -> list[int]:
        get = f"aclrtGet{kind}ResLimit"
        return [acl.last_out(get, whose, which, kind=ctypes.c_uint32) for which in range(2)]

    assert limits() == [24, 48]
    getattr(acl, f"aclrtSet{kind}ResLimit")(whose, 0, 3)
    assert limits() == [3, 48]
    getattr(acl, f"aclrtReset{kind}ResLimit")(whose)
    assert limits() == [24, 48]
    out = ctypes.c_uint32()
    assert getattr(acl.code, f"aclrtGet{kind}ResLimit")(whose, 2, ctypes.byref(out)) == c.INVALID_PARAM


def test_thread_has_the_limits_of_the_stream_that_it_uses(acl: Acl) -> None:
    def limits() -> list[int]:
        name = "aclrtGetResInCurrentThread"
        return [acl.last_out(name, which, kind=ctypes.c_uint32) for which in range(2)]

    stream = acl.stream()
    acl.aclrtSetStreamResLimit(stream, 1, 6)
    assert limits() == [24, 48]

    acl.aclrtUseStreamResInCurrentThread(stream)
    assert limits() == [24, 6]
    acl.aclrtUnuseStreamResInCurrentThread(stream)
    assert limits() == [24, 48]


def test_system_parameters_are_kept_and_of_the_context_or_of_all(acl: Acl) -> None:
    parameter = ctypes.c_int64
    before = acl.last_out("aclrtGetSysParamOpt", 0, kind=parameter)
    try:
        acl.aclrtSetSysParamOpt(0, 1)
        assert acl.last_out("aclrtGetSysParamOpt", 0, kind=parameter) == 1
        acl.aclrtCtxSetSysParamOpt(1, 1)
        assert acl.last_out("aclrtCtxGetSysParamOpt", 1, kind=parameter) == 1
    finally:
        acl.aclrtSetSysParamOpt(0, before)
        acl.aclrtCtxSetSysParamOpt(1, 0)
    assert acl.code.aclrtSetSysParamOpt(3, 1) == 100000


def test_saturation_mode_is_the_devices(acl: Acl) -> None:
    assert acl.out("aclrtGetDeviceSatMode", kind=ctypes.c_int32) == 1  # INF and NaN, as torch wants

    acl.aclrtSetDeviceSatMode(0)

    assert acl.out("aclrtGetDeviceSatMode", kind=ctypes.c_int32) == 0
    acl.aclrtSetDeviceSatMode(1)


def test_op_execute_timeout_is_kept_in_its_units(acl: Acl) -> None:
    actual = ctypes.c_uint64()
    acl.aclrtSetOpExecuteTimeOut(547)  # seconds
    assert acl.out("aclrtGetOpExecuteTimeout", kind=ctypes.c_uint32) == 547_000  # ms
    acl.aclrtSetOpExecuteTimeOutWithMs(20)
    assert acl.out("aclrtGetOpExecuteTimeout", kind=ctypes.c_uint32) == 20
    acl.aclrtSetOpExecuteTimeOutV2(1_500_000, ctypes.byref(actual))  # us
    assert (acl.out("aclrtGetOpExecuteTimeout", kind=ctypes.c_uint32), actual.value) == (1500, 1_500_000)
    acl.aclrtSetOpExecuteTimeOut(0)
