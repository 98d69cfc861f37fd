"""Where a request was sent and why: kept in its record and in the log."""

from enum import StrEnum

from schemas.message import Wire


class RoutingPolicy(StrEnum):
    """How a worker is chosen."""

    #: The least time until the prompt is read: what is cached counts, and so does what waits.
    PREFIX = "prefix"
    #: The least work waiting, whatever is cached.
    LEAST_LOADED = "least_loaded"
    RANDOM = "random"


class RoutingReason(StrEnum):
    """What decided."""

    #: It costs least there because part of its prompt is cached there.
    PREFIX = "prefix"
    #: It costs least there, and nothing of its prompt that is cached there decided it.
    LEAST_LOADED = "least_loaded"
    #: By lot, as the policy says.
    RANDOM = "random"
    #: No worker lives, or every one's queue is full: whoever has room first takes it.
    NO_WORKER = "no_worker"
    ALL_FULL = "all_full"


class RoutingDecision(Wire):
    """Where one tier's part of a request went, and why. Tokens are estimates made from bytes."""

    #: The worker in its present life, `id@epoch`; None: the queue that all workers of the tier share.
    worker: str | None
    reason: RoutingReason
    prompt_tokens: int
    #: What the request adds to its worker's load: what of the prompt is not cached there, and the writing.
    work_tokens: int
    #: Prompt tokens that were cached where it went, and the most that were cached anywhere.
    cached_tokens: int = 0
    most_cached_tokens: int = 0
    #: What the worker was compared by, in seconds (broker/routing.py).
    cost_s: float = 0.0
    #: Workers that were compared, and workers that were passed over because their queues were too long.
    num_candidates: int = 0
    num_passed_over: int = 0
