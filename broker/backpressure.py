"""How much is unfinished, what may be, and when there is room again. Pure."""

import math
from dataclasses import dataclass

from config.settings import BackpressureSettings


@dataclass(frozen=True)
class Load:
    """Unfinished requests and the tokens that they can cost, in all and of one owner."""

    requests: int
    tokens: int
    owner_requests: int
    owner_tokens: int
    #: Averaged over scripts.DRAIN_WINDOW_S; 0 where nothing has finished lately.
    drained_tokens_per_s: float


@dataclass(frozen=True)
class Overload:
    """There is no room for a request now."""

    #: Whether it is the owner's own share that is used up, and not the whole.
    is_owners: bool
    limit: str
    #: Seconds until there should be room, by the rate at which requests finish now.
    retry_after_s: int


def overload(load: Load, tokens: int, limits: BackpressureSettings, *, num_requests: int = 1) -> Overload | None:
    """What keeps requests of so many tokens out, or None where they may come in. The owner's own limits come first."""
    mean_tokens = load.tokens / load.requests if load.requests else tokens / num_requests
    checks = (
        (True, "owner_max_requests", (load.owner_requests + num_requests - limits.owner_max_requests) * mean_tokens),
        (True, "owner_max_tokens", load.owner_tokens + tokens - limits.owner_max_tokens),
        (False, "max_requests", (load.requests + num_requests - limits.max_requests) * mean_tokens),
        (False, "max_tokens", load.tokens + tokens - limits.max_tokens),
    )
    for is_owners, limit, excess_tokens in checks:
        if excess_tokens > 0:
            return Overload(is_owners, limit, _retry_after_s(excess_tokens, load.drained_tokens_per_s, limits))
    return None


def _retry_after_s(excess_tokens: float, tokens_per_s: float, limits: BackpressureSettings) -> int:
    longest = limits.longest_retry_after_s
    if excess_tokens >= tokens_per_s * longest:  # also where nothing has finished lately
        return longest
    return max(1, math.ceil(excess_tokens / tokens_per_s))
