"""Webhooks to call: a queue of finished requests by the time of the next try."""

from typing import cast

from redis import Redis

from broker import keys, scripts

#: Seconds for which whoever takes a webhook up has it; then another does, should the first have died.
CLAIM_S = 60
#: Webhooks that are taken up at once.
BATCH = 16


class Outbox:
    """Hands out what is due. Entries are made by the commit that finishes a request, in the same step."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim_due = redis.register_script(scripts.CLAIM_DUE)
        self._count_try = redis.register_script(scripts.COUNT_TRY)

    def take(self) -> list[str]:
        """Ids of finished requests whose webhook is to be called now. Each goes to one caller."""
        return [raw.decode() for raw in self._claim_due(keys=[keys.outbox()], args=[CLAIM_S, BATCH])]

    def count_try(self, request_id: str) -> int:
        """How often it was tried, this time included; 0 where its result has expired."""
        return int(cast("int", self._count_try(keys=[keys.request(request_id)])))

    def try_again(self, request_id: str, delay_s: int) -> None:
        """Have it taken up again later."""
        now_s = self._redis.time()[0]
        self._redis.zadd(keys.outbox(), {request_id: now_s + delay_s}, xx=True)

    def done(self, request_id: str) -> None:
        """It was delivered, or is given up."""
        self._redis.zrem(keys.outbox(), request_id)
