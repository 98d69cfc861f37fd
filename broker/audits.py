"""Audits in Redis: kept drafts that wait until the cloud has room to verify them."""

from typing import cast

from redis import Redis

from broker import keys, scripts
from schemas import wire
from schemas.audits import Audit
from schemas.wire import UndecodableMessage


class AuditQueue:
    """Adds and takes audits. Safe on any thread.

    An audit that is taken and not finished, because its worker died, is lost: it is a sample, and another one comes.
    """

    def __init__(self, redis: Redis, keep_s: int) -> None:
        self._redis = redis
        self._keep_s = keep_s

    def add(self, audit: Audit, drawn_at_s: float) -> None:
        """Queue an audit, or put it back under its own time. Idempotent. One round trip."""
        with self._redis.pipeline() as pipeline:
            pipeline.set(keys.audit(audit.request_id), wire.encode(audit), ex=self._keep_s)
            pipeline.zadd(keys.audits(), {audit.request_id: drawn_at_s})
            pipeline.expire(keys.audits(), self._keep_s)
            pipeline.execute()

    def take(self) -> tuple[Audit, float] | None:
        """The audit that has waited longest, with the time at which it was drawn. None if there is none.

        Those that have expired, or whose request was deleted, are skipped and counted as `audits_dropped`.
        """
        while True:
            popped = cast("list[tuple[bytes, float]]", self._redis.zpopmin(keys.audits()))
            if not popped:
                return None
            request_id, drawn_at_s = popped[0][0].decode(), float(popped[0][1])
            with self._redis.pipeline() as pipeline:
                pipeline.get(keys.audit(request_id))
                pipeline.delete(keys.audit(request_id))
                raw = pipeline.execute()[0]
            if raw is not None:
                try:
                    return wire.decode(Audit, raw), drawn_at_s
                except UndecodableMessage:  # of another version
                    pass
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hincrby(keys.counters(), "audits_dropped", 1)
                pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
                pipeline.execute()

    def __len__(self) -> int:
        return int(self._redis.zcard(keys.audits()))
