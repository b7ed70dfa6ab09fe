"""``python -m torch_llm_datadist doctor``: what this machine, and the way to a peer, lack for transfers."""

from __future__ import annotations

import argparse
import dataclasses
import json

from torch_llm_datadist import emulator
from torch_llm_datadist.cluster import parse_endpoint
from torch_llm_datadist.doctor import device, machine, networks, packages, peer
from torch_llm_datadist.doctor.finding import Finding, State
from torch_llm_datadist.emulator import presence
from torch_llm_datadist.errors import LLMException


def examine(
    listen: tuple[str, int] | None = None, peer_at: tuple[str, int] | None = None, timeout_s: float = 120.0
) -> list[Finding]:
    """Everything that can be found out without changing anything; takes some seconds.

    Args:
        listen: (ip, port) at which an instance shall listen, to see whether it can.
        peer_at: (ip, port) of an instance that listens somewhere else.
        timeout_s: limit of each step that starts a process.
    """
    findings = [*packages.examine(), *machine.examine(listen), *networks.examine()]
    if peer_at is not None:
        findings += peer.examine(*peer_at)
    # Last, since it takes longest and says least about the cause.
    if not any(finding.state is State.BROKEN for finding in findings):
        findings += device.examine(timeout_s)
    return findings


def main(argv: list[str]) -> int:
    """Prints the findings; 1 if something is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_llm_datadist doctor",
        description="Checks this machine, and with --peer the way to another, and says what to do.",
    )
    presence.add_options(parser)
    parser.add_argument("--listen", metavar="IP:PORT", type=_endpoint, help="where an instance shall listen")
    parser.add_argument("--peer", metavar="IP:PORT", type=_endpoint, help="where another one listens")
    parser.add_argument("--timeout", metavar="S", type=float, default=120.0, help="of each longer step; 120")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    options = parser.parse_args(argv)
    emulator.choose(options.emulate)
    findings = examine(options.listen, options.peer, options.timeout)
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.state.value:<7} {finding.name:<{width}}  {finding.found}")
            if finding.advice:
                print(f"{'':<{width + 8}}  -> {finding.advice}")
    return int(any(finding.state is State.BROKEN for finding in findings))


def _endpoint(text: str) -> tuple[str, int]:
    try:
        return parse_endpoint("the address", text)
    except (LLMException, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
