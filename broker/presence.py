"""Which workers are alive: each renews its report, and a report that was not renewed is gone."""

import time
from typing import cast

from redis import Redis

from broker import keys
from broker.prefix_index import member_name
from schemas import wire
from schemas.workers import WorkerReport

#: Seconds that the index of workers outlives the last report.
INDEX_TTL_S = 86_400


class Presence:
    """Reads and renews worker reports."""

    def __init__(self, redis: Redis, lease_s: float) -> None:
        self._redis = redis
        self._lease_s = lease_s

    def renew(self, report: WorkerReport) -> None:
        """Publish the report for one lease. Idempotent."""
        now = time.time()
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(keys.worker_report(report.worker_id), wire.encode(report), px=int(self._lease_s * 1000))
            pipeline.zadd(keys.workers(), {report.worker_id: now + self._lease_s})
            pipeline.zremrangebyscore(keys.workers(), 0, now - self._lease_s)
            pipeline.expire(keys.workers(), INDEX_TTL_S)
            pipeline.execute()

    def withdraw(self, worker_id: str) -> None:
        """Say good-bye, so that nobody waits for the lease to lapse."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(keys.worker_report(worker_id))
            pipeline.zrem(keys.workers(), worker_id)
            pipeline.execute()

    def members(self) -> set[str]:
        """All live workers, each in its present life, as the prefix index names them."""
        return {member_name(report.worker_id, report.epoch) for report in self.live()}

    def live(self) -> list[WorkerReport]:
        """The reports of all live workers, by id."""
        ids = cast("list[bytes]", self._redis.zrange(keys.workers(), 0, -1))
        if not ids:
            return []
        raw = cast("list[bytes | None]", self._redis.mget([keys.worker_report(i.decode()) for i in ids]))
        return sorted((wire.decode(WorkerReport, r) for r in raw if r is not None), key=lambda r: r.worker_id)
