"""CANN's HIXL engine as it is emulated: a library of its own, which moves bytes between processes by TCP."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from torch_llm_datadist.emulator import libraries

from . import hixl_calls as h
from .acl_calls import Acl
from .acl_harness import FEW_MS, MIB, Peer, in_thread, joined, peer
from .hixl_calls import Engine, HixlError
from .symbols import symbols

# Listens with 1 MiB of device memory and 1 MiB of host memory; says its name and both addresses.
SERVER = """
from tests.emulated_runtime.hixl_calls import Engine
acl.aclrtSetDevice(0)
memory = acl.malloc(1 << 20, fill=1)
host = (ctypes.c_char * (1 << 20))()
engine = Engine(sys.argv[1])
registered = engine.register(memory, 1 << 20)
engine.register(ctypes.addressof(host), 1 << 20, on_device=False)
say(sys.argv[1], memory, ctypes.addressof(host))
while command := hear():
    if command == "bytes":
        say(*sorted(set(acl.read(memory, 1 << 20))))
    elif command == "host":
        say(*sorted(set(host.raw)))
    elif command == "hold":
        engine.library.emuHixlHold(ctypes.c_int64(4096))
        say("ok")
    elif command == "held":
        while engine.library.emuHixlHeld() == 0: pass
        say(acl.read(memory, 1 << 20).count(7))
    elif command == "go":
        engine.library.emuHixlHold(ctypes.c_int64(-1))
        say("ok")
    elif command == "free":
        acl.aclrtFree(memory)
        say("ok")
    elif command == "deregister":
        engine.deregister(registered)
        say("ok")
    elif command == "more":
        more = acl.malloc(4096)
        engine.register(more, 4096)
        say(more)
    elif command == "end":
        engine.end()
        say("ok")
engine.end() if engine.handle else None
"""


def free_name() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Server:
    def __init__(self, process: Peer) -> None:
        self.process = process
        self.name, device, host = process.hear().split()
        self.device, self.host = int(device), int(host)

    def ask(self, word: str) -> str:
        self.process.say(word)
        return self.process.hear()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    with peer(SERVER.replace("sys.argv[1]", repr(free_name()))) as process:
        yield Server(process)


@pytest.fixture
def engine(acl: Acl) -> Iterator[Engine]:
    """A client; its faults are lifted at the end."""
    made = Engine("127.0.0.1")
    yield made
    for method in ("Connect", "TransferAsync", "GetTransferStatus"):
        made.library.emuHixlFailNext(method.encode(), 0, 0)
    made.library.emuHixlLimitLinks(0)
    made.end()


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(HixlError) as error:
        call()
    return error.value.code


def test_symbols_are_those_of_the_manual_and_the_shim_asks_for_no_other() -> None:
    shown = symbols(h.LIBRARY, "--defined-only")
    asked = []
    while name := h.shim.datadistHixlSymbol(len(asked)):
        asked.append(name.decode())

    assert {
        "_ZN4hixl4HixlC1Ev",
        "_ZN4hixl4Hixl8FinalizeEv",
        "_ZN4hixl4Hixl7ConnectERKN2ge12AscendStringEi",
        "_ZN4hixl4Hixl11RegisterMemERKNS_7MemDescENS_7MemTypeERPv",
        "_ZN4hixl4Hixl17GetTransferStatusERKPvRNS_14TransferStatusE",
        "_ZN2ge12AscendStringC1EPKc",
    } <= shown
    assert set(asked) <= shown
    assert not [name for name in shown if "cxx11" in name]


def test_capabilities_came_with_cann_9_1() -> None:
    name = "_ZN4hixl4Hixl13GetCapabilityENS_11FeatureTypeERi"
    lib = libraries.DIRECTORY / "lib"

    assert name in symbols(lib / "libcann_hixl.so", "--defined-only")
    for level in ("8.5", "9.0"):
        shown = symbols(lib / f"cann-{level}" / "libcann_hixl.so", "--defined-only")
        assert name not in shown
        assert "_ZN4hixl4HixlC1Ev" in shown


@pytest.mark.parametrize("what", ["nothing", "something else"])
def test_without_the_library_the_shim_says_what_is_missing(what: str) -> None:
    other = "" if what == "nothing" else str(libraries.DIRECTORY / "lib" / "libmspti.so")
    program = f"""
import ctypes
shim = ctypes.CDLL({str(h.SHIM)!r})
shim.datadistHixlLoad.restype = ctypes.c_char_p
shim.datadistHixlNew.restype = ctypes.c_void_p
print(shim.datadistHixlLoad({other.encode()!r} or None).decode(), shim.datadistHixlNew())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert said.endswith(" None\n")
    if what == "nothing":
        assert said.startswith("libcann_hixl.so, CANN's HIXL engine, is not found")
    else:
        assert "libcann_hixl.so lacks _ZN2ge12AscendStringC1EPKc" in said
        assert "CANN 8.5" in said


def test_bytes_move_between_device_and_host_memory_of_two_processes(acl: Acl, engine: Engine) -> None:
    near, host = acl.malloc(MIB, fill=5), (ctypes.c_char * MIB)()
    engine.register(near, MIB)
    engine.register(ctypes.addressof(host), MIB, on_device=False)
    with server() as other:
        engine.connect(other.name)

        assert engine.read(other.name, (ctypes.addressof(host), other.device, MIB)) == h.COMPLETED
        assert set(host.raw) == {1}
        assert engine.write(other.name, (near, other.host, MIB)) == h.COMPLETED
        assert other.ask("host") == "5"
        assert engine.read(other.name, (near, other.device, MIB)) == h.COMPLETED
        assert set(acl.read(near, MIB)) == {1}
        ctypes.memset(host, 9, MIB)
        assert engine.write(other.name, (ctypes.addressof(host), other.device, MIB)) == h.COMPLETED
        assert other.ask("bytes") == "9"


def test_pieces_of_a_batch_have_no_order(acl: Acl, engine: Engine) -> None:
    """Two of them write the same place, and it is not the last one that wins."""
    near = acl.malloc(2 * 4096, fill=7)
    acl.write(near + 4096, b"\x08" * 4096)
    engine.register(near, 2 * 4096)
    with server() as other:
        engine.connect(other.name)

        assert (
            engine.write(other.name, (near, other.device, 4096), (near + 4096, other.device, 4096))
            == h.COMPLETED
        )
        assert other.ask("bytes") == "1 7"


def test_a_batch_does_not_wait_for_the_one_before_it(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(MIB, fill=7)
    engine.register(near, MIB)
    with server() as other:
        engine.connect(other.name)
        other.ask("hold")
        held = engine.post(other.name, True, (near, other.device, MIB))
        assert int(other.ask("held")) == 4096  # the rest has not come

        assert engine.write(other.name, (near, other.host, 64)) == h.COMPLETED
        assert engine.poll(held) == h.WAITING
        other.ask("go")
        assert engine.ended(held) == h.COMPLETED
        assert other.ask("bytes") == "7"


def test_a_request_whose_end_was_told_is_not_asked_again(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    engine.register(near, 4096)
    with server() as other:
        engine.connect(other.name)
        request = engine.post(other.name, True, (near, other.device, 64))
        engine.ended(request)

        assert code_of(lambda: engine.poll(request)) == h.PARAM


def test_what_was_registered_after_the_connect_is_not_reached(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    engine.register(near, 4096)
    with server() as other:
        engine.connect(other.name)
        more, own = int(other.ask("more")), acl.malloc(4096)
        engine.register(own, 4096)

        assert code_of(lambda: engine.post(other.name, True, (near, more, 64))) == h.PARAM
        assert code_of(lambda: engine.post(other.name, True, (own, other.device, 64))) == h.PARAM
        engine.disconnect(other.name)
        engine.connect(other.name)
        assert engine.write(other.name, (own, more, 64)) == h.COMPLETED


@pytest.mark.parametrize("what", ["deregister", "free"])
@pytest.mark.parametrize("writes", [True, False])
def test_memory_that_the_peer_took_back_fails_the_batch_alone(
    acl: Acl, engine: Engine, what: str, writes: bool
) -> None:
    near = acl.malloc(4096)
    engine.register(near, 4096)
    with server() as other:
        engine.connect(other.name)
        other.ask(what)

        assert engine.ended(engine.post(other.name, writes, (near, other.device, 64))) == h.BROKEN
        assert engine.write(other.name, (near, other.host, 64)) == h.COMPLETED


def test_pieces_outside_of_registered_memory_are_refused(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    handle = engine.register(near, 4096)
    with server() as other:
        engine.connect(other.name)
        for piece in (
            (near + 4090, other.device, 8),
            (near, other.device + MIB - 4, 8),
            (near - 8, other.device, 16),
            (near, other.device, 0),
        ):
            assert code_of(lambda piece=piece: engine.post(other.name, True, piece)) == h.PARAM
        engine.deregister(handle)
        assert code_of(lambda: engine.post(other.name, True, (near, other.device, 8))) == h.PARAM
        assert code_of(lambda: engine.deregister(handle)) == h.PARAM


def test_links_have_their_codes(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    engine.register(near, 4096)
    with server() as other, server() as third:
        assert code_of(lambda: engine.post(other.name, True, (near, other.device, 8))) == h.NOT_CONNECTED
        assert code_of(lambda: engine.disconnect(other.name)) == h.NOT_CONNECTED
        for name in ("127.0.0.1", "nobody:1", "127.0.0.1:70000"):
            assert code_of(lambda name=name: engine.connect(name)) == h.PARAM
        engine.connect(other.name)
        assert code_of(lambda: engine.connect(other.name)) == h.ALREADY
        engine.library.emuHixlLimitLinks(1)
        assert code_of(lambda: engine.connect(third.name)) == h.RESOURCES
    assert code_of(lambda: engine.connect(free_name())) == h.RESOURCES
    engine.disconnect(other.name)
    assert code_of(lambda: engine.connect(free_name())) == h.FAILED


def test_a_peer_that_does_not_answer_is_a_timeout(acl: Acl, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        name = f"127.0.0.1:{mute.getsockname()[1]}"

        assert code_of(lambda: engine.connect(name, timeout_ms=FEW_MS)) == h.TIMEOUT


def test_a_killed_peer_fails_what_is_under_way_and_the_link(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(MIB)
    engine.register(near, MIB)
    with server() as other:
        engine.connect(other.name)
        other.ask("hold")
        requests = [engine.post(other.name, True, (near, other.device, MIB)) for _ in range(4)]
        other.ask("held")

        other.process.kill()

        assert [engine.ended(request) for request in requests] == [h.BROKEN] * 4
        assert code_of(lambda: engine.post(other.name, True, (near, other.device, 8))) == h.FAILED
        engine.disconnect(other.name)
        assert code_of(lambda: engine.connect(other.name)) == h.FAILED


def test_a_frozen_peer_is_never_reported(acl: Acl, engine: Engine) -> None:
    """So deadlines are the caller's; a batch goes on where it stood when the peer thaws."""
    near = acl.malloc(MIB, fill=7)
    engine.register(near, MIB)
    with server() as other:
        engine.connect(other.name)
        other.process.process.send_signal(signal.SIGSTOP)
        os.waitpid(other.process.process.pid, os.WUNTRACED)  # all of its threads stand still
        try:
            request = engine.post(other.name, True, (near, other.device, MIB))
            time.sleep(FEW_MS / 1000)
            assert engine.poll(request) == h.WAITING
        finally:
            other.process.process.send_signal(signal.SIGCONT)
        assert engine.ended(request) == h.COMPLETED
        assert other.ask("bytes") == "7"


def test_a_disconnect_fails_what_is_under_way(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(MIB)
    engine.register(near, MIB)
    with server() as other:
        engine.connect(other.name)
        other.ask("hold")
        request = engine.post(other.name, True, (near, other.device, MIB))
        other.ask("held")

        engine.disconnect(other.name)

        assert engine.ended(request) == h.BROKEN


def test_the_end_of_an_engine_ends_the_links_to_it(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(MIB)
    engine.register(near, MIB)
    with server() as other:
        engine.connect(other.name)
        other.ask("end")

        def post_until_it_fails() -> None:
            while engine.write(other.name, (near, other.device, 8)) != h.BROKEN:
                pass
            engine.post(other.name, True, (near, other.device, 8))

        assert code_of(post_until_it_fails) == h.FAILED


def test_memory_is_registered_as_what_it_is(acl: Acl, engine: Engine) -> None:
    near, host = acl.malloc(4096), (ctypes.c_char * 64)()

    assert code_of(lambda: engine.register(near, 4096, on_device=False)) == h.PARAM
    assert code_of(lambda: engine.register(ctypes.addressof(host), 64, on_device=True)) == h.PARAM
    assert code_of(lambda: engine.register(near, 1 << 40)) == h.PARAM
    assert code_of(lambda: engine.register(near, 0)) == h.PARAM
    assert code_of(lambda: engine.register(0, 64, on_device=False)) == h.PARAM


def test_so_many_regions_and_no_more(acl: Acl, engine: Engine) -> None:
    host = (ctypes.c_char * 64)()
    handles = [engine.register(ctypes.addressof(host), 64, on_device=False) for _ in range(4096)]

    assert code_of(lambda: engine.register(ctypes.addressof(host), 64, on_device=False)) == h.RESOURCES
    engine.deregister(handles[0])
    engine.register(ctypes.addressof(host), 64, on_device=False)


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("nowhere", {}, h.PARAM),
        ("127.0.0.1:70000", {}, h.PARAM),
        ("127.0.0.1", {"BufferPool": "4"}, h.PARAM),
        ("127.0.0.1", {"RdmaTrafficClass": "high"}, h.PARAM),
        ("127.0.0.1", {"LocalCommRes": "1.3"}, h.PARAM),
        ("127.0.0.1", {"NoSuchOption": "1"}, h.PARAM),
        ("127.0.0.1", {"EnableUseFabricMem": "1"}, h.UNSUPPORTED),
        ("127.0.0.1", {"AutoConnect": "1"}, h.UNSUPPORTED),
        ("192.0.2.1:7000", {}, h.FAILED),
    ],
)
def test_initialize_refuses(acl: Acl, name: str, options: dict[str, str], code: int) -> None:
    assert code_of(lambda: Engine(name, **options)) == code


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:-1", "[::1]", "::1"])
def test_a_name_without_a_port_is_a_client(acl: Acl, name: str) -> None:
    Engine(name, BufferPool="4:8", RdmaServiceLevel="4", LocalCommRes='{"version": "1.3"}').end()


def test_a_port_is_listened_at_by_one(acl: Acl) -> None:
    name = free_name()
    first = Engine(name)

    assert code_of(lambda: Engine(name)) == h.FAILED
    first.end()
    Engine(name).end()


def test_initialize_needs_a_device_and_calls_its_thread_or_context(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    context = acl.out("aclrtGetCurrentContext")
    codes = []

    def elsewhere() -> None:
        codes.append(code_of(lambda: Engine("127.0.0.1")))
        codes.append(code_of(lambda: engine.register(near, 4096)))
        acl.aclrtSetCurrentContext(context)
        engine.register(near, 4096)

    joined(in_thread(elsewhere))

    assert codes == [h.FAILED, h.FAILED]


def test_faults_on_demand_and_counts(acl: Acl, engine: Engine) -> None:
    near = acl.malloc(4096)
    engine.register(near, 4096)
    with server() as other:
        fail, calls = engine.library.emuHixlFailNext, engine.library.emuHixlCalls
        assert fail(b"NoSuchMethod", 1, 1) == h.PARAM
        assert calls(b"NoSuchMethod") == -1
        fail(b"Connect", 1, h.TIMEOUT)
        assert code_of(lambda: engine.connect(other.name)) == h.TIMEOUT
        engine.connect(other.name)
        fail(b"TransferAsync", 2, h.RESOURCES)
        before = calls(b"TransferAsync")
        engine.write(other.name, (near, other.device, 8))
        assert code_of(lambda: engine.post(other.name, True, (near, other.device, 8))) == h.RESOURCES
        assert calls(b"TransferAsync") - before == 2
        request = engine.post(other.name, True, (near, other.device, 8))
        fail(b"GetTransferStatus", 1, h.FAILED)
        assert code_of(lambda: engine.poll(request)) == h.FAILED


def test_fabric_memory_is_for_a3_and_excludes_the_buffer_pool() -> None:
    program = """
from tests.emulated_runtime.hixl_calls import Engine, HixlError
acl.aclrtSetDevice(0)
Engine("127.0.0.1", EnableUseFabricMem="1").end()
try:
    Engine("127.0.0.1", EnableUseFabricMem="1", BufferPool="4:8")
except HixlError as error:
    say(error.code)
"""
    with peer(program, TORCH_LLM_DATADIST_EMULATE_PROFILE="A3") as other:
        assert other.hear() == str(h.PARAM)
        other.end()
