"""Which worker a request was sent to, and why: kept in its record and in the log."""

from enum import StrEnum

from schemas.message import Wire


class RoutingPolicy(StrEnum):
    """How a worker is chosen."""

    #: The least time until the prompt is processed, from cached prefixes and waiting work.
    PREFIX = "prefix"
    #: The least waiting work, whatever is cached.
    LEAST_LOADED = "least_loaded"
    RANDOM = "random"


class RoutingReason(StrEnum):
    """Why the worker was chosen."""

    #: The least cost, because a part of the prompt is cached there.
    PREFIX = "prefix"
    #: The least cost, and no cached prefix made the difference.
    LEAST_LOADED = "least_loaded"
    #: At random, as the policy says.
    RANDOM = "random"
    #: No worker is alive, or every queue is full: the first worker with room takes the request.
    NO_WORKER = "no_worker"
    ALL_FULL = "all_full"


class RoutingDecision(Wire):
    """Where a request was sent on one tier, and why. Token counts are estimated from bytes."""

    #: The worker process, `id@epoch`; None for the queue that all workers of the tier share.
    worker: str | None
    reason: RoutingReason
    prompt_tokens: int
    #: What the request adds to its worker's load: uncached prompt tokens, and the tokens to write.
    work_tokens: int
    #: Prompt tokens that the chosen worker has cached, and the most that any worker has.
    cached_tokens: int = 0
    most_cached_tokens: int = 0
    #: The chosen worker's cost in seconds (broker/routing.py).
    cost_s: float = 0.0
    #: Workers that were compared, and workers that were not because their queues were full.
    num_candidates: int = 0
    num_passed_over: int = 0
