"""A worker process, as the launcher starts it: python -m torch_llm_datadist.demo.worker ROLE FD LAUNCHER."""

import contextlib
import os
import socket
import sys
import traceback

from torch_llm_datadist import emulator
from torch_llm_datadist.demo.channel import Channel, ChannelClosedError, Inbox
from torch_llm_datadist.demo.child import die_with_parent
from torch_llm_datadist.demo.options import Options
from torch_llm_datadist.errors import NotYetLinkError


def main() -> None:
    """Runs one role to its end. A failure is told to the launcher, which prints it and ends the other."""
    role, descriptor, launcher = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(launcher)
    channel = Channel(socket.socket(fileno=descriptor))
    status = 1
    try:
        work(role, channel)
        status = 0
    except BaseException as error:
        tell(channel, error)
    # Without destructors: after a success they only take time, after a failure they may wait for a lost peer.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def work(role: str, channel: Channel) -> None:
    inbox = Inbox(channel)
    options = Options.from_dict(inbox.take("options")["options"])
    if os.environ["TORCH_LLM_DATADIST_EMULATE"] == "1":
        emulator.enable()

    # Only now: all of this imports torch.
    from torch_llm_datadist.demo import decode, prefill
    from torch_llm_datadist.demo.engine import Engine, PeerLostError

    engine = Engine(role, options, channel, inbox)
    try:
        {"prefill": prefill, "decode": decode}[role].run(engine)
    except NotYetLinkError as error:
        raise PeerLostError(f"lost its peer {engine.peer_role}: {error}") from error


def tell(channel: Channel, error: BaseException) -> None:
    is_expected = type(error).__name__ == "PeerLostError"
    if not is_expected:
        traceback.print_exc()
    message = str(error) if is_expected else f"{type(error).__name__}: {error}"
    with contextlib.suppress(ChannelClosedError):
        channel.send("failed", message=message, is_unexpected=not is_expected)


if __name__ == "__main__":
    main()
