"""Backpressure: whether new requests fit into the limits on unfinished work, and if not, when to try again. Pure."""

import math
from dataclasses import dataclass

from config.settings import BackpressureSettings


@dataclass(frozen=True)
class Load:
    """Unfinished requests and the most tokens that they can cost: of all owners, and of one."""

    requests: int
    tokens: int
    owner_requests: int
    owner_tokens: int
    #: Tokens of finished requests per second, averaged over scripts.DRAIN_WINDOW_S; 0 if none has finished lately.
    drained_tokens_per_s: float


@dataclass(frozen=True)
class Overload:
    """New requests would exceed a limit."""

    #: Whether the limit is one per owner; else it is one for all owners together.
    is_owners: bool
    #: The setting's name in `backpressure`.
    limit: str
    #: Estimated seconds until there is room, at the rate at which requests finish now.
    retry_after_s: int


def overload(load: Load, tokens: int, limits: BackpressureSettings, *, num_requests: int = 1) -> Overload | None:
    """The first limit that requests of `tokens` tokens would exceed, the owner's limits first; None if they fit."""
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
    if excess_tokens >= tokens_per_s * longest:  # also if nothing has finished lately
        return longest
    return max(1, math.ceil(excess_tokens / tokens_per_s))
