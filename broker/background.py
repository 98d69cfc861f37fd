"""Threads that repeat one step for the life of a process, and never end because a step failed.

A step that raises is logged and called again after a pause. What failed for a while without a success in between is
`broken`: whoever looks after the process's health asks (`workers.runtime.worker_process`, `gateway.monitoring.routes`),
since a process whose leases are not renewed, say, must not go on as if all were well. Redis being away is no fault of
the process and breaks nothing.
"""

import logging
import threading
import time
from collections.abc import Callable

from broker.connection import REDIS_AWAY

log = logging.getLogger(__name__)

#: Seconds until the next call after a step failed, at least.
RETRY_S = 0.5
#: Seconds of nothing but failures after which a loop counts as broken, by default.
BROKEN_AFTER_S = 30.0
#: Seconds between two log lines with a traceback about the same loop: a step that fails at every call says it once a
#: minute.
LOG_EVERY_S = 60.0


class Loop:
    """Calls `step` again and again on a daemon thread. `start` once, `close` once, `wake` from any thread.

    `step` is called after the start, and then `every_s` seconds after the last call ended, or after as many as
    that call returned. One that blocks for long should look at `closing`.
    """

    def __init__(
        self, name: str, step: Callable[[], float | None], *, every_s: float, broken_after_s: float = BROKEN_AFTER_S
    ) -> None:
        self.name = name
        self._broken_after_s = broken_after_s
        self._step = step
        self._every_s = every_s
        #: Set when the loop is to end.
        self.closing = threading.Event()
        self._woken = threading.Event()
        self._first_after_s = 0.0
        self._failing_since_s: float | None = None
        self._logged_at_s = -LOG_EVERY_S
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, *, after_s: float = 0.0) -> None:
        """Begin, with the first call after so many seconds."""
        self._first_after_s = after_s
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now, or right after the present one. Does not block."""
        self._woken.set()

    def close(self, timeout_s: float | None = None) -> None:
        """Make no further call. Blocks until the present one has ended, for `timeout_s` at most."""
        self.closing.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def broken(self) -> bool:
        """Whether every call for `broken_after_s` failed, or the thread has ended without being told to."""
        if self.closing.is_set() or self._thread.ident is None:
            return False
        since_s = self._failing_since_s
        lasting = since_s is not None and time.monotonic() - since_s >= self._broken_after_s
        return lasting or not self._thread.is_alive()

    def _run(self) -> None:
        pause_s = self._first_after_s
        while True:
            if pause_s > 0:
                self._woken.wait(pause_s)
            self._woken.clear()
            if self.closing.is_set():
                return
            pause_s = self._call()

    def _call(self) -> float:
        """One step; the seconds until the next."""
        try:
            pause_s = self._step()
        except REDIS_AWAY as error:
            self._failing_since_s = None
            log.warning("redis_away loop=%s error=%s", self.name, error)
        except Exception:  # whatever it was, the next call may succeed, and the loop's work must go on
            if self._note_failure():
                log.exception("background_step_failed loop=%s", self.name)
        else:
            self._failing_since_s = None
            return self._every_s if pause_s is None else pause_s
        return max(self._every_s, RETRY_S)

    def _note_failure(self) -> bool:
        """Whether it is time to log one."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if now_s - self._logged_at_s < LOG_EVERY_S:
            return False
        self._logged_at_s = now_s
        return True
