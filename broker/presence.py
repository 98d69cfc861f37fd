"""Which workers are alive: each renews its report, which expires otherwise."""

import logging
from typing import Any, cast

from redis import Redis

from broker import keys, scripts
from broker.prefix_index import member_name
from schemas import wire
from schemas.policy import Tier
from schemas.workers import WorkerReport

log = logging.getLogger(__name__)

#: Seconds for which a worker counts as alive after a renewal. Only then are requests put into its line.
LIFE_S = 5.0


class Presence:
    """Reads and renews worker reports."""

    def __init__(self, redis: Redis, lease_s: float) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._live = redis.register_script(scripts.LIVE)
        self._leave = redis.register_script(scripts.LEAVE)

    def renew(self, report: WorkerReport) -> dict[str, int]:
        """Publish the report for the length of a lease, and keep the worker's line for `LIFE_S`. Idempotent.

        Returns the workers of its tier that were found dead, each with the number of requests that were moved from its
        line to the shared one.
        """
        arguments = {
            "tier": report.tier.value,
            "worker": worker_name(report),
            "report": wire.encode(report),
            "report_ms": int(self._lease_s * 1000),
            "life_s": LIFE_S,
        }
        retired = cast("list[Any]", self._live(args=scripts.packed(arguments)))
        return {name.decode(errors="replace"): int(moved) for name, moved in retired}

    def withdraw(self, report: WorkerReport) -> None:
        """Remove the worker and move the requests in its line to the shared one. Idempotent."""
        arguments = scripts.packed({"tier": report.tier.value, "worker": worker_name(report)})
        while self._leave(args=arguments):
            pass

    def members(self) -> set[str]:
        """The names of all live workers."""
        return {worker_name(report) for report in self.live()}

    def live(self) -> list[WorkerReport]:
        """The reports of all live workers, sorted by id; of each worker id only the latest epoch. Two round trips."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for tier in Tier:
                pipeline.zrange(keys.workers(tier), 0, -1)
            names = [name.decode(errors="replace") for tier in pipeline.execute() for name in tier]
        if not names:
            return []
        raw = cast("list[bytes | None]", self._redis.mget([keys.worker_report(name) for name in names]))
        reports = [report for each in raw if each is not None and (report := _readable(each)) is not None]
        latest = {report.worker_id: report for report in sorted(reports, key=lambda report: report.reported_at_s)}
        return [latest[worker_id] for worker_id in sorted(latest)]


def _readable(raw: bytes) -> WorkerReport | None:
    """The report, or None if another version wrote it, whose worker cannot be given work by this one."""
    try:
        return wire.decode(WorkerReport, raw)
    except wire.UndecodableMessage as error:
        log.warning("report_unreadable error=%s", error)
        return None


def worker_name(report: WorkerReport) -> str:
    """A worker's name in lines, routes and the prefix index: `id@epoch`. Each start of the process has a new epoch."""
    return member_name(report.worker_id, report.epoch)
