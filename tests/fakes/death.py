"""Deaths at named steps, for worker processes around stand-in engines: SIGKILL of oneself, as no handler can see it.

Or SIGSTOP: whoever is sent SIGCONT then goes on with the very next thing, however late it is.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

#: Steps of a job at which a worker can be told to die, in their order.
STEPS = ("before_start", "mid_draft", "before_commit", "after_commit")


class Death:
    """Dies at the `countdown`-th time that its step is reached. Leaves a line in the file `book` that says so."""

    def __init__(self, step: str, countdown: int, book: Path, by: signal.Signals = signal.SIGKILL) -> None:
        if step not in STEPS:
            raise ValueError(f"{step} is no step; steps are {', '.join(STEPS)}")
        self._step = step
        self._countdown = countdown
        self._book = book
        self._by = by
        self._lock = threading.Lock()

    def at(self, step: str, request_id: str) -> None:
        """The step was reached."""
        if step != self._step:
            return
        with self._lock:
            self._countdown -= 1
            if self._countdown != 0:
                return
            line = {
                "step": step,
                "request_id": request_id,
                "pid": os.getpid(),
                "at_s": time.time(),
                "by": self._by.name,
            }
            with self._book.open("a") as book:
                book.write(json.dumps(line) + "\n")
            os.kill(os.getpid(), self._by)
