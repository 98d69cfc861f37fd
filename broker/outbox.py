"""Webhooks to call: a queue of finished requests by the time of the next try."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from redis import Redis

from broker import keys, scripts

#: Seconds for which whoever takes a webhook up has it; then another does, should the first have died.
CLAIM_S = 60
#: Webhooks that are taken up in one step.
BATCH = 256


@dataclass(frozen=True)
class Due:
    """A webhook that is to be called now."""

    request_id: str
    #: Whose request it was; empty where its result has expired, and with it the address.
    owner: str
    #: Who is to be called: host and port of the address.
    receiver: str


class Outbox:
    """Hands out what is due. Entries are made by the commit that finishes a request, in the same step."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim_due = redis.register_script(scripts.CLAIM_DUE)
        self._count_try = redis.register_script(scripts.COUNT_TRY)

    def take(self) -> list[Due]:
        """Up to `BATCH` webhooks that are to be called now. Each goes to one caller."""
        ids = [raw.decode() for raw in self._claim_due(keys=[keys.outbox()], args=[CLAIM_S, BATCH])]
        with self._redis.pipeline(transaction=False) as pipeline:
            for request_id in ids:
                pipeline.hmget(keys.request(request_id), "owner", "webhook")
            fields = pipeline.execute()
        return [
            Due(request_id, (owner or b"").decode(), _receiver((url or b"").decode(errors="replace")))
            for request_id, (owner, url) in zip(ids, fields, strict=True)
        ]

    def count_try(self, request_id: str) -> int:
        """How often it was tried, this time included; 0 where its result has expired."""
        return int(cast("int", self._count_try(keys=[keys.request(request_id)])))

    def try_again(self, delays_s: Mapping[str, float]) -> None:
        """Have these taken up again, each after so many seconds."""
        if not delays_s:
            return
        now_s = self._redis.time()[0]
        later = {request_id: now_s + delay_s for request_id, delay_s in delays_s.items()}
        self._redis.zadd(keys.outbox(), later, xx=True)

    def done(self, request_id: str) -> None:
        """It was delivered, or is given up."""
        self._redis.zrem(keys.outbox(), request_id)


def _receiver(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # an address that is none; its try says so
        return url
