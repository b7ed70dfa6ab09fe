"""The emulated libcann_hixl.so through the C shim that the plugin uses, by ctypes, without torch."""

from __future__ import annotations

import ctypes
import time

from torch_llm_datadist.emulator import libraries

from .acl_harness import DEADLINE_S, ROOT

SHIM = ROOT / "torch_llm_datadist" / "_hixl_shim.so"
LIBRARY = libraries.hixl_path()

PARAM, TIMEOUT, NOT_CONNECTED, ALREADY, UNSUPPORTED = 103900, 103901, 103902, 103903, 103905
RESOURCES, FAILED = 203900, 503900
WAITING, COMPLETED, BROKEN = 0, 1, 2


class HixlError(Exception):
    def __init__(self, name: str, code: int, message: str) -> None:
        super().__init__(f"{name} returned {code}: {message}")
        self.code = code


class Piece(ctypes.Structure):
    _fields_ = (("local", ctypes.c_uint64), ("remote", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


def pieces(*triples: tuple[int, int, int]) -> ctypes.Array[Piece]:
    return (Piece * len(triples))(*triples)


shim = ctypes.CDLL(str(SHIM))
shim.datadistHixlLoad.restype = ctypes.c_char_p
shim.datadistHixlSymbol.restype = ctypes.c_char_p
shim.datadistHixlNew.restype = ctypes.c_void_p


def load() -> ctypes.CDLL:
    """The emulated library, for its faults and counts."""
    problem = shim.datadistHixlLoad(str(LIBRARY).encode())
    assert problem == b"", problem
    library = ctypes.CDLL(str(LIBRARY))
    library.emuHixlMessage.restype = ctypes.c_char_p
    library.emuHixlCalls.restype = ctypes.c_int64
    return library


class Engine:
    """One hixl::Hixl. ``Engine.code`` gives codes where methods raise HixlError."""

    def __init__(self, name: str, **options: str) -> None:
        self.library = load()
        self.handle = shim.datadistHixlNew()
        words = [word.encode() for pair in options.items() for word in pair]
        array = (ctypes.c_char_p * max(1, len(words)))(*words)
        try:
            self._check(
                "Initialize", shim.datadistHixlInitialize(self._it, name.encode(), array, len(words) // 2)
            )
        except HixlError:
            self.end()
            raise

    @property
    def _it(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.handle)

    def _check(self, name: str, code: int) -> None:
        if code != 0:
            raise HixlError(name, code, self.library.emuHixlMessage().decode())

    def end(self) -> None:
        shim.datadistHixlDelete(self._it)
        self.handle = None

    def register(self, address: int, size: int, on_device: bool = True) -> int:
        handle = ctypes.c_void_p()
        code = shim.datadistHixlRegister(
            self._it, ctypes.c_uint64(address), ctypes.c_uint64(size), int(on_device), ctypes.byref(handle)
        )
        self._check("RegisterMem", code)
        return handle.value or 0

    def deregister(self, handle: int) -> None:
        self._check("DeregisterMem", shim.datadistHixlDeregister(self._it, ctypes.c_void_p(handle)))

    def connect(self, remote: str, timeout_ms: int = DEADLINE_S * 1000) -> None:
        self._check("Connect", shim.datadistHixlConnect(self._it, remote.encode(), timeout_ms))

    def disconnect(self, remote: str) -> None:
        self._check("Disconnect", shim.datadistHixlDisconnect(self._it, remote.encode(), 1000))

    def post(self, remote: str, writes: bool, *triples: tuple[int, int, int]) -> int:
        request = ctypes.c_void_p()
        code = shim.datadistHixlPost(
            self._it, remote.encode(), int(writes), pieces(*triples), len(triples), ctypes.byref(request)
        )
        self._check("TransferAsync", code)
        return request.value or 0

    def poll(self, request: int) -> int:
        status = ctypes.c_int(-1)
        code = shim.datadistHixlPoll(self._it, ctypes.c_void_p(request), ctypes.byref(status))
        self._check("GetTransferStatus", code)
        return status.value

    def ended(self, request: int) -> int:
        """How a batch ended; it must."""
        deadline = time.monotonic() + DEADLINE_S
        while (status := self.poll(request)) == WAITING:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return status

    def write(self, remote: str, *triples: tuple[int, int, int]) -> int:
        return self.ended(self.post(remote, True, *triples))

    def read(self, remote: str, *triples: tuple[int, int, int]) -> int:
        return self.ended(self.post(remote, False, *triples))
