"""Answers of the HTTP API: a job as its owner sees it, and the state of the whole system."""

from typing import Literal

from schemas.calibration import Goal, Scope
from schemas.drift import DriftState
from schemas.message import Wire
from schemas.policy import Tier
from schemas.results import Failure, Result
from schemas.workers import CacheStatistics, WorkerState


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
    """Whether the process works."""

    status: Literal["ok", "failing"] = "ok"
    #: Names of the background threads that have failed for a while.
    broken: tuple[str, ...] = ()


class Readiness(Wire):
    """Whether a request with the default policy would be answered now, and by which workers."""

    ready: bool
    redis: bool
    policy: str
    #: The tiers that the policy needs, with the names of their live workers.
    tiers: dict[Tier, tuple[str, ...]] = {}
    #: What is missing, for people to read.
    missing: tuple[str, ...] = ()


class WorkerCache(Wire):
    """One worker's KV cache."""

    worker: str
    tier: Tier
    model: str
    statistics: CacheStatistics


class CacheReport(Wire):
    """All KV caches, and the sum of each tier's."""

    tiers: dict[Tier, CacheStatistics]
    workers: tuple[WorkerCache, ...]


class CachedPrefix(Wire):
    """How much of a conversation's beginning a live worker has in its KV cache."""

    worker: str
    tier: Tier
    model: str
    #: Counted in the conversation's canonical bytes (broker/prefix_blocks.py), in whole blocks.
    held_bytes: int


class CachedPrefixReport(Wire):
    """Which workers have how much of a conversation cached."""

    prompt_bytes: int
    block_bytes: int
    holders: tuple[CachedPrefix, ...]


class WorkerSummary(WorkerState):
    """One live worker."""

    worker: str
    uptime_s: float


class CalibrationSummary(Wire):
    """An active calibration, and whether it keeps its promise."""

    version: int
    scope: Scope
    goal: Goal
    #: The calibration's own threshold; null keeps nothing.
    threshold: float | None
    #: Labels that it was made from.
    labels: int
    #: What watching it in service has found; null before the first label.
    drift: DriftState | None = None


class SystemReport(Wire):
    """What the system has done and is doing."""

    #: Since the deployment began: accepted, answered_edge, answered_cloud, escalated, failed, cancelled, …
    counters: dict[str, int]
    #: Jobs on each tier's queue.
    waiting: dict[str, int]
    #: Share of all answers that the edge gave without the cloud; null before the first answer.
    edge_share: float | None = None
    #: Accepted over drafted tokens of the live cloud workers; null before the first draft.
    acceptance_rate: float | None = None
    #: The active calibrations; none: confidence is uncalibrated.
    calibrations: tuple[CalibrationSummary, ...] = ()
    workers: tuple[WorkerSummary, ...]
