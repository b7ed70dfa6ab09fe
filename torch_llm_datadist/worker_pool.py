"""Threads of an instance that run what may block for long: a user's synchronizer, above all."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("torch_llm_datadist")


class WorkerPool:
    """At most ``limit`` daemon threads, started when there is something to do. Jobs begin in order.

    Not ``concurrent.futures``: the interpreter's exit would wait for a synchronizer that never returns.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._changed = threading.Condition()
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._is_closed = False

    def submit(self, job: Callable[[], None]) -> bool:
        """False when the pool is closed."""
        with self._changed:
            if self._is_closed:
                return False
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or len(self._threads) == self._limit:
                self._changed.notify()
                return True
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()
            return True

    def close(self, timeout_s: float) -> bool:
        """Drops what has not begun, waits for the rest. False when some of it still runs."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def thread_count(self) -> int:
        return len(self._threads)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                self._idle -= 1
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                logger.exception("%s: an error that no caller is told of", self._name)
            del job  # what it holds is not kept until the next one comes
