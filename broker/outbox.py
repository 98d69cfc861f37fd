"""Webhooks to be delivered: a queue of finished requests, by the time of the next attempt to deliver."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from redis import Redis

from broker import keys, scripts

#: Seconds for which a process that takes a webhook owns it. Later another may take it, since the first may have died.
CLAIM_S = 60
#: Webhooks that are taken in one call.
BATCH = 256


@dataclass(frozen=True)
class Due:
    """A webhook whose next attempt is due."""

    request_id: str
    #: The owner of the request; empty if its result, and with it the URL, has expired.
    owner: str
    #: Host and port of the URL.
    receiver: str


class Outbox:
    """Hands out due webhooks. The script that commits a request's end adds them, atomically with the commit."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim_due = redis.register_script(scripts.CLAIM_DUE)
        self._count_try = redis.register_script(scripts.COUNT_TRY)

    def take(self) -> list[Due]:
        """Up to `BATCH` due webhooks. Each is given to one caller only, for `CLAIM_S` seconds."""
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
        """Count an attempt; returns the number of attempts, or 0 if the request's result has expired."""
        return int(cast("int", self._count_try(keys=[keys.request(request_id)])))

    def try_again(self, delays_s: Mapping[str, float]) -> None:
        """Schedule the next attempt of each request after its number of seconds."""
        if not delays_s:
            return
        now_s = self._redis.time()[0]
        later = {request_id: now_s + delay_s for request_id, delay_s in delays_s.items()}
        self._redis.zadd(keys.outbox(), later, xx=True)

    def done(self, request_id: str) -> None:
        """Remove a webhook that was delivered or given up."""
        self._redis.zrem(keys.outbox(), request_id)


def _receiver(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # an invalid URL: the attempt will fail and say so
        return url
