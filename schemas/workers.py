"""A worker's report about itself, which it renews while it is alive."""

from schemas.message import Wire
from schemas.policy import Tier


class CacheStatistics(Wire):
    """A KV cache since its worker started. Sizes are in tokens unless a name says otherwise."""

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
    """Drafts that a cloud worker has verified since it started."""

    requests: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    rewritten_tokens: int = 0
    cloud_steps: int = 0


class WorkerState(Wire):
    """One live worker, as everybody may see it."""

    tier: Tier
    model: str
    engine: str
    host: str
    ready: bool
    capacity: int
    in_flight: int
    jobs_done: int = 0
    verification: VerificationStatistics | None = None


class WorkerReport(WorkerState):
    """One live worker. A worker whose report has expired counts as dead."""

    worker_id: str
    #: Random for each process: what an earlier process of the same name published is void.
    epoch: str
    pid: int
    #: Measured tokens of work (schemas/routing_decision.py) per second while busy; None before the first.
    work_tokens_per_s: float | None = None
    cache: CacheStatistics
    #: Seconds since the epoch, by Redis's clock.
    started_at_s: float
    reported_at_s: float
