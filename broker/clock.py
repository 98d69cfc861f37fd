"""One clock for all hosts: the Redis server's.

Hosts' own clocks differ, and one that is ahead would think that what others have just renewed has lapsed. Whatever one
host writes down and another compares is told by this clock, or by `TIME` in a script.
"""

import threading
import time
from collections.abc import Callable
from typing import cast

from redis import Redis

from broker.connection import REDIS_AWAY

#: Seconds between two questions to the server. In between, time goes on by this host's monotonic clock, which drifts
#: from the server's by less than a millisecond meanwhile; a host that was suspended is wrong for at most this long.
REFRESH_S = 10.0


class ServerClock:
    """Seconds since the epoch by the Redis server's clock. May be called from any thread.

    A call costs a round trip at most once in `REFRESH_S`. While the server is away, time goes on from its last answer;
    before the first answer a call raises Redis's own error.
    """

    def __init__(self, redis: Redis, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: How far the server's clock is ahead of this host's monotonic one; None before the first answer.
        self._ahead_s: float | None = None
        self._refresh_at_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        with self._lock:
            ahead_s = self._ahead_s
            asks = ahead_s is None or self._monotonic() >= self._refresh_at_s
            if asks:
                self._refresh_at_s = self._monotonic() + REFRESH_S
        if asks:
            try:
                self._ahead_s = ahead_s = self._ask()
            except REDIS_AWAY:
                if ahead_s is None:
                    raise
        return cast("float", ahead_s) + self._monotonic()

    def _ask(self) -> float:
        before = self._monotonic()
        seconds, microseconds = self._redis.time()
        # The answer was true somewhere between question and arrival.
        return seconds + microseconds / 1e6 - (before + self._monotonic()) / 2
