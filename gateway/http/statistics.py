"""What jobs, readiness and the statistics pages say, made of worker reports. Pure."""

from collections.abc import Mapping, Sequence

from broker.leases import Record
from schemas.jobs import CacheReport, Job, Readiness, SystemReport, WorkerCache, WorkerSummary
from schemas.policy import Policy, Tier
from schemas.workers import CacheStatistics, WorkerReport


def described(record: Record) -> Job:
    """A request as its owner sees it."""
    return Job(
        id=record.request_id,
        status=record.state,
        policy=record.request.policy.name,
        created_at=record.request.accepted_at_s,
        result=record.result,
        failure=record.failure,
    )


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


def system(counters: Mapping[str, int], waiting: Mapping[str, int], reports: Sequence[WorkerReport]) -> SystemReport:
    """Counters, queues and workers."""
    edge, cloud = counters.get("answered_edge", 0), counters.get("answered_cloud", 0)
    verified = [report.verification for report in reports if report.verification is not None]
    drafted = sum(v.drafted_tokens for v in verified)
    return SystemReport(
        counters=dict(counters),
        waiting=dict(waiting),
        edge_share=edge / (edge + cloud) if edge + cloud else None,
        acceptance_rate=sum(v.accepted_tokens for v in verified) / drafted if drafted else None,
        workers=tuple(
            WorkerSummary(
                worker=r.worker_id,
                tier=r.tier,
                model=r.model,
                engine=r.engine,
                host=r.host,
                ready=r.ready,
                capacity=r.capacity,
                in_flight=r.in_flight,
                jobs_done=r.jobs_done,
                uptime_s=r.reported_at_s - r.started_at_s,
                verification=r.verification,
            )
            for r in reports
        ),
    )


def _sum(statistics: Sequence[CacheStatistics]) -> CacheStatistics:
    counted = [name for name in CacheStatistics.model_fields if name != "enabled"]
    return CacheStatistics(
        enabled=any(s.enabled for s in statistics),
        **{name: sum(getattr(s, name) for s in statistics) for name in counted},
    )
