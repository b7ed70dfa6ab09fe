"""Misbehaviour on demand: calls and tasks that fail or are late, slow and half-done copies, frozen queues, a
lost device, exhausted resources, dead exporters, frozen hosts.

For this process call the functions of this module; for another emulated process on this machine, of the same
user, the same functions of ``of(pid)``. The controlling process needs neither torch nor emulation::

    from torch_llm_datadist.emulator import faults

    faults.fail_next("aclrtMemcpyAsync", nth=3, code=507013)  # this process
    held = faults.of(pid).hold_copy(after=512)                # another one: its next copy stops half done
    held.wait()                                               # until it is there
    held.disarm()                                             # the copy goes on

At start a process takes faults from one environment variable, in the same words (statements end with ``;``)::

    TORCH_LLM_DATADIST_EMULATE_FAULTS="fail aclrtMemcpyAsync nth=3 code=507013; bandwidth d2d=2e9"

    fail <function> code= [nth= times= address= bytes=]
    late <function> seconds= [nth= times= address= bytes=]
    fail_task [<task>] code= [nth= times= stream= device= direction= address= bytes=]
    task_delay seconds= [stream= device=]
    bandwidth [h2d= d2h= d2d= peer= stream= device=]
    split piece= [stream= device= direction=]
    hold_copy after= [nth= stream= device= direction= address= bytes=]
    flip_byte [offset= nth= times= stream= device= direction= address= bytes=]
    overtake [seconds= nth= times= stream= device=]
    freeze_device device=
    freeze_stream stream=
    lose_device device= [code=]
    limit [streams= events= notifies= memory=]
    exporter_dead [pid=]
    count_as_pid pid=
    export_page page=
    spoil_capture after=
    interleave seed= [stream= device=]

With a text that it cannot read every call of that process fails with 100000, and the message says why.

**How rules behave.** Times are seconds, sizes bytes, streams the handle (or a ``torch.npu.Stream`` of this
process), devices the number that the process itself uses. What is left out means "any". ``nth`` counts from
the next match (1), ``times`` says how many matches from there on take effect (0: all). Setting the same thing
again, with the same function, stream, device, direction, address and bytes, replaces it. A forked child
starts with a copy of its parent's rules; a process that ends takes its rules along, however it ends. Nothing
armed costs one load per call and task.

**What stops what.** A frozen stream or device starts no task, finishes none and, between the pieces of a
split or slow copy, moves no bytes; a kernel that runs goes on to its end. Host threads that wait for it
wait on. Frozen *hosts* (``of(pid).freeze_host()``) are the other half: the process's threads stop where
they are, its queues go on, emulated compute included. (A thread inside of the emulated runtime, or of the
heap, which the queues need, too, stops when it has come out of it.) Host functions
(``aclrtLaunchHostFunc``) are the host's. A thread whose name begins with "npu-" counts as the device's;
do not call your own threads so. The freeze ends with ``thaw_host()`` or with the freezing process, and a
frozen process can be killed. It takes the kernel's ptrace: the same user, and no debugger there already.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch_llm_datadist.emulator import libraries, switch
from torch_llm_datadist.emulator.fault_block import Block, Kind, Rule
from torch_llm_datadist.emulator.host_freeze import HostFreeze

if TYPE_CHECKING:
    from torch_npu.npu import Stream

_DIRECTIONS = ("h2d", "d2h", "d2d", "peer")
_RESOURCES = ("streams", "events", "notifies", "memory")


class Armed:
    """A rule that was set: how far it is, and its end."""

    def __init__(self, block: Block, slot: int, generation: int) -> None:
        self._block, self._slot, self._generation = block, slot, generation

    def _counts(self) -> tuple[int, int]:
        generation, hits, fired = self._block.counts(self._slot)
        if generation not in (self._generation, self._generation + 1):
            raise LookupError("another rule took this one's place")
        return hits, fired

    @property
    def hits(self) -> int:
        """How many calls, tasks or copies matched."""
        return self._counts()[0]

    @property
    def fired(self) -> int:
        """How often it took effect; for a held copy, 1 once it stands still."""
        return self._counts()[1]

    def wait(self, within_s: float = 20.0) -> None:
        """Returns when it took effect. Raises TimeoutError when that takes too long."""
        give_up_at = time.monotonic() + within_s
        while self.fired == 0:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the fault did not take effect within {within_s} s ({self.hits} matches)")
            time.sleep(0.001)

    def disarm(self) -> None:
        """Ends it; what it holds goes on."""
        mine = (self._slot, self._generation)
        self._block.disarm_slot(*mine)


class Faults:
    """The faults of one emulated process. ``of`` makes it."""

    def __init__(self, find_block: Callable[[], Block]) -> None:
        self._find_block = find_block
        self._freeze: HostFreeze | None = None
        self._frozen_streams: dict[tuple[int, int], int] = {}

    def _arm(self, rule: Rule) -> Armed:
        block = self._find_block()
        return Armed(block, *block.arm(rule))

    def _disarm(self, *kinds: Kind, matches: Callable[[Rule], bool] = lambda _: True) -> None:
        self._find_block().disarm(lambda rule: rule.kind in kinds and matches(rule))

    def _call_rule(
        self, kind: Kind, function: str, nth: int, times: int, address: int, size: int, **what: int
    ) -> Rule:
        functions = self._find_block().functions
        if function not in functions:
            raise ValueError(f"function = {function!r}: the emulated runtime has no such entry point")
        if (address or size) and not functions[function]:
            raise ValueError(f"function = {function!r}: its calls cannot be told apart by address or bytes")
        return Rule(
            kind,
            function,
            nth=_at_least("nth", nth, 1),
            times=_at_least("times", times, 0),
            address=_at_least("address", address, 0),
            size=_at_least("bytes", size, 0),
            **what,
        )

    # Calls.

    def fail_next(
        self, function: str, nth: int, code: int, *, times: int = 1, address: int = 0, bytes: int = 0
    ) -> Armed | None:
        """Makes the nth following call (1: the next) of an ACL function return ``code`` and do nothing.

        Args:
            function: its name, as ``"aclrtMemcpyAsync"``.
            nth: which call; 0 disarms.
            code: what it returns.
            times: for how many calls from the nth on; 0 for all.
            address: only calls that name memory which holds this address (copies, fills, value operations,
                frees, exports).
            bytes: only calls of exactly this size (those, and allocations).
        """
        rule = self._call_rule(Kind.FAIL_CALL, function, max(nth, 1), times, address, bytes, code=code)
        if nth == 0:
            self._disarm(Kind.FAIL_CALL, matches=lambda there: there.filters() == rule.filters())
            return None
        _at_least("nth", nth, 0)
        return self._arm(rule)

    def delay_call(
        self,
        function: str,
        seconds: float,
        nth: int = 1,
        *,
        times: int = 1,
        address: int = 0,
        bytes: int = 0,
    ) -> Armed:
        """Makes the nth following call of an ACL function return ``seconds`` late, with its effect done.

        Disarmed, it returns earlier. The other arguments as in ``fail_next``.
        """
        amount = _nanoseconds(seconds)
        return self._arm(self._call_rule(Kind.LATE_CALL, function, nth, times, address, bytes, amount=amount))

    # Tasks and copies.

    def fail_task(
        self,
        nth: int,
        code: int,
        stream: Stream | int | None = None,
        direction: str | None = None,
        *,
        task: str = "",
        times: int = 1,
        device: int | None = None,
        address: int = 0,
        bytes: int = 0,
    ) -> Armed | None:
        """Makes the nth following task that runs (1: the next) end with ``code`` and do nothing.

        On a stream with STOP_ON_FAILURE, as torch's are, the whole context stops with it.

        Args:
            nth: which one of those that match; 0 disarms.
            code: 507013 for the copy engine, 507056 for a link, 507057 for a peer; or any other.
            stream: only on this stream.
            direction: only copies in this one: "h2d", "d2h", "d2d" or "peer" (another device or process).
            task: what runs: the ACL function that queued it, an operator's name, or ``"*"`` for anything;
                copies by default.
            times: how many, from the nth on; 0 for all.
            device: only on this device.
            address: only copies from or to memory that holds this address.
            bytes: only copies of exactly this size.
        """
        rule = Rule(
            Kind.FAIL_TASK,
            task,
            nth=max(_at_least("nth", nth, 0), 1),
            times=_at_least("times", times, 0),
            code=code,
            **_where(stream, device, direction, address, bytes),
        )
        if nth == 0:
            self._disarm(Kind.FAIL_TASK, matches=lambda there: there.filters() == rule.filters())
            return None
        return self._arm(rule)

    def set_task_delay(
        self, seconds: float, stream: Stream | int | None = None, device: int | None = None
    ) -> None:
        """Makes each task from now on (of a stream, or of a device) take this much longer; 0 ends it."""
        self._set(Rule(Kind.TASK_DELAY, amount=_nanoseconds(seconds), **_where(stream, device)), seconds != 0)

    def set_bandwidth(
        self,
        direction: str,
        bytes_per_s: float,
        stream: Stream | int | None = None,
        device: int | None = None,
    ) -> None:
        """Makes "h2d", "d2h", "d2d" or "peer" copies take size / bandwidth from now on; 0 lifts it.

        The bytes arrive little by little. Of several that match a copy (its stream's and its device's, say)
        the slowest counts.
        """
        rule = Rule(Kind.BANDWIDTH, amount=round(bytes_per_s), **_where(stream, device, direction))
        self._set(rule, bytes_per_s != 0)

    def set_split(
        self,
        piece: int,
        stream: Stream | int | None = None,
        direction: str | None = None,
        device: int | None = None,
    ) -> None:
        """Makes copies move in pieces of so many bytes, between which a freeze holds them; 0 ends it."""
        rule = Rule(Kind.SPLIT, amount=_at_least("piece", piece, 0), **_where(stream, device, direction))
        self._set(rule, piece != 0)

    def set_interleaving(
        self, seed: int | None, stream: Stream | int | None = None, device: int | None = None
    ) -> None:
        """Makes streams stop for random moments between tasks and in large copies from now on; None ends it.

        The order between streams becomes another one with each seed, that inside of a stream never does.
        """
        wanted = 0 if seed is None else _at_least("seed", seed, 0)
        self._set(Rule(Kind.INTERLEAVE, amount=wanted, **_where(stream, device)), seed is not None)

    def hold_copy(
        self,
        after: int,
        nth: int = 1,
        stream: Stream | int | None = None,
        direction: str | None = None,
        *,
        device: int | None = None,
        address: int = 0,
        bytes: int = 0,
    ) -> Armed:
        """Stops the nth following copy when ``after`` of its bytes are at the destination, until disarmed.

        ``wait()`` of the result returns when it stands there. ``after`` beyond the copy's end holds it when
        all bytes are there and it is not finished. The other arguments as in ``fail_task``.
        """
        return self._arm(
            Rule(
                Kind.HOLD_COPY,
                nth=_at_least("nth", nth, 1),
                amount=_at_least("after", after, 0),
                **_where(stream, device, direction, address, bytes),
            )
        )

    def flip_byte(
        self,
        nth: int = 1,
        offset: int = 0,
        stream: Stream | int | None = None,
        direction: str | None = None,
        *,
        times: int = 1,
        device: int | None = None,
        address: int = 0,
        bytes: int = 0,
    ) -> Armed:
        """Makes the byte at ``offset`` (or the last one) of the nth following copy arrive inverted.

        The other arguments as in ``fail_task``.
        """
        return self._arm(
            Rule(
                Kind.FLIP_BYTE,
                nth=_at_least("nth", nth, 1),
                times=_at_least("times", times, 0),
                amount=_at_least("offset", offset, 0),
                **_where(stream, device, direction, address, bytes),
            )
        )

    def overtake(
        self,
        nth: int = 1,
        seconds: float = 0.05,
        stream: Stream | int | None = None,
        *,
        times: int = 1,
        device: int | None = None,
    ) -> Armed:
        """Lets the nth following flag overtake the bytes of the copies right before it on its stream.

        A flag is a value write or a copy of 8 bytes. A copy waits up to ``seconds`` for a flag to be queued
        behind it with only copies between; then the flag is written, and the bytes follow ``seconds`` later.
        A checker that trusts the flag reads old bytes. Not inside replays of graphs, whose tasks are no
        queue.
        """
        return self._arm(
            Rule(
                Kind.OVERTAKE,
                nth=_at_least("nth", nth, 1),
                times=_at_least("times", times, 0),
                amount=_nanoseconds(seconds),
                **_where(stream, device),
            )
        )

    # Devices and streams that stand still, or are gone.

    def freeze_device(self, device: int = 0) -> None:
        """Stops all queues of a device; the host goes on. ``thaw_device`` ends it."""
        self._arm(Rule(Kind.FREEZE, device=_at_least("device", device, 0)))

    def thaw_device(self, device: int = 0) -> None:
        self._disarm(Kind.FREEZE, matches=lambda rule: rule.stream == 0 and rule.device == device)

    def freeze_stream(self, stream: Stream | int) -> None:
        """Stops one stream; ``thaw_stream`` ends it."""
        handle = _handle(stream)
        self._frozen_streams[_name(stream)] = handle
        self._arm(Rule(Kind.FREEZE, stream=handle))

    def thaw_stream(self, stream: Stream | int) -> None:
        # torch_npu reads a handle behind all that is queued, which may stand still behind this very stream.
        handle = self._frozen_streams.pop(_name(stream), 0) or _handle(stream)
        self._disarm(Kind.FREEZE, matches=lambda rule: rule.stream == handle)

    def lose_device(self, device: int = 0, code: int = 507010) -> None:
        """Loses a device: nothing runs on it any more, and from the next synchronisation on every call
        returns ``code`` (507010 heartbeat lost, 507899 driver, 507901 link to the host), until
        ``aclrtResetDevice`` ends its primary context; its other contexts stay broken.
        """
        self._arm(Rule(Kind.LOSE, device=_at_least("device", device, 0), code=code))

    # Resources, and memory of other processes.

    def limit(
        self,
        *,
        streams: int | None = None,
        events: int | None = None,
        notifies: int | None = None,
        memory: int | None = None,
    ) -> None:
        """Sets how many more streams, events and notifies, and bytes of device memory, this process can have.

        What is given back can be had again. Then: 207008, 207007, 207009, 207001. ``unlimit`` ends it.
        """
        given = dict(zip(_RESOURCES, (streams, events, notifies, memory), strict=True))
        if all(left is None for left in given.values()):
            raise ValueError(f"limit takes at least one of {', '.join(_RESOURCES)}")
        for resource, left in given.items():
            if left is not None:
                self._arm(Rule(Kind.LIMIT, resource, amount=_at_least(resource, left, 0)))

    def unlimit(self) -> None:
        self._disarm(Kind.LIMIT)

    def exporter_dead(self, pid: int = 0) -> Armed:
        """Makes process ``pid`` (0: each) count as gone in this one: imports fail with 507022, tasks on
        memory imported from it with 507056, while it lives on.
        """
        return self._arm(Rule(Kind.DEAD_EXPORTER, amount=_at_least("pid", pid, 0)))

    def count_as_pid(self, pid: int) -> Armed:
        """Makes white lists know this process as ``pid``, as where a container hides its number: 207006."""
        return self._arm(Rule(Kind.COUNT_AS_PID, amount=_at_least("pid", pid, 1)))

    def export_page(self, size: int) -> Armed:
        """Makes exports fit pages of ``size`` bytes, whatever the memory was allocated with; else 107000."""
        return self._arm(Rule(Kind.EXPORT_PAGE, amount=_at_least("size", size, 1)))

    def spoil_capture(self, after: int) -> Armed:
        """Invalidates the capture that takes the ``after``-th task captured from now on: then 507903."""
        return self._arm(Rule(Kind.SPOIL_CAPTURE, nth=_at_least("after", after, 1)))

    # The host half.

    def freeze_host(self, within_s: float = 10.0) -> None:
        """Stops all host threads of that process where they are, and new ones; its device goes on.

        Returns when they stand still. Raises RuntimeError for this process itself, TimeoutError, or
        PermissionError when the kernel does not let this process trace that one.
        """
        if self._freeze is None:
            self._freeze = HostFreeze(self._find_block(), within_s)

    def thaw_host(self) -> None:
        freeze, self._freeze = self._freeze, None
        if freeze is not None:
            freeze.thaw()

    def reset(self) -> None:
        """Disarms everything and thaws everything; a lost device is there again."""
        self.thaw_host()
        self._find_block().disarm(lambda rule: True)

    def _set(self, rule: Rule, on: bool) -> None:
        if on:
            self._arm(rule)
        else:
            self._disarm(rule.kind, matches=lambda there: there.filters() == rule.filters())


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value >= 2**64:
        raise ValueError(f"{name} = {value!r}, expected a whole number of {least} or more")
    return value


def _nanoseconds(seconds: float) -> int:
    if not 0 <= seconds < 1e9:
        raise ValueError(f"seconds = {seconds!r}, expected 0 or more")
    return round(seconds * 1e9)


def _handle(stream: Stream | int) -> int:
    handle: int = stream if isinstance(stream, int) else stream.npu_stream
    if handle == 0:
        raise ValueError("the default stream has no handle of its own: freeze or slow down its device")
    return handle


def _name(stream: Stream | int) -> tuple[int, int]:
    """Tells streams apart without asking for the handle."""
    return (-1, stream) if isinstance(stream, int) else (stream.device_index, stream.stream_id)


def _where(
    stream: Stream | int | None,
    device: int | None,
    direction: str | None = None,
    address: int = 0,
    size: int = 0,
) -> dict[str, Any]:
    if direction is not None and direction not in _DIRECTIONS:
        raise ValueError(f"direction = {direction!r}, expected one of {', '.join(_DIRECTIONS)}")
    return {
        "stream": 0 if stream is None else _handle(stream),
        "device": -1 if device is None else _at_least("device", device, 0),
        "direction": -1 if direction is None else _DIRECTIONS.index(direction),
        "address": _at_least("address", address, 0),
        "size": _at_least("bytes", size, 0),
    }


def of(pid: int) -> Faults:
    """The faults of another emulated process (or of this one, by its pid).

    Raises ProcessLookupError when there is no such process, LookupError when it made no call to an emulated
    runtime yet, PermissionError when it is another user's.
    """
    block = Block(pid)
    return Faults(lambda: block)


def _runtime() -> ctypes.CDLL:
    if not switch.is_enabled():
        raise RuntimeError("emulation is off in this process, and a real NPU takes no orders to fail")
    return libraries.runtime()


_own: list[Block] = []


def _own_block() -> Block:
    runtime = _runtime()
    if not _own or _own[0].pid != os.getpid():
        runtime.emuCalls(b"aclInit")  # the block is there with the first call
        _own[:] = [Block(os.getpid())]
    return _own[0]


def calls(function: str) -> int:
    """How often an ACL function was called in this process."""
    _runtime().emuCalls.restype = ctypes.c_int64
    count: int = _runtime().emuCalls(function.encode())
    if count < 0:
        raise ValueError(f"function = {function!r}: the emulated runtime has no such entry point")
    return count


_here = Faults(_own_block)

fail_next = _here.fail_next
delay_call = _here.delay_call
fail_task = _here.fail_task
set_task_delay = _here.set_task_delay
set_bandwidth = _here.set_bandwidth
set_split = _here.set_split
set_interleaving = _here.set_interleaving
hold_copy = _here.hold_copy
flip_byte = _here.flip_byte
overtake = _here.overtake
freeze_device = _here.freeze_device
thaw_device = _here.thaw_device
freeze_stream = _here.freeze_stream
thaw_stream = _here.thaw_stream
lose_device = _here.lose_device
limit = _here.limit
unlimit = _here.unlimit
exporter_dead = _here.exporter_dead
count_as_pid = _here.count_as_pid
export_page = _here.export_page
spoil_capture = _here.spoil_capture
reset = _here.reset
