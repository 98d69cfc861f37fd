"""What the HTTP API answers: a job as its owner sees it, and the state of the whole system."""

from typing import Literal

from schemas.message import Wire
from schemas.policy import Tier
from schemas.results import Failure, Result
from schemas.workers import CacheStatistics, VerificationStatistics


class Job(Wire):
    """A request and what has become of it so far."""

    id: str
    #: queued, drafting, escalated, verifying, succeeded, failed or cancelled.
    status: str
    policy: str
    #: Seconds since the epoch.
    created_at: float
    result: Result | None = None
    failure: Failure | None = None


class Health(Wire):
    """The process answers."""

    status: Literal["ok", "failing"] = "ok"
    #: What the process does beside requests and has failed at for a while, by name.
    broken: tuple[str, ...] = ()


class Readiness(Wire):
    """Whether a request of the configured policy would be answered now, and by whom."""

    ready: bool
    redis: bool
    policy: str
    #: The tiers that the policy needs, with their live workers' names.
    tiers: dict[Tier, tuple[str, ...]] = {}
    #: What is missing, in words.
    missing: tuple[str, ...] = ()


class WorkerCache(Wire):
    """One worker's KV cache."""

    worker: str
    tier: Tier
    model: str
    statistics: CacheStatistics


class CacheReport(Wire):
    """All KV caches, and each tier's sum."""

    tiers: dict[Tier, CacheStatistics]
    workers: tuple[WorkerCache, ...]


class PrefixHolding(Wire):
    """A live worker that holds the beginning of a conversation in its KV cache."""

    worker: str
    tier: Tier
    model: str
    #: Of the conversation's canonical bytes, in whole blocks.
    held_bytes: int


class HolderReport(Wire):
    """Who holds how much of a conversation."""

    prompt_bytes: int
    block_bytes: int
    holders: tuple[PrefixHolding, ...]


class WorkerSummary(Wire):
    """One live worker."""

    worker: str
    tier: Tier
    model: str
    engine: str
    host: str
    ready: bool
    capacity: int
    in_flight: int
    jobs_done: int
    uptime_s: float
    verification: VerificationStatistics | None = None


class SystemReport(Wire):
    """What the system has done and is doing."""

    #: Since the deployment began: accepted, answered_edge, answered_cloud, escalated, failed, cancelled, …
    counters: dict[str, int]
    #: Jobs on each tier's queue.
    waiting: dict[str, int]
    #: Share of all answers that left from the edge; absent before the first.
    edge_share: float | None = None
    #: Accepted over drafted tokens of the live cloud workers; absent before the first draft.
    acceptance_rate: float | None = None
    workers: tuple[WorkerSummary, ...]
