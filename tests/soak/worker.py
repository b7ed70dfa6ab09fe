"""The process of a member: it does what it is told, several things at a time, until it is killed.

It is forked from a server that has imported torch and torch_npu and touched no device, so a death costs
milliseconds.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

# Those that wait for another member have threads of their own: they must not hold up what it waits for.
POOLS = {"do": 3, "wait": 3, "ask": 2}


def serve(connection: Connection) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    from tests.soak.commands import Commands

    commands = Commands()
    pools = {name: ThreadPoolExecutor(threads, name) for name, threads in POOLS.items()}
    sending = threading.Lock()

    def run(number: int, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        answer = (number, *_outcome(commands, call, args))
        with sending:
            connection.send(answer)

    while True:
        try:
            number, name, args = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # the conductor is gone
        call = getattr(commands, name)
        pools[call.pool].submit(run, number, call, args)


def _outcome(commands: Any, call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any]:
    """("done", value), ("refused", (code, text)) of the library, or ("broken", traceback)."""
    import torch_llm_datadist as datadist

    life = commands.life
    try:
        return "done", call(*args)
    except datadist.LLMException as error:
        return "refused", (error.status_code.name, str(error))
    except BaseException as error:
        if commands.life != life or commands.is_restarting:
            return "refused", ("RESTARTED", str(error))
        return "broken", "".join(traceback.format_exception(error))
