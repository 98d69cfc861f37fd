"""Which workers are alive: each renews its report, and a report that was not renewed is gone."""

from typing import cast

from redis import Redis

from broker import keys
from broker.prefix_index import member_name
from schemas import wire
from schemas.workers import WorkerReport

#: Seconds that the index of workers outlives the last report.
INDEX_TTL_S = 86_400

#: KEYS: the worker's report, the index of workers. ARGV: report, lease in milliseconds, worker, life of the index in
#: seconds. Keeps the report for one lease, and drops from the index who lapsed more than a lease ago.
_RENEW = """
local clock = redis.call('TIME')
local now, lease = clock[1] + clock[2] / 1000000, ARGV[2] / 1000
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.6f', now + lease), ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now - lease))
redis.call('EXPIRE', KEYS[2], ARGV[4])
"""


class Presence:
    """Reads and renews worker reports."""

    def __init__(self, redis: Redis, lease_s: float) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._renew = redis.register_script(_RENEW)

    def renew(self, report: WorkerReport) -> None:
        """Publish the report for one lease. Idempotent."""
        self._renew(
            keys=[keys.worker_report(report.worker_id), keys.workers()],
            args=[wire.encode(report), int(self._lease_s * 1000), report.worker_id, INDEX_TTL_S],
        )

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
