"""One clock for all hosts: the Redis server's.

Hosts' own clocks differ: one that is ahead would see leases as lapsed that others have just renewed. Every time that
one host stores and another compares is taken from this clock, or from `TIME` in a script.
"""

import threading
import time
from collections.abc import Callable
from typing import cast

from redis import Redis

from broker.connection import REDIS_AWAY

#: Seconds between two queries of the server. In between, this host's monotonic clock is used, which drifts by less than
#: a millisecond in that time. After a host was suspended, its time may be wrong for at most this long.
REFRESH_S = 10.0


class ServerClock:
    """Seconds since the epoch by the Redis server's clock. Safe on any thread.

    A call costs a round trip at most once per `REFRESH_S`. While the server is away, the time is extrapolated from its
    last answer; before the first answer a call raises Redis's own error.
    """

    def __init__(self, redis: Redis, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: The server's clock minus this host's monotonic clock; None before the first answer.
        self._offset_s: float | None = None
        self._refresh_at_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        with self._lock:
            offset_s = self._offset_s
            is_due = offset_s is None or self._monotonic() >= self._refresh_at_s
            if is_due:
                self._refresh_at_s = self._monotonic() + REFRESH_S
        if is_due:
            try:
                self._offset_s = offset_s = self._query()
            except REDIS_AWAY:
                if offset_s is None:
                    raise
        return cast("float", offset_s) + self._monotonic()

    def _query(self) -> float:
        before = self._monotonic()
        seconds, microseconds = self._redis.time()
        # The server read its clock at some time between query and answer; the middle is the best guess.
        return seconds + microseconds / 1e6 - (before + self._monotonic()) / 2
