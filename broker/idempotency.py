"""Idempotency keys: the same key and body is the same thing, made once.

A key stands for the id of what was made: a request (the first, where one body makes several), a file or a batch. What
it stands for is stored in the same step as the thing itself, or before the thing can be seen; so a repetition finds
what the first one made, whatever was killed in between.
"""

import hashlib
from dataclasses import dataclass
from typing import cast

from redis import Redis

from broker import keys, scripts

#: Seconds for which an idempotency key stands for what was made.
IDEMPOTENCY_TTL_S = 86_400


class IdempotencyConflict(Exception):
    """An idempotency key came again with another body, or on another route. Nothing was stored."""


@dataclass(frozen=True)
class Idempotency:
    """A key that its user promises to use for one body only."""

    owner: str
    key: str
    #: What the key is good for: a digest of route and body.
    body_digest: str

    @property
    def redis_key(self) -> str:
        """Where it is kept; users' own words are no part of a key's name."""
        return keys.idempotency(self.owner, hashlib.sha256(self.key.encode()).hexdigest())

    def meaning(self, made_id: str) -> str:
        """What is kept: that the key stands for this id."""
        return f"{self.body_digest} {made_id}"

    def earlier(self, meaning: bytes) -> str:
        """The id that it stood for. Raises `IdempotencyConflict` if that had another body."""
        digest, _, made_id = meaning.decode(errors="replace").partition(" ")
        if digest != self.body_digest:
            raise IdempotencyConflict("this Idempotency-Key was used with another body")
        return made_id


class IdempotencyKeys:
    """For what is made outside of Redis: its id is claimed before it can be seen. May be used from any thread."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(scripts.CLAIM_KEY)

    def read(self, idempotency: Idempotency) -> str | None:
        """The id for which the key stands, or None. Raises `IdempotencyConflict`."""
        meaning = cast("bytes | None", self._redis.get(idempotency.redis_key))
        return None if meaning is None else idempotency.earlier(meaning)

    def claim(self, idempotency: Idempotency, made_id: str) -> str:
        """Have the key stand for this id, and answer it; or the id for which it stands already.

        Raises `IdempotencyConflict`. Whoever gets another's id must see to it that the thing is there: the other may
        have been killed before it made it.
        """
        arguments: list[str | int] = [idempotency.meaning(made_id), IDEMPOTENCY_TTL_S]
        meaning = self._claim(keys=[idempotency.redis_key], args=arguments)
        return idempotency.earlier(cast("bytes", meaning))
