"""Statistics of a client's requests: counts and latencies."""

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firstdraft.client.errors import FirstdraftError

#: Latencies kept for the percentiles; older ones are dropped.
NUM_KEPT = 10_000


@dataclass(frozen=True)
class ClientStatistics:
    """A client's statistics since it was made. Latencies are in milliseconds; None before the first answer."""

    #: Prompts sent by `infer`, `submit` and `stream`.
    requests: int
    #: Calls of the client's methods that raised `FirstdraftError`.
    errors: int
    #: HTTP requests that were retried.
    retries: int
    #: As `infer` measures them; percentiles are of the last 10,000.
    mean_latency_ms: float | None
    p50_latency_ms: float | None
    p90_latency_ms: float | None
    p99_latency_ms: float | None


class Counters:
    """Counts for one client; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._errors = self._retries = 0
        self._num_latencies = 0
        self._sum_latencies_ms = 0.0
        self._latencies_ms: deque[float] = deque(maxlen=NUM_KEPT)

    def requested(self) -> None:
        """Count a prompt."""
        with self._lock:
            self._requests += 1

    @contextmanager
    def counting_errors(self) -> Iterator[None]:
        """Count a `FirstdraftError` that leaves the block."""
        try:
            yield
        except FirstdraftError:
            with self._lock:
                self._errors += 1
            raise

    def retried(self) -> None:
        """Count a retry."""
        with self._lock:
            self._retries += 1

    def answered(self, latency_ms: float) -> None:
        """Count an answer and its latency."""
        with self._lock:
            self._num_latencies += 1
            self._sum_latencies_ms += latency_ms
            self._latencies_ms.append(latency_ms)

    def read(self) -> ClientStatistics:
        """The current statistics."""
        with self._lock:
            latencies = sorted(self._latencies_ms)
            num, total = self._num_latencies, self._sum_latencies_ms
            requests, errors, retries = self._requests, self._errors, self._retries
        return ClientStatistics(
            requests=requests,
            errors=errors,
            retries=retries,
            mean_latency_ms=total / num if num else None,
            p50_latency_ms=percentile(latencies, 0.50),
            p90_latency_ms=percentile(latencies, 0.90),
            p99_latency_ms=percentile(latencies, 0.99),
        )


def percentile(ascending: list[float], share: float) -> float | None:
    """The nearest-rank percentile: the least value with at least `share` of all at or below it. None if empty."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None
