"""Batches in Redis: what they are and how far they have come. Their files are elsewhere (gateway/files.py).

After its creation a batch is written by the one process that runs it; a cancellation is a field of its own, so that the
two never overwrite each other.
"""

from collections.abc import Callable
from typing import cast

from redis import Redis

from broker import keys
from schemas import wire
from schemas.openai_files import ENDED, Batch

#: Seconds for which a batch is remembered after its last change.
KEPT_S = 30 * 24 * 3600


class BatchStore:
    """Reads and writes batches. May be used from any thread."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, batch: Batch) -> None:
        """Remember a new batch; whoever looks for batches to run finds it."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.batch(batch.id), "batch", wire.encode(batch))
            pipeline.expire(keys.batch(batch.id), KEPT_S)
            pipeline.zadd(keys.batches(), {batch.id: batch.created_at})
            pipeline.sadd(keys.unfinished_batches(), batch.id)
            pipeline.execute()

    def read(self, batch_id: str) -> Batch | None:
        """The batch, or None where there is none (any more)."""
        raw, cancelling_at = cast(
            "list[bytes | None]", self._redis.hmget(keys.batch(batch_id), "batch", "cancelling_at")
        )
        if raw is None:
            return None
        batch = wire.decode(Batch, raw)
        if cancelling_at is None or batch.status in ENDED:
            return batch
        return batch.model_copy(update={"status": "cancelling", "cancelling_at": int(cancelling_at)})

    def write(self, batch: Batch) -> None:
        """Remember how far the batch has come. Only the process that runs it may call this."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.batch(batch.id), "batch", wire.encode(batch))
            pipeline.expire(keys.batch(batch.id), KEPT_S)
            if batch.status in ENDED:
                pipeline.srem(keys.unfinished_batches(), batch.id)
            pipeline.execute()

    def ask_to_cancel(self, batch_id: str, now_s: float) -> None:
        """Have the process that runs it stop. Idempotent."""
        self._redis.hsetnx(keys.batch(batch_id), "cancelling_at", int(now_s))

    def unfinished(self) -> list[str]:
        """Ids of batches that someone must run."""
        return sorted(one.decode() for one in cast("set[bytes]", self._redis.smembers(keys.unfinished_batches())))

    def listed(
        self, after: str | None, limit: int, is_wanted: Callable[[Batch], bool], *, newest_first: bool = True
    ) -> tuple[tuple[Batch, ...], bool]:
        """Up to `limit` wanted batches, from the one after `after` on, in order; and whether there are more."""
        start = 0
        if after is not None:
            rank_of = self._redis.zrevrank if newest_first else self._redis.zrank
            rank = cast("int | None", rank_of(keys.batches(), after))
            start = 0 if rank is None else rank + 1
        found: list[Batch] = []
        for raw in cast("list[bytes]", self._redis.zrange(keys.batches(), start, -1, desc=newest_first)):
            batch = self.read(raw.decode())
            if batch is None or not is_wanted(batch):
                continue
            if len(found) == limit:
                return tuple(found), True
            found.append(batch)
        return tuple(found), False
