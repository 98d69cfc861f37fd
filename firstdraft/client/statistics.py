"""What a client has seen: counts, and latencies of its requests."""

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firstdraft.client.errors import FirstdraftError

#: Latencies that are kept for the percentiles; older ones are forgotten.
NUM_KEPT = 10_000


@dataclass(frozen=True)
class ClientStatistics:
    """What a client has seen since it was made. Latencies are milliseconds; absent before the first answer."""

    #: Prompts that were sent: `infer`, `submit`, `stream`.
    requests: int
    #: Of all calls to the gateway and waits for jobs, those that ended in an error.
    errors: int
    #: HTTP calls that were sent again.
    retries: int
    #: From sending a prompt until its answer is here, as `infer` measures it; percentiles of the last 10,000.
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
        """A prompt was sent."""
        with self._lock:
            self._requests += 1

    @contextmanager
    def counting_errors(self) -> Iterator[None]:
        """Counts an error that ends the block."""
        try:
            yield
        except FirstdraftError:
            with self._lock:
                self._errors += 1
            raise

    def retried(self) -> None:
        """A call was sent again."""
        with self._lock:
            self._retries += 1

    def answered(self, latency_ms: float) -> None:
        """A prompt's answer is here."""
        with self._lock:
            self._num_latencies += 1
            self._sum_latencies_ms += latency_ms
            self._latencies_ms.append(latency_ms)

    def read(self) -> ClientStatistics:
        """All counts now."""
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
    """The nearest-rank percentile: the least value that `share` of all are not above. None of nothing."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None
