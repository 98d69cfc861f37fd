"""What readiness and the statistics say, made from worker reports. Pure."""

from collections.abc import Mapping, Sequence

from schemas.calibration import Calibration
from schemas.drift import DriftState
from schemas.jobs import CacheReport, CalibrationSummary, Readiness, SystemReport, WorkerCache, WorkerSummary
from schemas.policy import Policy, Tier
from schemas.workers import CacheStatistics, WorkerReport, WorkerState


def readiness(policy: Policy, reports: Sequence[WorkerReport] | None) -> Readiness:
    """Whether each tier of the policy has a live worker. `reports` is None where Redis does not answer."""
    if reports is None:
        return Readiness(ready=False, redis=False, policy=policy.name, missing=("redis does not answer",))
    tiers = {
        tier: tuple(report.worker_id for report in reports if report.tier == tier and report.ready)
        for tier in policy.tiers
    }
    missing = tuple(f"no live {tier} worker" for tier, workers in tiers.items() if not workers)
    return Readiness(ready=not missing, redis=True, policy=policy.name, tiers=tiers, missing=missing)


def caches(reports: Sequence[WorkerReport]) -> CacheReport:
    """Every worker's cache, and each tier's sum."""
    return CacheReport(
        tiers={tier: _sum([r.cache for r in reports if r.tier == tier]) for tier in Tier},
        workers=tuple(WorkerCache(worker=r.worker_id, tier=r.tier, model=r.model, statistics=r.cache) for r in reports),
    )


def system(
    counters: Mapping[str, int],
    waiting: Mapping[str, int],
    reports: Sequence[WorkerReport],
    calibrations: Sequence[CalibrationSummary] = (),
) -> SystemReport:
    """Counters, queues, calibrations and workers."""
    edge, cloud = counters.get("answered_edge", 0), counters.get("answered_cloud", 0)
    verified = [report.verification for report in reports if report.verification is not None]
    drafted = sum(v.drafted_tokens for v in verified)
    return SystemReport(
        counters=dict(counters),
        waiting=dict(waiting),
        edge_share=edge / (edge + cloud) if edge + cloud else None,
        acceptance_rate=sum(v.accepted_tokens for v in verified) / drafted if drafted else None,
        calibrations=tuple(calibrations),
        workers=tuple(_summary(report) for report in reports),
    )


def calibration(active: Calibration, drift: DriftState | None) -> CalibrationSummary:
    """An active calibration without its labels."""
    return CalibrationSummary(
        version=active.version,
        scope=active.scope,
        goal=active.goal,
        threshold=active.threshold,
        labels=len(active.labels),
        drift=drift,
    )


def _summary(report: WorkerReport) -> WorkerSummary:
    state = {name: getattr(report, name) for name in WorkerState.model_fields}
    uptime_s = report.reported_at_s - report.started_at_s
    return WorkerSummary(worker=report.worker_id, uptime_s=uptime_s, **state)


def _sum(statistics: Sequence[CacheStatistics]) -> CacheStatistics:
    counted = [name for name in CacheStatistics.model_fields if name != "enabled"]
    return CacheStatistics(
        enabled=any(s.enabled for s in statistics),
        **{name: sum(getattr(s, name) for s in statistics) for name in counted},
    )
