"""What a worker says about itself: its report, renewed while it lives."""

from schemas.message import Wire
from schemas.policy import Tier


class CacheStatistics(Wire):
    """A KV cache since its worker started. Sizes are in tokens unless the name says otherwise."""

    enabled: bool
    entries: int = 0
    tokens: int = 0
    max_tokens: int = 0
    hits: int = 0
    misses: int = 0
    tokens_saved: int = 0
    evictions: int = 0
    bytes: int = 0


class VerificationStatistics(Wire):
    """Drafts verified by a cloud worker since it started."""

    requests: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    rewritten_tokens: int = 0
    cloud_steps: int = 0


class WorkerReport(Wire):
    """One live worker. It is gone when its report has expired."""

    worker_id: str
    tier: Tier
    #: Random per process start: what an earlier process of the same name published is void.
    epoch: str
    host: str
    pid: int
    model: str
    engine: str
    ready: bool
    capacity: int
    in_flight: int
    jobs_done: int = 0
    #: Measured: tokens of work (schemas/routing_decision.py) a second while it had any; None before the first.
    work_tokens_per_s: float | None = None
    cache: CacheStatistics
    verification: VerificationStatistics | None = None
    #: Seconds since the epoch, by Redis's clock.
    started_at_s: float
    reported_at_s: float
