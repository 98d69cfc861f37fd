"""Daemon threads that repeat one step for the life of a process and survive its failures.

A step that raises is logged and called again after a pause. A loop whose calls have all failed for a while is `broken`,
which the process's health check reads (`workers.runtime.worker_process`, `gateway.monitoring.routes`): a process that
cannot renew its leases, for example, must be restarted. Failures because Redis is away do not count.
"""

import logging
import threading
import time
from collections.abc import Callable

from broker.connection import REDIS_AWAY

log = logging.getLogger(__name__)

#: Minimum of seconds between a failure and the next call.
RETRY_S = 0.5
#: Seconds of uninterrupted failures after which a loop counts as broken, by default.
BROKEN_AFTER_S = 30.0
#: Seconds between two logged tracebacks of the same loop, which may fail at every call.
LOG_EVERY_S = 60.0


class Loop:
    """Calls `step` repeatedly on a daemon thread. Call `start` and `close` once each, `wake` from any thread.

    The next call comes `every_s` seconds after the last one ended, or after the number of seconds that the step
    returned. A step that blocks for long should check `closing`.
    """

    def __init__(
        self, name: str, step: Callable[[], float | None], *, every_s: float, broken_after_s: float = BROKEN_AFTER_S
    ) -> None:
        self.name = name
        self._broken_after_s = broken_after_s
        self._step = step
        self._every_s = every_s
        #: Set when the loop must end.
        self.closing = threading.Event()
        self._woken = threading.Event()
        self._first_after_s = 0.0
        self._failing_since_s: float | None = None
        self._logged_at_s = -LOG_EVERY_S
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, *, after_s: float = 0.0) -> None:
        """Start the thread; the first call comes after `after_s` seconds."""
        self._first_after_s = after_s
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now, or right after the current one. Does not block."""
        self._woken.set()

    def close(self, timeout_s: float | None = None) -> None:
        """Make no further call. Blocks until the current one has ended, for at most `timeout_s` seconds."""
        self.closing.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def broken(self) -> bool:
        """Whether every call for `broken_after_s` has failed, or the thread has ended before `close`."""
        if self.closing.is_set() or self._thread.ident is None:
            return False
        since_s = self._failing_since_s
        keeps_failing = since_s is not None and time.monotonic() - since_s >= self._broken_after_s
        return keeps_failing or not self._thread.is_alive()

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
        """Call the step; returns the seconds until the next call."""
        try:
            pause_s = self._step()
        except REDIS_AWAY as error:
            self._failing_since_s = None
            log.warning("redis_away loop=%s error=%s", self.name, error)
        except Exception:  # the next call may succeed, and the loop must go on
            if self._note_failure():
                log.exception("background_step_failed loop=%s", self.name)
        else:
            self._failing_since_s = None
            return self._every_s if pause_s is None else pause_s
        return max(self._every_s, RETRY_S)

    def _note_failure(self) -> bool:
        """Record a failure; returns whether to log it."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if now_s - self._logged_at_s < LOG_EVERY_S:
            return False
        self._logged_at_s = now_s
        return True
