"""A worker's speed, measured while it has work. Pure except for the clock that it is given."""

import math
import threading
import time
from collections.abc import Callable

#: Seconds of busy time over which the speed is averaged.
WINDOW_S = 30.0


class Throughput:
    """Tokens of work per second of busy time; idle time does not count. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._num_jobs = 0
        self._tokens = self._busy_s = 0.0
        self._at_s = clock()

    def begun(self) -> None:
        """Note the start of a job."""
        with self._lock:
            self._pass_time()
            self._num_jobs += 1

    def ended(self, tokens: int) -> None:
        """Note the end of a job of `tokens` tokens of work."""
        with self._lock:
            self._pass_time()
            self._num_jobs -= 1
            self._tokens += tokens

    @property
    def tokens_per_s(self) -> float | None:
        """The speed; None before any work was done."""
        with self._lock:
            return self._tokens / self._busy_s if self._tokens and self._busy_s else None

    def _pass_time(self) -> None:
        now = self._clock()
        passed, self._at_s = now - self._at_s, now
        if self._num_jobs:
            decay = math.exp(-passed / WINDOW_S)
            self._tokens *= decay
            self._busy_s = self._busy_s * decay + passed
