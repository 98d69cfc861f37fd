"""Which calls are retried, and after what delay. Pure.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): a random share of the
growing delay keeps clients that failed at the same time from retrying at the same time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Statuses that say "not now".
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
#: Methods that may be repeated as they are. A POST may be because it carries an idempotency key.
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "DELETE", "PUT"})
#: The header that makes a POST repeatable.
IDEMPOTENCY_HEADER = "Idempotency-Key"


@dataclass(frozen=True)
class RetryRule:
    """How often a call is retried, and the bounds of the delays, in seconds."""

    max_retries: int = 4
    first_delay_s: float = 0.25
    longest_delay_s: float = 8.0
    #: No retry if the server asks for a longer wait than this.
    longest_retry_after_s: float = 60.0

    def delay_s(self, retries_so_far: int, retry_after_s: float | None, share: float) -> float | None:
        """Seconds to wait before the next try, or None to give up. `share` is random, in [0, 1)."""
        if retries_so_far >= self.max_retries:
            return None
        backoff = share * min(self.longest_delay_s, self.first_delay_s * 2.0**retries_so_far)
        if retry_after_s is None:
            return backoff
        if retry_after_s > self.longest_retry_after_s:
            return None
        return retry_after_s + backoff


#: The default of both clients.
DEFAULT_RULE = RetryRule()


def may_repeat(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a call that may have reached the gateway can be repeated without doing its work twice."""
    return method in REPEATABLE_METHODS or IDEMPOTENCY_HEADER in headers


def sent_at(value: str | None, now: datetime) -> datetime:
    """When a response was sent, by the server's clock: its `Date` header, or `now` without a valid one."""
    return _date(value) or now


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """A `Retry-After` header (seconds or a date) in seconds; None if it is missing or invalid.

    `now` is by the server's clock, which may differ from ours.
    """
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    at = _date(value)
    return None if at is None else max(0.0, (at - now).total_seconds())


def _date(value: str | None) -> datetime | None:
    """An HTTP date; None if it is missing or invalid."""
    if value is None:
        return None
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
