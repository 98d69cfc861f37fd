"""Batches and their progress, in Redis. Their files are elsewhere (gateway/batches/files.py).

Once created, a batch is written by the process that runs it only. A cancellation that was requested is a separate field
of the record, so that the two never overwrite each other.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import cast

from redis import Redis
from redis.client import Pipeline

from broker import keys
from broker.idempotency import IDEMPOTENCY_TTL_S, Idempotency
from schemas import wire
from schemas.openai_files import ENDED, MAX_WINDOW_S, Batch

log = logging.getLogger(__name__)

#: Seconds for which a batch is kept after its last change.
KEPT_S = 30 * 24 * 3600
#: Seconds after its creation for which a batch is listed; no batch is kept for longer.
LISTED_S = MAX_WINDOW_S + KEPT_S
#: Batches that are read in one round trip.
PAGE = 200

#: Stores a batch unless its idempotency key exists already or the owner has too many unfinished ones.
#: KEYS: the batch; the sorted sets of all batches and the owner's; the sets of all unfinished batches and the owner's.
#: ARGV: id, batch, time of creation, KEPT_S, LISTED_S, the most unfinished batches of an owner; idempotency key, its
#: value and time to live (all '' for none).
#: Returns 1 if stored, 0 if the owner has too many, or the existing value of the idempotency key.
_CREATE = """
local id, batch, created_at, kept_s, listed_s, most = unpack(ARGV, 1, 6)
local idempotency, value, idempotency_ttl = unpack(ARGV, 7, 9)
if idempotency ~= '' then
  local existing = redis.call('GET', idempotency)
  if existing then return existing end
end
if redis.call('SCARD', KEYS[5]) >= tonumber(most) then
  redis.call('SINTERSTORE', KEYS[5], KEYS[5], KEYS[4])  -- removes those that have expired
  redis.call('EXPIRE', KEYS[5], kept_s)
  if redis.call('SCARD', KEYS[5]) >= tonumber(most) then return 0 end
end
if idempotency ~= '' then redis.call('SET', idempotency, value, 'EX', idempotency_ttl) end
redis.call('HSET', KEYS[1], 'batch', batch)
redis.call('EXPIRE', KEYS[1], kept_s)
for _, index in ipairs({KEYS[2], KEYS[3]}) do
  redis.call('ZADD', index, created_at, id)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', created_at - listed_s)
  redis.call('EXPIRE', index, listed_s)
end
for _, unfinished in ipairs({KEYS[4], KEYS[5]}) do
  redis.call('SADD', unfinished, id)
  redis.call('EXPIRE', unfinished, kept_s)
end
return 1
"""

#: Records when the cancellation of a batch was first requested. Does nothing if the batch does not exist.
#: KEYS: the batch. ARGV: the time in seconds.
_ASK_TO_CANCEL = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSETNX', KEYS[1], 'cancelling_at', ARGV[1]) end
"""


class TooManyBatches(Exception):
    """The owner has as many unfinished batches as it may have. Nothing was stored."""


class NotListed(Exception):
    """The batch after which a page should begin is not in the list."""


class BatchStore:
    """Reads and writes batches. Safe on any thread."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._create = redis.register_script(_CREATE)
        self._ask_to_cancel = redis.register_script(_ASK_TO_CANCEL)

    def create(self, batch: Batch, most: int, idempotency: Idempotency | None = None) -> str:
        """Store a new batch, which `unfinished` then lists.

        Returns its id, or the id of the batch that was created earlier with the same idempotency key. Raises
        `IdempotencyConflict`, and `TooManyBatches` if the owner has `most` unfinished batches already.
        """
        owner = batch.owner.name
        arguments: list[str | int | bytes] = [batch.id, wire.encode(batch), batch.created_at, KEPT_S, LISTED_S, most]
        if idempotency is None:
            arguments += ["", "", ""]
        else:
            arguments += [idempotency.redis_key, idempotency.meaning(batch.id), IDEMPOTENCY_TTL_S]
        indices = [keys.batches(), keys.batches_of(owner), keys.unfinished_batches(), keys.unfinished_batches_of(owner)]
        answer = self._create(keys=[keys.batch(batch.id), *indices], args=arguments)
        if isinstance(answer, bytes) and idempotency is not None:
            return idempotency.earlier(answer)
        if not answer:
            raise TooManyBatches(f"You have {most} batches that have not ended, as many as gateway.owner_max_batches.")
        return batch.id

    def read(self, batch_id: str) -> Batch | None:
        """The batch, or None if it does not exist or has expired. Raises `UndecodableMessage`."""
        raw, cancelling_at = cast(
            "list[bytes | None]", self._redis.hmget(keys.batch(batch_id), "batch", "cancelling_at")
        )
        return None if raw is None else _batch(raw, cancelling_at)

    def read_all(self, batch_ids: Iterable[str]) -> dict[str, Batch]:
        """The batches that exist, by id, in one round trip per `PAGE`. Logs and omits those that cannot be decoded."""
        ids = list(batch_ids)
        found = {}
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            with self._redis.pipeline(transaction=False) as pipeline:
                for batch_id in page:
                    pipeline.hmget(keys.batch(batch_id), "batch", "cancelling_at")
                answers = pipeline.execute()
            for batch_id, (raw, cancelling_at) in zip(page, answers, strict=True):
                if raw is None:
                    continue
                try:
                    found[batch_id] = _batch(raw, cancelling_at)
                except wire.UndecodableMessage as error:
                    log.error("batch_unreadable batch_id=%s error=%s", batch_id, error)  # noqa: TRY400 - the message suffices
        return found

    def write(self, batch: Batch) -> None:
        """Store the batch's progress. Only the process that runs it may call this."""
        owner = batch.owner.name
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.batch(batch.id), "batch", wire.encode(batch))
            pipeline.expire(keys.batch(batch.id), KEPT_S)
            self._expire_indices(pipeline, owner)
            if batch.status in ENDED:
                pipeline.srem(keys.unfinished_batches(), batch.id)
                pipeline.srem(keys.unfinished_batches_of(owner), batch.id)
            pipeline.execute()

    def ask_to_cancel(self, batch_id: str, now_s: float) -> None:
        """Ask the process that runs the batch to cancel it. Idempotent."""
        self._ask_to_cancel(keys=[keys.batch(batch_id)], args=[int(now_s)])

    def unfinished(self) -> list[str]:
        """The ids of all batches that have not ended."""
        return sorted(raw.decode() for raw in cast("set[bytes]", self._redis.smembers(keys.unfinished_batches())))

    def drop_expired(self, batch_ids: Iterable[str]) -> None:
        """Remove the batches whose records have expired from the set of unfinished batches."""
        for batch_id in batch_ids:
            if not self._redis.exists(keys.batch(batch_id)):
                self._redis.srem(keys.unfinished_batches(), batch_id)

    def listed(
        self, after: str | None, limit: int, owner: str | None, *, newest_first: bool = True
    ) -> tuple[tuple[Batch, ...], bool]:
        """Up to `limit` batches of the owner (None: of all owners) in order of creation, and whether there are more.

        Begins with the batch that follows `after`. Raises `NotListed` if `after` is not in the list.
        """
        index = keys.batches() if owner is None else keys.batches_of(owner)
        start = 0
        if after is not None:
            rank_of = self._redis.zrevrank if newest_first else self._redis.zrank
            rank = cast("int | None", rank_of(index, after))
            if rank is None:
                raise NotListed(after)
            start = rank + 1
        found: list[Batch] = []
        for page in self._pages(index, start, newest_first=newest_first):
            for batch in self.read_all(page).values():
                if len(found) == limit:
                    return tuple(found), True
                found.append(batch)
        return tuple(found), False

    def tidy(self, now_s: float) -> None:
        """Migrate the list of all batches from an earlier version, which had no lists by owner and no time to live.

        The missing time to live is how such a list is recognised. Idempotent.
        """
        if self._redis.ttl(keys.batches()) != -1:
            return
        self._redis.zremrangebyscore(keys.batches(), "-inf", now_s - LISTED_S)
        for page in self._pages(keys.batches(), 0, newest_first=True):
            with self._redis.pipeline(transaction=False) as pipeline:
                for batch in self.read_all(page).values():
                    pipeline.zadd(keys.batches_of(batch.owner.name), {batch.id: batch.created_at})
                    self._expire_indices(pipeline, batch.owner.name)
                pipeline.execute()
        self._redis.expire(keys.batches(), LISTED_S)
        self._redis.expire(keys.unfinished_batches(), KEPT_S)

    def _pages(self, index: str, start: int, *, newest_first: bool) -> Iterator[list[str]]:
        """The index's members from rank `start` on, in pages."""
        while True:
            page = cast("list[bytes]", self._redis.zrange(index, start, start + PAGE - 1, desc=newest_first))
            yield [raw.decode() for raw in page]
            if len(page) < PAGE:
                return
            start += PAGE

    @staticmethod
    def _expire_indices(pipeline: Pipeline, owner: str) -> None:
        pipeline.expire(keys.batches(), LISTED_S)
        pipeline.expire(keys.batches_of(owner), LISTED_S)
        pipeline.expire(keys.unfinished_batches(), KEPT_S)
        pipeline.expire(keys.unfinished_batches_of(owner), KEPT_S)


def _batch(raw: bytes, cancelling_at: bytes | None) -> Batch:
    batch = wire.decode(Batch, raw)
    if cancelling_at is None or batch.status in ENDED:
        return batch
    return batch.model_copy(update={"status": "cancelling", "cancelling_at": int(cancelling_at)})
