"""The emulated libascendcl.so by ctypes, without torch: for the emulator's tests and for their peers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from torch_llm_datadist.emulator import libraries

LIBRARY = libraries.runtime_path()

INVALID_PARAM = 107000
NO_CONTEXT = 107002
OTHER_CONTEXT = 107003
BAD_HANDLE = 107017
WAIT_TIMEOUT = 107019
STREAM_ABORT = 107023
UNSUPPORTED = 207000
OUT_OF_MEMORY = 207001
NO_PERMISSION = 207006
COPY_ENGINE = 507013
IPC_ERROR = 507022
STREAM_TIMEOUT = 507046
EVENT_TIMEOUT = 507047
LINK_ERROR = 507056
REMOTE_ERROR = 507057

HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = range(5)
GEQ, EQ, AND, NOR = range(4)
EVENT_SYNC, EVENT_PROGRESS, EVENT_TIME_LINE = 1, 2, 8
NO_PID_CHECK = 1
KEY_LENGTH = 65


class ServerPid(ctypes.Structure):
    """aclrtServerPid: processes of a server."""

    _fields_ = (("sdid", ctypes.c_uint32), ("pid", ctypes.POINTER(ctypes.c_int32)), ("num", ctypes.c_size_t))

    @staticmethod
    def of(pids: ctypes.Array[ctypes.c_int32]) -> ServerPid:
        return ServerPid(0, pids, len(pids))


class AclError(Exception):
    def __init__(self, name: str, code: int, message: str) -> None:
        super().__init__(f"{name} returned {code}: {message}")
        self.code = code
        self.message = message


class Acl:
    """``acl.aclrtFoo(…)`` raises AclError unless it returns 0; ``acl.code.aclrtFoo(…)`` returns the code."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.library.emuHostAlias.restype = ctypes.c_void_p
        self.library.emuCalls.restype = ctypes.c_int64
        self.code = _Codes(self.library)
        self.code.aclInit(None)

    def __getattr__(self, name: str) -> Callable[..., None]:
        call = getattr(self.code, name)

        def checked(*args: object) -> None:
            result = call(*args)
            if result != 0:
                raise AclError(name, result, self.message())

        return checked

    def message(self) -> str:
        return (self.library.aclGetRecentErrMsg() or b"").decode()

    # What an output pointer would return.

    def out(self, name: str, *args: object, kind: type = ctypes.c_void_p) -> int:
        """Calls a function whose first argument is the output."""
        value = kind()
        getattr(self, name)(ctypes.byref(value), *args)
        return value.value

    def last_out(self, name: str, *args: object, kind: type = ctypes.c_int32) -> int:
        """Calls a function whose last argument is the output."""
        value = kind()
        getattr(self, name)(*args, ctypes.byref(value))
        return value.value

    # Things tests need all the time.

    def context(self, device: int = 0) -> int:
        return self.out("aclrtCreateContext", device)

    def stream(self, stop_on_failure: bool = False) -> int:
        stream = self.out("aclrtCreateStream")
        if stop_on_failure:
            self.aclrtSetStreamFailureMode(stream, 1)
        return stream

    def event(self, flags: int = EVENT_SYNC) -> int:
        return self.out("aclrtCreateEventExWithFlag", flags)

    def hardware_event(self) -> int:
        return self.out("aclrtCreateEvent")

    def malloc(self, size: int, fill: int | None = 0) -> int:
        address = self.out("aclrtMallocAlign32", size, 0)
        if fill is not None:
            self.aclrtMemset(address, size, fill, size)
        return address

    def malloc_host(self, size: int) -> int:
        return self.out("aclrtMallocHost", size)

    def read(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self.aclrtMemcpy(ctypes.addressof(buffer), size, address, size, DEVICE_TO_HOST)
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        self.aclrtMemcpy(address, len(data), ctypes.addressof(buffer), len(data), HOST_TO_DEVICE)

    def read_word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write_word(self, address: int, value: int) -> None:
        self.write(address, (value % 2**64).to_bytes(8, "little"))

    def copy(self, dst: int, src: int, size: int, stream: int | None, kind: int = DEVICE_TO_DEVICE) -> None:
        self.aclrtMemcpyAsync(dst, size, src, size, kind, stream)

    def synchronize(self, stream: int | None, timeout_ms: int = 20_000) -> None:
        self.aclrtSynchronizeStreamWithTimeout(stream, timeout_ms)

    def sync_code(self, stream: int | None) -> int:
        """What a synchronize returns; a stream that never ends is a time-out, not a test that hangs."""
        return self.code.aclrtSynchronizeStreamWithTimeout(stream, 20_000)

    def is_idle(self, stream: int | None) -> bool:
        return self.last_out("aclrtStreamQuery", stream) == 0

    def export(self, address: int, size: int, flags: int = NO_PID_CHECK) -> bytes:
        key = ctypes.create_string_buffer(b"\xff" * KEY_LENGTH, KEY_LENGTH)
        self.aclrtIpcMemGetExportKey(address, size, ctypes.addressof(key), KEY_LENGTH, flags)
        return key.raw

    def import_key(self, key: bytes, flags: int = 0) -> int:
        return self.out("aclrtIpcMemImportByKey", key, flags)


class _Codes:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name)

        def call(*args: object) -> int:
            # All integers as 64 bits: ctypes would cut an address to 32.
            return function(*(ctypes.c_int64(_signed(a)) if isinstance(a, int) else a for a in args))

        return call


def _signed(value: int) -> int:
    value = int(value)
    return value - 2**64 if value >= 2**63 else value
