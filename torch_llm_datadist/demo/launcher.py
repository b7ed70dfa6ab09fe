"""Starts prefill and decode, carries their messages, watches over both, and compares what they made."""

import contextlib
import dataclasses
import os
import select
import signal
import time
from collections.abc import Iterator
from types import FrameType

from torch_llm_datadist import emulator
from torch_llm_datadist.demo.channel import ChannelClosedError, Message
from torch_llm_datadist.demo.child import Child
from torch_llm_datadist.demo.compare import Generated, compare
from torch_llm_datadist.demo.options import CommandLine, Options
from torch_llm_datadist.demo.report import Report
from torch_llm_datadist.emulator.hosts import Host, HostsUnavailableError, Lab, Network
from torch_llm_datadist.transports import nixl_library

ROLES = ("prefill", "decode")
START_TIMEOUT_S = 180.0
# Before the link is made only the launcher can notice a frozen worker.
FROZEN_BEFORE_LINK_S = 3.0
# Afterwards the library does, and the other worker ends with the reason; this is for when it does not.
OTHER_WORKER_ENDS_WITHIN_S = 4.5
OTHER_REASON_WITHIN_S = 0.5
FINISH_TIMEOUT_S = 20.0
_MTU = 1500  # Ethernet's: of packets as large as a Lab's, --loss would hit none
EMULATE = "TORCH_LLM_DATADIST_EMULATE"


class DemoError(Exception):
    """The run cannot go on. `output` is what the worker in question printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class TerminatedError(Exception):
    """SIGTERM or SIGHUP: clean up as after Ctrl-C."""


def run(command_line: CommandLine) -> int:
    """Runs the demo; returns the exit status."""
    wanted = emulator.is_wanted()
    is_emulated = not emulator.has_npu() if wanted is None else wanted
    if is_emulated:
        emulator.enable()  # In the workers; here it only makes sure, early, that the emulator is built.
    children: list[Child] = []
    previous = {
        number: signal.signal(number, _raise_terminated) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    previous[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    with (
        contextlib.ExitStack() as clean_up,
        Report(command_line.options, command_line.json_file, is_emulated) as report,
    ):
        try:
            hosts, network = clean_up.enter_context(_hosts(command_line, report))
            environment = _environment(is_emulated)
            children += [Child(role, environment, hosts.get(role)) for role in ROLES]
            report.started({child.role: child.pid for child in children})
            options = command_line.options
            if hosts:
                # The one that goes through the emulated network.
                options = dataclasses.replace(options, decode_ip=hosts["decode"].address, transport="nixl")
            results = Conversation(children, options, report).hold()
            if network:
                report.carried(network.counts())
            return _judge(results, report, is_emulated)
        except DemoError as error:
            report.failed(str(error), error.output)
            return 1
        except (KeyboardInterrupt, TerminatedError):
            report.failed("interrupted; ending both workers")
            return 130
        finally:
            for number in previous:
                signal.signal(number, signal.SIG_IGN)  # A second Ctrl-C must not stop the clean-up.
            for child in children:
                child.end()
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _hosts(command_line: CommandLine, report: Report) -> Iterator[tuple[dict[str, Host], Network | None]]:
    """The host of each worker, and the network between them; none where both run here."""
    if command_line.hosts == 1:
        yield {}, None
        return
    if why_not := nixl_library()[1]:
        raise DemoError(f"--hosts 2: between hosts the link goes over NIXL, and {why_not}")
    try:
        with Lab(*ROLES, mtu=_MTU) as lab:
            lab.network.shape(delay_s=command_line.latency_ms / 1000, loss=command_line.loss)
            report.hosts(
                {role: lab[role].address for role in ROLES}, command_line.latency_ms, command_line.loss
            )
            yield {role: lab[role] for role in ROLES}, lab.network
    except HostsUnavailableError as error:
        raise DemoError(f"--hosts 2: {error}") from error


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


def _environment(is_emulated: bool) -> dict[str, str]:
    """One OpenMP thread per worker: kernels add in the same order in each, and two share two cores. Eagerly
    transformers would call attention in another form than under a compiler, and it would round differently.
    """
    return {
        **os.environ,
        EMULATE: "1" if is_emulated else "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_SDPA_FORCE_GQA": "1",
    }


def _judge(results: dict[str, Message], report: Report, is_emulated: bool) -> int:
    two_processes = Generated(**results["decode"]["generated"])
    one_process = Generated(**results["prefill"]["generated"])
    comparison = compare(two_processes, one_process, exact_logits=is_emulated)
    report.compared(comparison, results["prefill"]["exposed_ms"])
    return 0 if comparison.identical else 1


class Conversation:
    """Carries messages between the workers until both have their results or one of them fails."""

    def __init__(self, children: list[Child], options: Options, report: Report) -> None:
        self._children = {child.role: child for child in children}
        self._options = options
        self._report = report
        self._linked: set[str] = set()
        self._results: dict[str, Message] = {}
        self._closed: set[str] = set()
        self._last_turn = time.monotonic()
        self._ended_since: dict[str, float] = {}
        self._is_finishing = False

    def hold(self) -> dict[str, Message]:
        """Returns each worker's result."""
        start_deadline = time.monotonic() + START_TIMEOUT_S
        for child in self._children.values():
            self._send(child, "options", options=self._options.to_dict())
        while len(self._results) < len(self._children):
            self._turn()
            if not self._is_linked() and time.monotonic() > start_deadline:
                raise DemoError(f"the workers did not link within {START_TIMEOUT_S:g} s", self._all_output())
        self._finish()
        return self._results

    def _finish(self) -> None:
        """Lets both unlink and end by themselves: a worker that cannot is a failure too."""
        self._is_finishing = True
        deadline = time.monotonic() + FINISH_TIMEOUT_S
        for child in self._children.values():
            self._send(child, "finish")
        while not all(child.has_ended() for child in self._children.values()):
            self._turn()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"a worker did not end within {FINISH_TIMEOUT_S:g} s of its result", self._all_output()
                )
        for child in self._children.values():
            if not child.ended_well():
                raise DemoError(f"{_name(child)} {child.how_it_ended()}", child.output_tail())

    def _turn(self) -> None:
        """Waits for messages for a tenth of a second, then looks after both processes."""
        listening = {
            child.channel: child for role, child in self._children.items() if role not in self._closed
        }
        if listening:
            for channel in select.select(list(listening), [], [], 0.1)[0]:
                self._read(listening[channel])
        else:
            time.sleep(0.1)
        self._watch()

    def _read(self, child: Child) -> None:
        try:
            messages = child.channel.receive()
        except ChannelClosedError:
            self._closed.add(child.role)
            return
        for message in messages:
            self._handle(child, message)

    def _handle(self, child: Child, message: Message) -> None:
        kind, recipient = message["kind"], message.pop("to", None)
        if recipient:
            self._send(self._children[recipient], **message)
        elif kind == "linked":
            self._linked.add(child.role)
            if self._is_linked():
                self._report.linked(message["transport"])
        elif kind == "token":
            self._report.token(child.role, message["count"])
        elif kind == "result":
            self._results[child.role] = message
        elif kind == "failed":
            reasons = [(child, message), *self._other_reasons(child)]
            raise DemoError(
                "; ".join(f"{_name(each)} stopped: {failed['message']}" for each, failed in reasons),
                "\n".join(each.output_tail() for each, failed in reasons if failed["is_unexpected"]),
            )

    def _other_reasons(self, child: Child) -> Iterator[tuple[Child, Message]]:
        """Who lost its peer may say so before the peer has said why it left."""
        deadline = time.monotonic() + OTHER_REASON_WITHIN_S
        for other in self._children.values():
            if other is child or other.frozen_s:
                continue
            with contextlib.suppress(ChannelClosedError):
                while (left_s := deadline - time.monotonic()) > 0:
                    readable = select.select([other.channel], [], [], left_s)[0]
                    for message in other.channel.receive() if readable else ():
                        if message["kind"] == "failed":
                            yield other, message
                            return

    def _send(self, child: Child, kind: str, **fields: object) -> None:
        # One that ended: what it said last is still to be read, and `_watch` says how.
        with contextlib.suppress(ChannelClosedError):
            child.channel.send(kind, **fields)

    def _is_linked(self) -> bool:
        return len(self._linked) == len(self._children)

    def _watch(self) -> None:
        """Notices a worker that died or froze. Once linked, the other is given time to notice it itself."""
        now = time.monotonic()
        launcher_was_stopped, self._last_turn = now - self._last_turn > 1, now
        for child in self._children.values():
            if child.has_ended():
                self._watch_dead(child, now)
                continue
            child.watch_for_freeze()
            if launcher_was_stopped:
                child.forget_freeze()
            bound = OTHER_WORKER_ENDS_WITHIN_S if self._is_linked() else FROZEN_BEFORE_LINK_S
            if child.frozen_s > bound:
                raise DemoError(
                    f"{_name(child)} has been frozen for {child.frozen_s:.1f} s; ending both workers"
                )

    def _watch_dead(self, child: Child, now: float) -> None:
        if (self._is_finishing and child.ended_well()) or child.role not in self._closed:
            return  # All is well, or it may still have said why not.
        since = self._ended_since.setdefault(child.role, now)
        grace = OTHER_WORKER_ENDS_WITHIN_S if self._is_linked() else 0.0
        if now - since >= grace or len(self._closed) == len(self._children):
            raise DemoError(
                f"{_name(child)} {child.how_it_ended()}; ending both workers", child.output_tail()
            )

    def _all_output(self) -> str:
        return "\n".join(f"[{child.role}]\n{child.output_tail()}" for child in self._children.values())


def _name(child: Child) -> str:
    return f"{child.role} (pid {child.pid})"
