"""When to try again, and after how long. Pure.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): waiting a random part of
the growing delay keeps many clients that failed together from coming back together.
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
    """How often a call is repeated and how long each wait may be, in seconds."""

    max_retries: int = 4
    first_delay_s: float = 0.25
    longest_delay_s: float = 8.0
    #: A server that asks for a longer wait than this is not waited for.
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


#: What clients do unless they are told otherwise.
DEFAULT_RULE = RetryRule()


def may_repeat(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a call that may have reached the gateway can be sent again without doing its work twice."""
    return method in REPEATABLE_METHODS or IDEMPOTENCY_HEADER in headers


def sent_at(value: str | None, now: datetime) -> datetime:
    """When an answer was sent by its sender's clock, which is its `Date` header; `now` where that says nothing."""
    return _date(value) or now


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """The `Retry-After` header in seconds, given as seconds or as a date; None where it says nothing readable.

    `now`: by the clock of who sent the header, which may not agree with this host's.
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
    """An HTTP date; None where it is none."""
    if value is None:
        return None
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
