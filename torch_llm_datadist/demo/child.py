"""A worker process as its launcher sees it: started, watched and, whatever happens, ended."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torch_llm_datadist.demo.channel import Channel
from torch_llm_datadist.emulator.hosts import Host

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Called first thing in a worker: the kernel ends it when its launcher dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # The launcher died before the call.
        os._exit(1)


class Child:
    """One worker, in a process group of its own: Ctrl-C reaches the launcher alone, which then cleans up.

    ``host``: an emulated one to run on.

    It is not reaped before `end`, so its process id and its group stay its own until then.
    """

    def __init__(self, role: str, environment: dict[str, str], host: Host | None = None) -> None:
        self.role = role
        self.channel, inherited = Channel.pair()
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed by `end`)
        worker = "torch_llm_datadist.demo.worker"
        with inherited:
            command = [sys.executable, "-m", worker, role, str(inherited.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command if host is None else host.command(command),
                env=environment if host is None else host.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[inherited.fileno()],
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._frozen_since: float | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self, timeout_s: float = 0) -> bool:
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def ended_well(self) -> bool:
        return self.how_it_ended() == "exited with status 0"

    def how_it_ended(self) -> str:
        """In words, for a message."""
        ending = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ending is None:
            return "is running"
        if ending.si_code == os.CLD_EXITED:
            return f"exited with status {ending.si_status}"
        return f"was killed by {signal.Signals(ending.si_status).name}"

    def watch_for_freeze(self) -> None:
        """Looks at the process once; `frozen_s` counts from the first look that finds it stopped."""
        if not self._is_stopped():
            self._frozen_since = None
        elif self._frozen_since is None:
            self._frozen_since = time.monotonic()

    def forget_freeze(self) -> None:
        """For when the launcher itself did not run for a while (Ctrl-Z, a debugger): begin to count anew."""
        self._frozen_since = None

    @property
    def frozen_s(self) -> float:
        """For how long it has been seen stopped."""
        return 0.0 if self._frozen_since is None else time.monotonic() - self._frozen_since

    def _is_stopped(self) -> bool:
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2]
        return after_name.split()[0] == "T"

    def output_tail(self, lines: int = 30) -> str:
        self._output.seek(0)
        return "\n".join(self._output.read().decode(errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """Leaves nothing of it: neither the process nor any that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        self.channel.close()
        self._output.close()
